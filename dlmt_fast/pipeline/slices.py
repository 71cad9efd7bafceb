"""Slices: n processes, perhaps on n machines, that share the shards of one job."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ParameterError, UsageError


@dataclass(frozen=True)
class Slice:
    """Number `number`, from 1, of `of` slices. `index in slice` tells whether it does that shard. What belongs to no
    shard, None, is in no slice but the whole: each of several writes it.

    Shards are dealt out in turn, not in runs: a source is sorted by path, so that neighbouring shards cost alike (one
    class, one camera), and runs of them would leave some slices with all of the large images.

    Raises:
        ParameterError: there is no such slice.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of <= 99999:
            raise ParameterError(f"a slice is I/N with 1 <= I <= N <= 99999, got {self}")

    def __contains__(self, shard: object) -> bool:
        if shard is None:
            return self.whole
        return isinstance(shard, int) and shard % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def whole(self) -> bool:
        """Whether it is all of the job."""
        return self.of == 1

    @classmethod
    def parse(cls, text: str) -> Slice:
        """From `I/N`.

        Raises:
            UsageError: it is not of that form. ParameterError: there is no such slice.
        """
        found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
        if not found:
            raise UsageError(f"--shard takes I/N, for example 3/16 for the third of sixteen slices, got {text!r}")
        return cls(int(found[1]), int(found[2]))


WHOLE = Slice()
