"""Rows of results as JSON lines and as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .harness import Row

LEGEND = (
    "Share of the limit (gigapixels a second). The limit is the fastest plain copy (u8->u8) or conversion (u8->f32)\n"
    'of the same bytes in the same rounds. R is normalize="range", M is "minmax". The key\'s bytes are not counted.'
)


def write_rows(path: Path, rows: Iterable[Row], machine: dict[str, Any]) -> None:
    """Append rows, one JSON object a line, each with the machine's facts."""
    with open(path, "a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.as_dict() | {"machine": machine}) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of shares of the limit: a row for each operation and contender, a column for each workload."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    lines = [f"| operation | contender | {' | '.join(workloads)} |", f"|{'---|' * (2 + len(workloads))}"]
    found = {(r["operation"], r["contender"], r["threads"], r["workload"]): r for r in rows}
    keys = list(dict.fromkeys((r["operation"], r["threads"], r["contender"]) for r in rows if r["group"] != "limit"))
    blocks = list(dict.fromkeys(key[:2] for key in keys))
    for operation, threads, contender in sorted(keys, key=lambda key: blocks.index(key[:2])):
        cells = [_cell(found.get((operation, contender, threads, workload))) for workload in workloads]
        lines.append(f"| {operation}, {_threads(threads)} | {contender} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['share_of_limit']:.2f} ({row['gigapixels_per_s']:.2f})"


def _threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
