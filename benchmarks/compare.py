"""Compares two results files, case by case.

    python benchmarks/compare.py OLD.jsonl NEW.jsonl

The ratio is of shares of the limit (new over old), so that a machine that is slower today as a whole does not count.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dlmt_fast.bench import report

Key = tuple[str, str, int, str]


def compare(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    """A Markdown table of the cases that both have, and a line that counts the others."""
    before, after = _by_case(old), _by_case(new)
    lines = ["| operation | threads | workload | contender | old | new | ratio |", "|---|---|---|---|---|---|---|"]
    for key in before.keys() & after.keys():
        a, b = before[key]["share_of_limit"], after[key]["share_of_limit"]
        operation, workload, threads, contender = key
        lines.append(f"| {operation} | {threads} | {workload} | {contender} | {a:.3f} | {b:.3f} | {b / a:.2f} |")
    lines[2:] = sorted(lines[2:])
    only = len(before.keys() ^ after.keys())
    return "\n".join([*lines, f"\n{only} cases are in one file alone" if only else ""])


def _by_case(rows: list[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    return {(r["operation"], r["workload"], r["threads"], r["contender"]): r for r in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    given = parser.parse_args()
    print(compare(report.read_rows(given.old), report.read_rows(given.new)))


if __name__ == "__main__":
    main()
