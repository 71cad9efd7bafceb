"""How the cost of one call grows with the number of images and with their size.

python benchmarks/growth.py benchmarks/results/growth.jsonl --plot benchmarks/results/growth.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlmt_fast.bench import OPERATIONS, Workload, machine, report
from dlmt_fast.bench.contenders import limits, ours
from dlmt_fast.bench.run import run

BATCHES = [Workload(f"batch-{1 << i}", (1 << i, 3, 32, 32)) for i in range(17)]
SIZES = [Workload(f"size-{n}", (1, 3, n, n)) for n in (28, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON lines; must not exist")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.output.exists():
        sys.exit(f"{given.output} exists; results are never mixed with older ones")
    facts = machine.describe()
    for rows in run(
        BATCHES + SIZES,
        [1],
        15,
        4.0,
        lambda text: print(text, file=sys.stderr, flush=True),
        lambda w, o, images, t: [*limits(o, images, t), *ours(o.plan(w), images, t)],
        OPERATIONS.values(),
    ):
        report.write_rows(given.output, rows, facts)
    if given.plot:
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        import plot

        plot.growth(report.read_rows(given.output), given.plot)


if __name__ == "__main__":
    main()
