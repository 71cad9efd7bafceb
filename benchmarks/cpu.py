"""The full CPU benchmark: every workload, one thread and all, every peer that is installed.

python benchmarks/cpu.py benchmarks/results/cpu.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlmt_fast.bench import OPERATIONS, WORKLOADS, machine, report
from dlmt_fast.bench.run import all_threads, run

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON lines; must not exist")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="only these")
    parser.add_argument("--operation", action="append", choices=OPERATIONS, help="only these")
    parser.add_argument("--threads", action="append", type=int, help="only these numbers")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds for each combination")
    given = parser.parse_args()
    if given.output.exists():
        sys.exit(f"{given.output} exists; results are never mixed with older ones")
    if peers.missing():
        print(f"left out, since not installed: {', '.join(peers.missing())}", file=sys.stderr)
    facts = machine.describe()
    for rows in run(
        [WORKLOADS[name] for name in given.workload or WORKLOADS],
        given.threads or all_threads(),
        given.rounds,
        given.budget,
        lambda text: print(text, file=sys.stderr, flush=True),
        peers.all_contenders,
        [OPERATIONS[name] for name in given.operation or OPERATIONS],
    ):
        report.write_rows(given.output, rows, facts)
    print(report.table(report.read_rows(given.output)))


if __name__ == "__main__":
    main()
