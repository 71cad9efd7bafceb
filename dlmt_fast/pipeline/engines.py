"""Who does the shards of a job: this process, worker processes or Ray. The same function does each shard everywhere."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from ..stores.publish import FileOps
from .planned import PlannedJob
from .processes import run_here, run_in_processes
from .ray_engine import run_on_ray
from .summary import Advance
from .worker import JobContext, ShardDuty, ShardResult, Task


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
    workers = options.workers or 1
    # Reading and writing whole arrays takes less time than starting processes.
    processes = min(workers, count) if job.source.named or job.form.named else 1
    if processes > 1:
        duty = ShardDuty(_context(job, ops, 1, 1), job.owner.root)
        return run_in_processes(duty, tasks, processes, advance, lock)
    duty = ShardDuty(_context(job, ops, workers, None), job.owner.root)
    return run_here(duty.begin(), tasks, advance)


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
