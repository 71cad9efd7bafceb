"""How the C library's malloc shares memory among threads."""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8  # of glibc's malloc.h


def few_arenas() -> None:
    """Have glibc keep to two arenas in this process; elsewhere nothing is done, and nothing has to be.

    Else every thread that reads or writes files gets an arena of its own, which grows for a hundred shards and is given
    back never: 7 % of a job's memory at 100,000 images, against 3 % (`benchmarks/memory.py`). For processes that are
    a job's own, that is the command and its workers: it is not a library's to change in somebody else's.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
