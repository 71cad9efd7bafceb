"""Sets of names as short digests, in a temporary file once they are many: memory does not grow with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .scratch import Scratch

Digests: TypeAlias = NDArray[np.uint64]

_RUN = 1 << 14  # digests in memory at once: 0.1 MB
_PARTS = 64  # by value: at 10^8 names a part has 12 MB
_BLOCK = 512  # digests read to look one up


def digest64(name: str) -> int:
    """The first 64 bits of a name's SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "little")


def repeated(names: Iterable[str]) -> DigestSet:
    """The `digest64` of every name that occurs twice; a chance collision of digests is among them too."""
    spool = Spool(map(digest64, names))
    parts = (np.sort(part) for part in spool.parts())
    return DigestSet(np.unique(part[1:][part[1:] == part[:-1]]) for part in parts)


def distinct(names: Iterable[str]) -> DigestSet:
    """The `digest64` of every name."""
    return DigestSet(np.unique(part) for part in Spool(map(digest64, names)).parts())


class Spool:
    """Digests, given back in parts: all that are equal are in the same part, and every part is above those before."""

    def __init__(self, digests: Iterator[int]) -> None:
        self._file = Scratch()
        self._bounds: list[NDArray[np.int64]] = []  # of each run in the file, where its parts begin and end
        self._run = _take(digests)
        while len(self._run) == _RUN:
            self._write()
            self._run = _take(digests)
        if self._bounds:
            self._write()

    def parts(self) -> Iterator[Digests]:
        """All digests; in a part they come in no order."""
        if not self._bounds:
            yield self._run
            return
        for part in range(_PARTS):
            slices = (_read(self._file, int(bounds[part]), int(bounds[part + 1])) for bounds in self._bounds)
            yield np.concatenate(list(slices))

    def _write(self) -> None:
        ordered = np.sort(self._run)
        starts = np.searchsorted(ordered, _BOUNDS)
        self._bounds.append(np.append(starts, len(ordered)) + self._file.size // ordered.itemsize)
        self._file.append(ordered.tobytes())


class DigestSet:
    """A set that is made once, from digests that come in order."""

    def __init__(self, parts: Iterable[Digests]) -> None:
        self._file = Scratch()
        self._tail = np.empty(0, np.uint64)
        firsts = [self._tail]  # of each block in the file
        for part in parts:
            self._tail = np.concatenate([self._tail, part])
            if len(self._tail) >= _RUN:
                whole = len(self._tail) // _BLOCK * _BLOCK
                self._file.append(self._tail[:whole].tobytes())
                firsts.append(self._tail[:whole:_BLOCK])
                self._tail = self._tail[whole:]
        self._firsts = np.concatenate(firsts)

    def __bool__(self) -> bool:
        return bool(len(self._firsts) or len(self._tail))

    def __contains__(self, digest: int) -> bool:
        value = np.uint64(digest)
        block = int(np.searchsorted(self._firsts, value, side="right")) - 1
        if block >= 0 and _within(_read(self._file, block * _BLOCK, (block + 1) * _BLOCK), value):
            return True
        return _within(self._tail, value)


_BOUNDS = np.arange(_PARTS, dtype=np.uint64) * np.uint64((1 << 64) // _PARTS)


def _take(digests: Iterator[int]) -> Digests:
    return np.fromiter(islice(digests, _RUN), np.uint64)


def _read(file: Scratch, start: int, stop: int) -> Digests:
    return np.frombuffer(file.read(8 * start, 8 * (stop - start)), np.uint64)


def _within(ordered: Digests, value: np.uint64) -> bool:
    place = int(np.searchsorted(ordered, value))
    return place < len(ordered) and ordered[place] == value
