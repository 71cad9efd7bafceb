"""MNIST's IDX files, a file a shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import ParameterError, StoreDamagedError
from ...stores import idx_format
from ...stores.contract import Published, ShardSpec, ShardWriter
from ...stores.manifest import Manifest
from ...stores.sliced import ArrayFile
from .contract import Contents, OneFile, Place, StoredBatch, check_published, check_shape, sliced_writer

_DTYPES = ("uint8", "int32", "float32")
_PLAIN_GZIP_LEVEL = 6  # decrypted images do shrink, and are the owner's


class IdxFormat(OneFile):
    """See `contract.StoredFormat`."""

    kind = "idx"
    named = folders = labelled = False

    def check(self, dtype: str) -> None:
        if dtype not in _DTYPES:
            raise ParameterError(f"IDX files hold uint8, int32 or float32, not {dtype}; choose one with --dtype")

    def suffix(self, dtype: str) -> str:
        return ""

    def shard_name(self, shard: ShardSpec, base: str) -> str:
        return base

    def labels_name(self, shard: str) -> str | None:
        return None

    def writer(self, place: Place, shard: ShardSpec, contents: Contents) -> ShardWriter:
        return sliced_writer(place, shard.index, shard.name, self.array_file(shard, contents))

    def array_file(self, shard: ShardSpec, contents: Contents) -> ArrayFile:
        return idx_format.idx_file(shard.name, contents.dtype, contents.array)

    def open(self, root: Path, shard: Published, manifest: Manifest) -> IdxShard:
        return IdxShard(root, shard, manifest)


class IdxShard:
    """One IDX file, whose bytes and sizes (N, H, W) are what the manifest says.

    Raises:
        StoreDamagedError: they are not.
    """

    def __init__(self, root: Path, shard: Published, manifest: Manifest) -> None:
        self._path, self._dtype = root / shard.name, np.dtype(manifest.dtype)
        check_published(self._path, shard)
        self._header = header = idx_format.checked_header(self._path)
        if header.dtype.newbyteorder("=") != self._dtype or header.sizes[0] != shard.count:
            raise StoreDamagedError(
                f"{self._path} holds {header.sizes[0]} images of {header.dtype}, not as its manifest says"
            )
        check_shape((1, *header.sizes[1:]), manifest, self._path)

    def read(self) -> Iterator[StoredBatch]:
        for start, values in idx_format.read_slices(self._path, self._header):
            yield StoredBatch(start, [""] * len(values), values.astype(self._dtype, copy=False))

    def plain_file(self, name: str) -> ArrayFile:
        return idx_format.idx_file(name, "uint8", self._header.sizes, _PLAIN_GZIP_LEVEL)

    def plain_writer(self, place: Place, index: int, name: str) -> ShardWriter:
        return sliced_writer(place, index, name, self.plain_file(name))
