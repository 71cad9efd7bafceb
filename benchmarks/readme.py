"""Rewrites one of the README's benchmark tables from a results file: of the kernels, or of stores.

python benchmarks/readme.py benchmarks/results/cpu.jsonl README.md
python benchmarks/readme.py benchmarks/results/stores.jsonl README.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dlmt_fast.bench import report

MARKS = "<!-- {} table: begin -->", "<!-- {} table: end -->"


def section(rows: list[dict[str, Any]], source: Path) -> str:
    """The table of our backends and, for each cell, the best peer that does the same work."""
    machine = rows[0]["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, level {machine.get('cpu_level', '-')}, commit {machine['commit']}; "
        f"written by `python benchmarks/readme.py {source.as_posix()} README.md`.",
        "",
        report.table([row for row in rows if row["group"] != "peer"] + _best_peers(rows)),
        "",
        report.LEGEND,
    ]
    return "\n".join(lines)


def stores_section(rows: list[dict[str, Any]], source: Path) -> str:
    """What whole jobs take, a row a workload."""
    machine = rows[0]["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs and as many workers, commit {machine['commit']}; written by "
        f"`python benchmarks/readme.py {source.as_posix()} README.md`.",
        "",
        "| images | `dlmt encrypt` | without the transform = 1 | script, Pillow's defaults | `compress_level=1` |",
        "|---|---|---|---|---|",
    ]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        ours, *others = [row for row in rows if row["workload"] == workload]
        speed = (
            f"{ours['images'] / ours['median_s']:.0f} images/s, {ours['megapixels'] / ours['median_s']:.0f} Mpixels/s"
        )
        times = [f"{row['ratio']:.1f} times as long (processors {row['cpu_ratio']:.1f})" for row in others[1:]] or [
            "",
            "",
        ]
        share = f"{ours['ratio']:.2f} (processors {ours['cpu_ratio']:.2f})" if others else ""
        lines.append(f"| {ours['images']} x {workload} | {speed} | {share} | {' | '.join(times)} |")
    return "\n".join(lines)


def _best_peers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    best: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        key = (row["operation"], row["workload"], row["threads"])
        counts = row["group"] == "peer" and row["agreement"] != "no key"
        if counts and (key not in best or row["median_s"] < best[key]["median_s"]):
            best[key] = row
    return [row | {"contender": "best peer"} for row in best.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("readme", type=Path)
    given = parser.parse_args()
    rows, text = report.read_rows(given.results), given.readme.read_text("utf-8")
    kind, make = ("stores", stores_section) if "ratio" in rows[0] else ("benchmark", section)
    begin, end = (mark.format(kind) for mark in MARKS)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{given.readme} must hold {begin} and {end} once each")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    given.readme.write_text(f"{before}{begin}\n{make(rows, given.results)}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    main()
