"""The GPU benchmark: shares of what the card's own copy reaches, and every peer that is installed.

python benchmarks/cuda.py benchmarks/results/cuda.jsonl

A run that finds a wrong value, or a contender that breaks, says so and exits with 1 after everything else was measured.
A target that is not met is a result, not a failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError:
    sys.exit("benchmarks/cuda.py needs torch: pip install 'dlmt-fast[torch]'")

import dlmt_fast as dlmt
from dlmt_fast.bench import machine

sys.path.insert(0, str(Path(__file__).resolve().parent))

_VERSIONS = ("torch", "triton", "cupy-cuda13x", "cupy-cuda12x", "numba", "numba-cuda", "numpy")
_SHAPES = {
    "cifar-set": (50000, 3, 32, 32),
    "imagenet": (1024, 3, 224, 224),
    "2048": (64, 3, 2048, 2048),
}
_GRAPHS = 256  # each with a set of its own: together more than the cache holds
#: Shares of the limit: (range to uint8, range to floats, min-max to uint8).
_TARGETS = {"cifar-set": (0.92, 0.95, 0.88), "imagenet": (0.92, 0.95, 0.85), "2048": (0.90, 0.92, 0.60)}


def cells(only: list[str] | None) -> list[Any]:
    """Every workload and operation of the table."""
    from dlmt_fast.bench.gpu import Cell

    found = []
    for name, shape in _SHAPES.items():
        if only and name not in only:
            continue
        fixed, floats, minmax = _TARGETS[name]
        counts = name == "2048"
        found += [
            Cell(name, shape, "range", "uint8", fixed, counts),
            Cell(name, shape, "range", "float32", floats, counts),
            Cell(name, shape, "range", "bfloat16", floats, counts),
            Cell(name, shape, "minmax", "uint8", minmax, counts),
        ]
    return found


def run_cell(cell: Any, rounds: int, say: Any) -> tuple[list[Any], list[str]]:
    """(rows, what went wrong) of one cell."""
    import cuda_peers

    from dlmt_fast.bench.gpu import check, make_sets, measure

    sets, expected = make_sets(cell, 2)
    plan, chosen, wrong = cell.plan(), [], []
    fields = {"limits": cuda_peers.limits, "ours": cuda_peers.ours, **cuda_peers.FIELDS}
    for name, field in fields.items():
        if importlib.util.find_spec(cuda_peers.NEEDS.get(name, "torch")) is None:
            continue
        try:
            for contender in field(cell, plan, sets):
                check(contender, sets, expected)
                torch.cuda.synchronize()
                chosen.append(contender)
        except Exception as error:  # noqa: BLE001 - the others are still measured; the run fails at its end
            wrong.append(f"{cell.workload} {cell.operation}, {name}: {type(error).__name__}: {str(error)[:500]}")
            say(f"  WRONG: {wrong[-1]}")
    del expected
    rows = measure(cell, chosen, sets, rounds) if any(c.group == "limit" for c in chosen) else []
    return rows, wrong


def graph_rows(rounds: int) -> list[dict[str, Any]]:
    """A CIFAR batch of 128 replayed in a graph, beside a graph with one empty launch."""
    from dlmt_fast.bench.gpu import Cell, make_sets

    stream = torch.cuda.Stream()
    graphs: dict[str, list[Any]] = {"empty": [_captured(stream, lambda: torch.cuda._sleep(0)) for _ in range(_GRAPHS)]}
    for normalize, dtype in (("range", "uint8"), ("range", "float32"), ("minmax", "uint8")):
        cell = Cell("batch-128", (128, 3, 32, 32), normalize, dtype, 0.5)
        sets, expected = make_sets(cell, _GRAPHS)
        plan = cell.plan()
        dlmt.encrypt(sets[0][0], plan, out=sets[0][1])
        made = [_captured(stream, partial(dlmt.encrypt, x, plan, out=y), keep=(plan, x, y)) for x, y in sets]
        for graph, _ in made:
            graph.replay()
        torch.cuda.synchronize()
        for i, (_, out) in enumerate(sets):
            if not torch.equal(out, expected.roll(i, 0)):
                raise AssertionError(f"a replayed graph gives wrong values: {cell.operation}, set {i}")
        graphs[f"{cell.operation}, sets in turn"] = made
        graphs[f"{cell.operation}, one set"] = made[:1] * _GRAPHS
    samples = {name: [_replayed(made) for _ in range(rounds)] for name, made in graphs.items()}
    medians = {name: sorted(taken)[len(taken) // 2] for name, taken in samples.items()}
    return [
        {
            "workload": "graph of a batch of 128x3x32x32",
            "contender": name,
            "median_s": medians[name],
            "times_an_empty_launch": medians[name] / medians["empty"],
            "target": 2.0,
            "samples_s": taken,
        }
        for name, taken in samples.items()
    ]


def _captured(stream: Any, work: Any, keep: Any = None) -> tuple[Any, Any]:
    """One call in a graph of its own. `torch.cuda.graph` would collect garbage at each of a thousand captures."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        work()
        graph.capture_end()
    return graph, keep


