"""Samples of arrays that are read in any order, not from start to end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreDamagedError, StoreError
from .contract import Array, Batch, Refused
from .location import is_remote

_BATCH_BYTES = 1 << 20


class Arrays(Protocol):
    """A source of arrays that can be asked for single samples."""

    def path_of(self, index: int) -> str: ...
    def label_of(self, index: int) -> int | None: ...

    def find(self, index: int) -> tuple[int, int]:
        """(the array that holds a sample, the index of that array's first sample)."""
        ...

    def array_shape(self, shard: int) -> tuple[int, ...]: ...

    def check(self, shard: int) -> None:
        """Refuse an array whose files changed since they were listed.

        Raises:
            StoreError: they did.
        """
        ...

    def gather(self, shard: int, places: NDArray[np.int64]) -> Array:
        """The images (n, C, H, W) at these places of an array, in this order."""
        ...


class ScatteredSamples:
    """Reads samples of `arrays` in the order that they are asked for."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._checked: set[int] = set()

    def path_of(self, index: int) -> str:
        return self._arrays.path_of(index)

    def label_of(self, index: int) -> int | None:
        return self._arrays.label_of(index)

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """A few megabytes at a time."""
        for (shard, first), run in groupby(indices, key=self._arrays.find):
            if shard not in self._checked:  # not at every call: an array may have very many files
                self._arrays.check(shard)
                self._checked.add(shard)
            samples = list(run)
            step = max(1, _BATCH_BYTES // int(np.prod(self._arrays.array_shape(shard)[1:], dtype=object)))
            for start in range(0, len(samples), step):
                some = samples[start : start + step]
                yield Batch(some, self._arrays.gather(shard, np.array(some, np.int64) - first))


def refuse_remote(root: Path) -> None:
    """Refuse a remote array, which would be asked for each image by itself.

    Raises:
        StoreError: that.
    """
    if is_remote(root):
        raise StoreError(f"{root} is remote: reading its images in a random order would ask for each; copy it first")


def gather_items(path: Path, data_start: int, shape: tuple[int, ...], places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Items of `shape` bytes that lie one behind the other in a file, at these places.

    Raises:
        StoreDamagedError: the file ends before one.
    """
    found = np.empty((len(places), *shape), np.uint8)
    size = found[0].nbytes if len(places) else 0
    with open(path, "rb", buffering=0) as file:
        for number in np.argsort(places):  # from start to end is how disks like it
            data = os.pread(file.fileno(), size, data_start + int(places[number]) * size)
            if len(data) != size:
                raise StoreDamagedError(f"{path} was cut while it was read")
            found[number] = np.frombuffer(data, np.uint8).reshape(shape)
    return found
