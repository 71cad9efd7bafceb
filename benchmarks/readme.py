"""Rewrites the README's benchmark table from a results file.

python benchmarks/readme.py benchmarks/results/cpu.jsonl README.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dlmt_fast.bench import report

BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"


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
    text = given.readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{given.readme} must hold {BEGIN} and {END} once each")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    body = section(report.read_rows(given.results), given.results)
    given.readme.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
