"""A file of one array: a preallocated temporary, written from its start to its end and read back, no file under its
name before it is whole.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from ..errors import StoreError
from .contract import Allow, Array, Published, anyway
from .gzipped import pack
from .publish import OS, FileOps, temporary_name
from .streamed import StreamedFile

_PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class ArrayFile:
    """How images lie in a file: `header`, then `count` images of `item_bytes` each.

    Attributes:
        dtype: as the values lie in the file, byte order included.
        channels_last: an image lies there as (H, W, C).
        gzip_level: the file is compressed in a final pass; None: it is not.
    """

    header: bytes
    dtype: np.dtype[Any]
    count: int
    item_bytes: int
    channels_last: bool = False
    gzip_level: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the whole file, before it is compressed."""
        return self.offset(self.count)

    def offset(self, position: int) -> int:
        """Where the image of that place in the array begins."""
        return len(self.header) + position * self.item_bytes

    def encode(self, images: Array) -> memoryview:
        """The bytes of images (n, C, H, W)."""
        ordered = images.transpose(0, 2, 3, 1) if self.channels_last else images
        return np.ascontiguousarray(ordered.astype(self.dtype, copy=False)).data.cast("B")


class SlicedWriter:
    """Writes one such file from its start to its end, as shard `shard`."""

    def __init__(self, root: Path, store_id: str, shard: int, name: str, file: ArrayFile, ops: FileOps = OS) -> None:
        self._root, self._name, self._file, self._ops = root, name, file, ops
        self._temporaries = [root / temporary_name(store_id, shard), root / temporary_name(store_id, shard)]
        self._renamed: Path | None = None
        self._written, self._crc = 0, isal_zlib.crc32(file.header)
        self._descriptor: int | None = ops.create(self._temporaries[0])
        try:
            ops.write(self._descriptor, file.header)
            ops.allocate(self._descriptor, file.size)  # the place to write at stays
        except BaseException:
            self.abort()
            raise

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None:
        """Images (n, C, H, W) at `positions`, which follow those before."""
        assert self._descriptor is not None
        if positions[0] != self._written:
            raise StoreError(f"{self._name}: images came for places {positions}, and {self._written} is the next")
        data = self._file.encode(images)
        self._ops.write(self._descriptor, data)
        self._crc = isal_zlib.crc32(data, self._crc)
        self._written += len(images)

    def publish(self, allow: Allow = anyway) -> Published:
        assert self._descriptor is not None
        if self._written != self._file.count:
            raise StoreError(f"{self._name}: {self._written} of {self._file.count} images came to be written")
        if self._file.gzip_level is None:
            self._ops.fsync(self._descriptor)
        self._close()
        whole, packed = self._temporaries
        if self._file.gzip_level is None:
            size, digest = self._file.size, self._digest()
        else:
            size, digest = pack_file(self._compared(), packed, self._file.gzip_level, self._ops)
            self._ops.unlink(whole)
            whole = packed
        published = Published(self._name, self._file.count, size, digest)
        allow(published)
        self._ops.rename(whole, self._root / self._name)
        self._renamed = self._root / self._name
        self._ops.fsync_directory(self._root)
        return published

    def abort(self) -> None:
        try:
            self._close()
        finally:
            for path in (*self._temporaries, *([self._renamed] if self._renamed else [])):
                self._ops.unlink(path)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for piece in self._compared():
            digest.update(piece)
        return digest.hexdigest()

    def _compared(self) -> Iterator[bytes]:
        """The content, piece by piece.

        Raises:
            OSError: what is read is not what was written.
        """
        path, crc = self._temporaries[0], 0
        for piece in pieces_of(path):
            crc = isal_zlib.crc32(piece, crc)
            yield piece
        if crc != self._crc:
            raise OSError(errno.EIO, "the file is not on the disk as it was written", str(path))

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            self._ops.close(descriptor)


def pieces_of(path: Path) -> Iterable[bytes]:
    """The content of a file, piece by piece."""
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def pack_file(pieces: Iterable[bytes], path: Path, level: int, ops: FileOps) -> tuple[int, str]:
    """Write the gzip file of `pieces` to a new temporary, synced; gives its size and SHA-256."""
    packed = StreamedFile(path, ops)
    try:
        pack(pieces, packed.write, level)
        packed.finish()
    except BaseException:
        packed.discard()
        raise
    return packed.size, packed.sha256
