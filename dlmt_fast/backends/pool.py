"""The package's own threads: slices of one call, spread over a few threads that outlive the call.

A forked child has none of its parent's threads, so it gets a pool of its own; and where no thread can be had (while
the interpreter shuts down) the calling thread does everything.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def run(tasks: Sequence[Callable[[], T]], threads: int) -> list[T]:
    """The results of `tasks`, done by at most `threads` threads, the calling one among them.

    Returns, or raises what a task raised, only when no task runs any more: tasks write to their caller's memory.
    """
    if len(tasks) == 1 or threads == 1:
        return [task() for task in tasks]
    waiting = deque(enumerate(tasks))
    done: SimpleQueue[tuple[int, T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                index, task = waiting.popleft()
            except IndexError:
                return
            try:
                done.put((index, task(), None))
            except BaseException as error:  # noqa: BLE001 - raised again on the calling thread
                done.put((index, None, error))

    _lend(work, min(threads, len(tasks)) - 1)
    work()
    results = {}
    for index, result, error in [done.get() for _ in tasks]:
        if error is not None:
            raise error
        results[index] = result
    return [results[index] for index in range(len(tasks))]  # type: ignore[misc]


def _lend(work: Callable[[], None], count: int) -> None:
    """Lets up to `count` threads of the pool run `work`, or none. Whoever comes late finds nothing left to do."""
    global _pool
    try:
        with _lock:
            if _pool is None:
                _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="dlmt")
            pool = _pool
        for _ in range(count):
            pool.submit(work)
    except RuntimeError:  # the interpreter shuts down, or the system gives no more threads
        return


def _forget() -> None:
    """In a forked child: the pool has no threads here, and another thread may have held the lock."""
    global _lock, _pool
    _lock = threading.Lock()
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
