"""Where the tasks of a job are done: in this process, or in spawned workers, one at a time each. What a task is and
what is done with it, its `Duty` tells.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, reduction, resource_tracker
from typing import Any, Generic, Protocol, TypeVar

from ..errors import DlmtError, StoreError
from .arenas import few_arenas
from .summary import Advance, Tally

_DEATHS = 3  # of workers over one task, then the job fails


class Named(Protocol):
    """A task; it pickles.

    Attributes:
        title: what it is called in messages, such as "shard 7"; no two of a job have the same.
    """

    @property
    def title(self) -> str: ...


T = TypeVar("T", bound=Named)
T_contra = TypeVar("T_contra", bound=Named, contravariant=True)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Duty(Protocol[T_contra, R_co]):
    """What is done with the tasks of a job. It may hold the key: it pickles only while a worker is started.

    Attributes:
        advice: what the user can do where a worker's memory does not suffice.
    """

    @property
    def advice(self) -> str: ...

    def begin(self) -> Callable[[T_contra, Advance], R_co]:
        """Called once in the process that does the tasks; what it gives does one."""
        ...

    def clear(self, task: T_contra) -> None:
        """Remove what a worker that died over the task left half-done; others are at work meanwhile."""
        ...


class Agenda(Protocol[T]):
    """What is to be done, in which order."""

    def take(self) -> T | None:
        """The next task that can be begun; None where others have to end first, or none is left."""
        ...

    def done(self, task: T) -> None:
        """It was done."""
        ...


class InTurn(Generic[T]):
    """Tasks that wait for nothing, as they come."""

    def __init__(self, tasks: Iterator[T]) -> None:
        self._tasks = tasks

    def take(self) -> T | None:
        return next(self._tasks, None)

    def done(self, task: T) -> None:
        """Nothing waits for it."""


def run_here(do: Callable[[T, Advance], R], tasks: Iterator[T], advance: Advance) -> Generator[tuple[T, R], None, None]:
    """Do the tasks one after the other."""
    for task in tasks:
        yield task, do(task, advance)


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
class _Worker(Generic[T]):
    process: Any
    pipe: connection.Connection
    tally: Tally
    task: T | None = None


def run_in_processes(
    duty: Duty[T, R], agenda: Agenda[T], processes: int, advance: Advance, lock: int
) -> Generator[tuple[T, R], None, None]:
    """Do the tasks in `processes` workers. One that is killed is replaced and its task done again, some times.

    The key reaches a worker in the pipe that starts it, never on a command line or in the environment.

    Args:
        lock: the descriptor of the job's lock, which the workers inherit.

    Raises:
        StoreError: workers died over one task again and again. What a worker raised is raised here.
    """
    context = multiprocessing.get_context("spawn")
    deaths: dict[str, int] = {}
    again: list[T] = []
    workers: list[_Worker[T]] = []

    def start() -> _Worker[T]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, duty, _Lock(lock)), daemon=True)
        with _undisturbed():
            process.start()
        theirs.close()
        return _Worker(process, ours, Tally(advance))

    def give(worker: _Worker[T]) -> None:
        worker.task, worker.tally = (again.pop() if again else agenda.take()), Tally(advance)
        if worker.task is not None:
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
                    _bury(worker, task, duty, deaths)
                    again.append(task)
                    workers[workers.index(worker)] = fresh = start()
                    give(fresh)
                    continue
                if kind == "advance":
                    worker.tally(*value)
                elif kind == "failed":
                    raise value
                else:
                    worker.task = None
                    agenda.done(task)
                    for idle in workers:
                        if idle.task is None:
                            give(idle)
                    yield task, value
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _bury(worker: _Worker[T], task: T, duty: Duty[T, R], deaths: dict[str, int]) -> None:
    """Take back what a dead worker had begun, unless this has happened too often."""
    worker.process.join()
    worker.pipe.close()
    worker.tally.take_back()
    deaths[task.title] = deaths.get(task.title, 0) + 1
    if deaths[task.title] >= _DEATHS:
        code = worker.process.exitcode
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise StoreError(
            f"{task.title} ended {_DEATHS} workers, the last {how}; signal 9 is most often too little memory: "
            f"{duty.advice}"
        )
    duty.clear(task)


def _serve(pipe: connection.Connection, duty: Duty[Any, Any], lock: _Lock) -> None:
    """A worker: does tasks until it is ended. Ctrl-C is the parent's to handle; its end is this process's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    few_arenas()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        do = duty.begin()
    except (DlmtError, OSError) as error:
        failed: Exception | None = error
    else:
        failed = None

    def advance(samples: int, size: int = 0, refused: int = 0) -> None:
        pipe.send(("advance", (samples, size, refused)))

    while True:
        task = pipe.recv()
        try:
            if failed is not None:
                raise failed
            result = do(task, advance)
        except (DlmtError, OSError) as error:
            pipe.send(("failed", error))
        else:
            pipe.send(("done", result))


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
