"""Where shards are worked on: in this process, or in spawned workers, a shard at a time each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, reduction, resource_tracker
from pathlib import Path
from typing import Any

from ..errors import DlmtError, StoreError
from .arenas import few_arenas
from .owner import OwnerFolder
from .seal import StoreSeal
from .summary import Advance, Tally
from .worker import Entries, JobContext, ShardResult, ShardWork, Task, clear_shard

_DEATHS = 3  # of workers over one shard, then the job fails


def run_here(
    job: JobContext, owner: OwnerFolder, tasks: Iterator[Task], advance: Advance
) -> Generator[tuple[Task, ShardResult], None, None]:
    """Do the tasks one after the other."""
    work = ShardWork(job, Entries(owner))
    for task in tasks:
        yield task, work.make(task, advance).result


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait for the end of the block, so that no process is left half-started, and a process that is started in
    it is deaf to Ctrl-C from its first instruction on."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    heard: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:  # the mask alone would not do: another thread of this process may take the signal
        signal.signal(number, lambda number, frame: heard.append(number))
    resource_tracker.ensure_running()  # starting a process does this first, and would end the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in heard:
            signal.raise_signal(each)


class _Lock:
    """The descriptor of the job's lock, handed to a worker: while one lives, no other attempt begins."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _inherited, (reduction.DupFd(self.descriptor),)


def _inherited(duplicate: Any) -> _Lock:
    return _Lock(duplicate.detach())


@dataclass
class _Worker:
    process: Any
    pipe: connection.Connection
    tally: Tally
    task: Task | None = None


def run_in_processes(
    job: JobContext, owner: OwnerFolder, tasks: Iterator[Task], processes: int, advance: Advance, lock: int
) -> Generator[tuple[Task, ShardResult], None, None]:
    """Do the tasks in `processes` workers. One that is killed is replaced and its shard done again, some times.

    The key reaches a worker in the pipe that starts it, never on a command line or in the environment.

    Raises:
        StoreError: workers died over one shard again and again. What a worker raised is raised here.
    """
    context = multiprocessing.get_context("spawn")
    deaths: dict[int, int] = {}
    again: list[Task] = []
    workers: list[_Worker] = []

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, job, owner.root, _Lock(lock)), daemon=True)
        with _undisturbed():
            process.start()
        theirs.close()
        return _Worker(process, ours, Tally(advance))

    def give(worker: _Worker) -> None:
        worker.task, worker.tally = (again.pop() if again else next(tasks, None)), Tally(advance)
        with suppress(OSError):  # it is dead, which the pipe tells below
            worker.pipe.send(worker.task)

    try:
        for _ in range(processes):
            workers.append(start())
            give(workers[-1])
        while busy := {worker.pipe: worker for worker in workers if worker.task is not None}:
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                task = worker.task
                assert task is not None
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    _bury(worker, task, job, owner, deaths)
                    again.append(task)
                    workers[workers.index(worker)] = fresh = start()
                    give(fresh)
                    continue
                if kind == "advance":
                    worker.tally(*value)
                elif kind == "failed":
                    raise value
                else:
                    give(worker)
                    yield task, value
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _bury(worker: _Worker, task: Task, job: JobContext, owner: OwnerFolder, deaths: dict[int, int]) -> None:
    """Take back what a dead worker had begun, unless this has happened too often."""
    worker.process.join()
    worker.pipe.close()
    worker.tally.take_back()
    index = task.shard.index
    deaths[index] = deaths.get(index, 0) + 1
    if deaths[index] >= _DEATHS:
        code = worker.process.exitcode
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise StoreError(
            f"shard {index} ended {_DEATHS} workers, the last {how}; signal 9 is most often too little memory: "
            "fewer --workers or a smaller --shard-size need less"
        )
    clear_shard(job, task)
    owner.sweep({index})


def _serve(pipe: connection.Connection, job: JobContext, owner: Path, lock: _Lock) -> None:
    """A worker: does tasks until the pipe ends. Ctrl-C is the parent's to handle; its end is this process's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    few_arenas()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    work = ShardWork(job, Entries(OwnerFolder(owner, StoreSeal(job.key, job.store_id), job.ops)))

    def advance(samples: int, size: int = 0, refused: int = 0) -> None:
        pipe.send(("advance", (samples, size, refused)))

    while (task := pipe.recv()) is not None:
        try:
            result = work.make(task, advance).result
        except (DlmtError, OSError) as error:
            pipe.send(("failed", error))
        else:
            pipe.send(("done", result))


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
