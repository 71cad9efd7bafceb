"""Work on a shard that is tried again: what it told of its progress is taken back first."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeVar

from ..stores.attempts import retried
from .summary import Advance, Tally

T = TypeVar("T")


def persistently(work: Callable[[int, Advance], T], advance: Advance) -> T:
    """Do some work, given the number of the attempt, from 1; see `retried`."""
    tally, attempts = Tally(advance), count(1)
    return retried(lambda: work(next(attempts), tally), tally.take_back)