def _replayed(made: list[Any]) -> float:
    """Seconds a replay, over a train of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(4_000_000)
    start.record()
    for graph, _ in made:
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / len(made)


def facts(commit: str) -> dict[str, Any]:
    """Machine, versions, commit: on every line."""
    device = torch.cuda.get_device_properties(0)
    found = machine.describe() | {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory": device.total_memory,
        "cuda": torch.version.cuda,
    }
    found["commit"] = found["commit"] or commit
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(rows: list[dict[str, Any]], graphs: list[dict[str, Any]]) -> str:
    """A line a cell: ours beside the limit and the target, and how many times faster than each peer."""
    lines = [
        "| workload | operation | limit GB/s | ours GB/s | share | target | times faster than |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in dict.fromkeys((r["workload"], r["operation"]) for r in rows):
        here = [r for r in rows if (r["workload"], r["operation"]) == cell]
        ours = next((r for r in here if r["group"] == "ours"), None)
        if ours is None:
            lines.append(f"| {cell[0]} | {cell[1]} | | WRONG | | | |")
            continue
        limit = next(r for r in here if r["contender"] == ours["limit"])
        met = "" if ours["share_of_limit"] >= ours["target"] else ", MISSED"
        peers = ", ".join(
            f"{r['contender']} {r['median_s'] / ours['median_s']:.2f}" for r in here if r["group"] == "peer"
        )
        lines.append(
            f"| {cell[0]} | {cell[1]} | {limit['gb_per_s']:.0f} | {ours['gb_per_s']:.0f} "
            f"| {ours['share_of_limit']:.3f} | {ours['target']:.2f}{met} | {peers} |"
        )
    for row in graphs:
        met = ", MISSED" if row["times_an_empty_launch"] > row["target"] else ""
        lines.append(
            f"graph, 128x3x32x32, {row['contender']}: {row['median_s'] * 1e6:.2f} us, "
            f"{row['times_an_empty_launch']:.2f} times an empty launch (target {row['target']:.0f}{met})"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON lines; must not exist")
    parser.add_argument("--workload", action="append", choices=_SHAPES, help="only these")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--budget", type=float, default=240.0, help="seconds after which no cell is begun; then it fails"
    )
    parser.add_argument("--commit", default="", help="for the record, where the checkout has no git folder")
    given = parser.parse_args()
    if given.output.exists():
        sys.exit(f"{given.output} exists; results are never mixed with older ones")
    state = dlmt.backends.available()["cuda"]
    if state != "ok":
        sys.exit(f"nothing to measure: {state}")
    import cuda_peers

    if cuda_peers.missing():
        print(f"left out, since not installed: {', '.join(cuda_peers.missing())}", flush=True)
    started, record, wrong, lines, graphs = time.monotonic(), facts(given.commit), [], [], []
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with open(given.output, "a", encoding="utf-8") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row | {"machine": record}) + "\n")
            file.flush()

        try:
            graphs = graph_rows(given.rounds)
        except Exception as error:  # noqa: BLE001 - as for a cell
            wrong.append(f"graphs: {type(error).__name__}: {error}")
        for row in graphs:
            write(row)
        for cell in cells(given.workload):
            used = time.monotonic() - started
            if used > given.budget:
                wrong.append(f"{cell.workload} {cell.operation}: not begun, {used:.0f} s were used")
                continue
            print(f"{used:.0f} s: {cell.workload} {cell.operation}", flush=True)
            try:
                rows, failures = run_cell(cell, given.rounds, lambda text: print(text, flush=True))
            except Exception as error:  # noqa: BLE001 - as for a contender
                rows, failures = [], [f"{cell.workload} {cell.operation}: {type(error).__name__}: {error}"]
            wrong += failures
            for row in rows:
                lines.append(row.as_dict())
                write(lines[-1])
            torch.cuda.empty_cache()
    print(table(lines, graphs))
    for text in wrong:
        print(f"WRONG: {text}")
    print(f"{time.monotonic() - started:.0f} s, {len(lines)} rows, {len(wrong)} failures, written to {given.output}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
