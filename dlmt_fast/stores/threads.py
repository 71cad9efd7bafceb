"""Threads that read, decode and write files. A process keeps them: new ones for each shard leave memory behind."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_pools: dict[tuple[int, str, int], ThreadPoolExecutor] = {}


def threads(purpose: str, count: int) -> ThreadPoolExecutor:
    """The `count` threads of this process for a purpose, started when they are first needed."""
    which = os.getpid(), purpose, count  # a forked process has none of its parent's threads
    if which not in _pools:
        _pools[which] = ThreadPoolExecutor(count, f"dlmt-{purpose}")
    return _pools[which]


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """The results of `work` on each item, in order; at most `ahead` items are taken before theirs is asked for.

    When it is closed, or a result raises, nothing works on.
    """
    left, pending = iter(items), deque[Future[R]]()
    try:
        pending.extend(pool.submit(work, item) for item in islice(left, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(left, 1))
            yield result
    finally:
        wait([future for future in pending if not future.cancel()])
