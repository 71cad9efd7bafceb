"""Arrays in .npy files, a file a shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import StoreDamagedError
from ...stores import npy_arrays
from ...stores.axes import image_shape
from ...stores.contract import Published, ShardSpec, ShardWriter
from ...stores.manifest import Manifest
from ...stores.sliced import ArrayFile
from .contract import Contents, OneFile, Place, StoredBatch, check_published, check_shape, sliced_writer


class NpyFormat(OneFile):
    """See `contract.StoredFormat`."""

    kind = "npy"
    named = folders = labelled = False

    def check(self, dtype: str) -> None:
        """A .npy file holds any dtype."""

    def suffix(self, dtype: str) -> str:
        return ""

    def shard_name(self, shard: ShardSpec, base: str) -> str:
        return base if base.endswith(".npy") else f"{base}.npy"

    def labels_name(self, shard: str) -> str | None:
        return npy_arrays.labels_name(shard)

    def writer(self, place: Place, shard: ShardSpec, contents: Contents) -> ShardWriter:
        return sliced_writer(place, shard.index, shard.name, self.array_file(shard, contents))

    def array_file(self, shard: ShardSpec, contents: Contents) -> ArrayFile:
        return npy_arrays.npy_file(shard.name, contents.dtype, contents.array)

    def open(self, root: Path, shard: Published, manifest: Manifest) -> NpyShard:
        return NpyShard(root, shard, manifest)


class NpyShard:
    """One .npy file, whose bytes, type and shape are what the manifest says.

    Raises:
        StoreDamagedError: they are not.
    """

    def __init__(self, root: Path, shard: Published, manifest: Manifest) -> None:
        self._path, self._dtype = root / shard.name, np.dtype(manifest.dtype)
        check_published(self._path, shard)
        self._header = header = npy_arrays.read_array_header(self._path)
        if header.dtype != self._dtype or header.shape[:1] != (shard.count,):
            raise StoreDamagedError(
                f"{self._path} holds an array {header.shape} of {header.dtype}, not as its manifest says"
            )
        check_shape(image_shape(header.shape, self._path), manifest, self._path)

    def read(self) -> Iterator[StoredBatch]:
        for start, values in npy_arrays.read_slices(self._path, self._header, range(self._header.shape[0])):
            yield StoredBatch(start, [""] * len(values), values.astype(self._dtype, copy=False))

    def plain_file(self, name: str) -> ArrayFile:
        return npy_arrays.npy_file(name, "uint8", self._header.shape)

    def plain_writer(self, place: Place, index: int, name: str) -> ShardWriter:
        return sliced_writer(place, index, name, self.plain_file(name))
