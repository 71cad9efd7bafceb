"""Which of many contents are equal, found by their digests: on disk, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .scratch import Scratch

DIGEST = 32  # bytes: long enough for equal digests to be equal contents

_PARTS = 64  # by digest, then by place: at 10^8 contents a part has 63 MB
_RECORD = np.dtype([("digest", "<u8", DIGEST // 8), ("index", "<u8")])

Numbers: TypeAlias = NDArray[np.integer[Any]]


class Equal(NamedTuple):
    """`content` is equal to an earlier one, `first`; `place` is where it is to be listed."""

    place: int
    content: int
    first: int


class Contents:
    """Digests with names, added in ascending order of their indices; some may be left out.

    Attributes:
        count: the least index that can be added.
    """

    def __init__(self) -> None:
        self._parts = [Scratch() for _ in range(_PARTS)]
        self._names, self._ends = Scratch(), Scratch()
        self.count = 0

    def add(self, index: int, digest: bytes, name: str) -> None:
        """Take in a content by its digest of `DIGEST` bytes."""
        self._parts[digest[0] * _PARTS // 256].append(digest + index.to_bytes(8, "little"))
        while self.count < index:
            self._append_name("")
        self._append_name(name)

    def _append_name(self, name: str) -> None:
        self._names.append(name.encode("utf-8"))
        self._ends.append(self._names.size.to_bytes(8, "little"))
        self.count += 1

    def name(self, index: int) -> str:
        """The name of a content."""
        start = int.from_bytes(self._ends.read(8 * index - 8, 8), "little") if index else 0
        end = int.from_bytes(self._ends.read(8 * index, 8), "little")
        return self._names.read(start, end - start).decode("utf-8")

    def repeated(
        self, places: int, place_of: Callable[[Numbers], Numbers] = lambda indices: indices
    ) -> Iterator[Equal]:
        """Every content that is equal to an earlier one, in the order of their places.

        Args:
            places: how many there are.
            place_of: from indices to places.
        """
        parts = [Scratch() for _ in range(_PARTS)]
        for part in self._parts:
            for place, index, first in _repeated(part, place_of):
                record = np.array([place, index, first], "<u8")
                parts[int(place) * _PARTS // places].append(record.tobytes())
        for part in parts:
            found = np.frombuffer(part.read(0, part.size), "<u8").reshape(-1, 3)
            for place, index, first in found[np.argsort(found[:, 0])].tolist():
                yield Equal(place, index, first)


def _repeated(part: Scratch, place_of: Callable[[Numbers], Numbers]) -> Iterator[Any]:
    """(place, index, first index) of each content in a part that is equal to an earlier one there."""
    records = np.frombuffer(part.read(0, part.size), _RECORD)
    digests, indices = records["digest"], records["index"]
    order = np.lexsort((indices, *digests.T))
    digests, indices = digests[order], indices[order]
    same = np.append(False, (digests[1:] == digests[:-1]).all(axis=1))[: len(indices)]
    run = np.maximum.accumulate(np.where(same, 0, np.arange(len(indices))))  # where each run of equal ones begins
    again = indices[same]
    return zip(place_of(again), again, indices[run][same], strict=True)
