"""Pictures of results: bars against the limit, and cost against batch and image size.

python benchmarks/plot.py benchmarks/results/cpu.jsonl benchmarks/results/cpu.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dlmt_fast.bench import report

_COLOURS = {"ours": "#1f77b4", "peer": "#bbbbbb"}


def bars(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel an operation and workload (1 thread): every contender's share of the limit, on a log axis."""
    rows = [row for row in rows if row["threads"] == 1 and row["group"] != "limit"]
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    figure, axes = plt.subplots(len(workloads), len(operations), figsize=(15, 3.2 * len(workloads)), squeeze=False)
    for i, workload in enumerate(workloads):
        for j, operation in enumerate(operations):
            panel = axes[i][j]
            cells = [r for r in rows if r["workload"] == workload and r["operation"] == operation]
            cells.sort(key=lambda row: row["share_of_limit"])
            panel.barh(
                [row["contender"] for row in cells],
                [row["share_of_limit"] for row in cells],
                color=[_COLOURS[row["group"]] for row in cells],
            )
            panel.axvline(1.0, color="black", linewidth=1)
            panel.set_xscale("log")
            panel.set_xlim(5e-4, 2)
            panel.set_title(f"{operation}, {workload}", fontsize=9)
            panel.tick_params(labelsize=7)
    figure.suptitle("Throughput as a share of a plain copy or conversion of the same bytes, 1 thread")
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def growth(rows: list[dict[str, Any]], path: Path) -> None:
    """Nanoseconds a pixel against the number of CIFAR images and against the side of one image."""
    figure, axes = plt.subplots(1, 2, figsize=(14, 5), sharey=True)
    for panel, prefix, label in ((axes[0], "batch-", "images of 3x32x32"), (axes[1], "size-", "side of one image")):
        chosen = [row for row in rows if row["workload"].startswith(prefix)]
        for operation in dict.fromkeys(row["operation"] for row in chosen):
            for contender, style in (("dlmt native", "-o"), ("dlmt numba", "--")):
                line = [r for r in chosen if r["operation"] == operation and r["contender"] == contender]
                panel.plot(
                    [int(row["workload"].removeprefix(prefix)) for row in line],
                    [1 / row["gigapixels_per_s"] for row in line],
                    style,
                    markersize=3,
                    label=f"{operation}, {contender.removeprefix('dlmt ')}",
                )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("ns a pixel, 1 thread")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    bars(report.read_rows(given.results), given.picture)


if __name__ == "__main__":
    main()
