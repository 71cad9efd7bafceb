"""Running a set of workloads: what `dlmt bench` and benchmarks/cpu.py do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from .contenders import Images, installed_contenders
from .harness import Contender, Row, measure
from .workloads import OPERATIONS, Operation, Workload

Field = Callable[[Workload, Operation, Images, int], Sequence[Contender]]


def run(
    workloads: Iterable[Workload],
    threads: Iterable[int],
    rounds: int,
    budget_seconds: float,
    say: Callable[[str], None],
    field: Field = installed_contenders,
    operations: Iterable[Operation] = tuple(OPERATIONS.values()),
) -> Iterator[list[Row]]:
    """Rows of each workload, operation and number of threads, as they come.

    Args:
        rounds, budget_seconds: see `measure`; the budget is for each combination.
        say: is told what begins.
        field: which contenders take part.
    """
    for workload in workloads:
        images = workload.images()
        for operation in operations:
            for count in threads:
                say(f"{workload.name} {operation.name}, {count} thread{'s' if count > 1 else ''}")
                contenders = field(workload, operation, images, count)
                yield measure(workload, operation, contenders, images, count, rounds, budget_seconds)


def all_threads() -> list[int]:
    """One thread, and as many as this process has CPUs."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [1] if count == 1 else [1, count]
