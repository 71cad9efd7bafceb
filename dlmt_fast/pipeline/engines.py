"""Who does the shards of a job: this process, worker processes or Ray. The same function does each shard everywhere."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from ..stores.publish import FileOps
from .planned import PlannedJob
from .processes import run_here, run_in_processes
from .ray_engine import run_on_ray
from .segment_work import ShardDuty
from .segmented import Unfolded
from .summary import Advance
from .task import JobContext, ShardResult, Task

# Segments in all, of 64 MiB or more, below which no processes are started for arrays. One has several threads in
# the kernels: at 2 GB in memory, two processes on two CPUs took 1.2 times as long, of which a second is their start.
_WORTH = 32


def run_tasks(
    job: PlannedJob, tasks: Iterator[Task], count: int, advance: Advance, lock: int, ops: FileOps
) -> Generator[tuple[Task, ShardResult], None, None]:
    """Do `count` tasks with the engine that the options name, and give each with its result when its shard counts.

    Args:
        lock: the descriptor of the slice's lock, for worker processes to inherit.

    Raises:
        DlmtError, OSError: what a shard raised. When the generator has ended or is closed, nothing works on.
    """
    options = job.options
    if options.engine == "ray":
        context = _context(job, ops, 1, 1)
        return run_on_ray(context, job.owner, tasks, options.address, options.workers, advance)
    return _run_locally(job, tasks, count, advance, lock, ops)


def _run_locally(
    job: PlannedJob, tasks: Iterator[Task], count: int, advance: Advance, lock: int, ops: FileOps
) -> Generator[tuple[Task, ShardResult], None, None]:
    workers = job.options.workers or 1
    processes = min(workers, count if job.source.named or job.form.named else _parts(job))
    if processes == 1:
        duty = ShardDuty(_context(job, ops, workers, None), job.owner.root)
        done: Generator[tuple[Any, ShardResult | None], None, None] = run_here(duty.begin(), tasks, advance)
    else:
        duty = ShardDuty(_context(job, ops, 1, 1), job.owner.root)
        agenda = Unfolded(tasks, lambda task: duty.left(task, advance))
        done = run_in_processes(duty, agenda, processes, advance, lock)
    with closing(done):
        for task, result in done:
            if isinstance(task, Task) and result is not None:
                yield task, result


def take_back(job: PlannedJob, task: Task, ops: FileOps) -> None:
    """Of a large array that does not count, hide the file again where a worker made it visible and was ended then."""
    ShardDuty(_context(job, ops, 1, 1), job.owner.root).take_back(task)


def _parts(job: PlannedJob) -> int:
    """How many processes arrays are good for: reading and writing small ones takes less time than starting any."""
    parts = sum(job.segments(shard) for shard in job.shards)
    return parts if parts >= _WORTH else 1


def _context(job: PlannedJob, ops: FileOps, decoders: int, threads: int | None) -> JobContext:
    return JobContext(
        key=job.key,
        scheme=job.scheme,
        options=job.options,
        store_id=job.store_id,
        kind=job.kind,
        dtype=job.dtype,
        target=job.target.root,
        retire=job.target.manifest if job.target.old else None,
        decoders=decoders,
        threads=threads,
        ops=ops,
        versions=job.record["versions"],
        conditional=job.target.storage.conditional,
    )
