"""Threads that read, decode and write files. A process keeps them: new ones for each shard leave memory behind."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

_pools: dict[tuple[int, str, int], ThreadPoolExecutor] = {}


def kept_threads(purpose: str, count: int) -> ThreadPoolExecutor:
    """The `count` threads of this process for a purpose, started when they are first needed."""
    which = os.getpid(), purpose, count  # a forked process has none of its parent's threads
    if which not in _pools:
        _pools[which] = ThreadPoolExecutor(count, f"dlmt-{purpose}")
    return _pools[which]
