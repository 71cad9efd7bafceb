"""A file of one array: a preallocated temporary, slices at fixed offsets, no file under its name before it is whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from .contract import Array, Published
from .publish import OS, FileOps, file_digest, temporary_name


class SlicedWriter:
    """Writes `header`, then `count` images of `item_bytes` each.

    Args:
        dtype: as the values lie in the file, byte order included.
    """

    def __init__(
        self,
        root: Path,
        store_id: str,
        shard: int,
        name: str,
        header: bytes,
        dtype: np.dtype[Any],
        count: int,
        item_bytes: int,
        ops: FileOps = OS,
    ) -> None:
        self._root, self._store_id, self._shard, self._name, self._ops = root, store_id, shard, name, ops
        self._dtype, self._count, self._item_bytes, self._data_start = dtype, count, item_bytes, len(header)
        self._temporaries = [root / temporary_name(store_id, shard)]
        self._renamed: Path | None = None
        self._written = 0
        self._descriptor: int | None = ops.create(self._temporaries[0])
        try:
            self._write_at(0, header)
            ops.truncate(self._descriptor, self._data_start + count * item_bytes)
        except BaseException:
            self.abort()
            raise

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None:
        """Values at `positions`, a run of consecutive places within the shard; they lie in the file as in `images`."""
        values = np.ascontiguousarray(images.astype(self._dtype, copy=False))
        self._write_at(self._data_start + positions[0] * self._item_bytes, values.data.cast("B"))
        self._written += len(values)

    def publish(self) -> Published:
        assert self._descriptor is not None
        if self._written != self._count:
            raise StoreError(f"{self._name}: {self._written} of {self._count} images came to be written")
        self._complete()
        self._ops.fsync(self._descriptor)
        self._close()
        size, digest = file_digest(self._temporaries[-1])
        self._ops.rename(self._temporaries[-1], self._root / self._name)
        self._renamed = self._root / self._name
        self._ops.fsync_directory(self._root)
        return Published(self._name, self._count, size, digest)

    def abort(self) -> None:
        try:
            self._close()
        finally:
            for path in (*self._temporaries, *([self._renamed] if self._renamed else [])):
                self._ops.unlink(path)

    def _complete(self) -> None:
        """What remains to be done when all values are written; `_next_temporary` may replace the file."""

    def _next_temporary(self) -> tuple[int, int]:
        """Begin another temporary, which will be published; gives the descriptors of the one before, to be closed by
        the caller, and of the new one."""
        assert self._descriptor is not None
        self._temporaries.append(self._root / temporary_name(self._store_id, self._shard))
        before, self._descriptor = self._descriptor, self._ops.create(self._temporaries[-1])
        return before, self._descriptor

    def _write_at(self, offset: int, data: bytes | memoryview) -> None:
        assert self._descriptor is not None
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        self._ops.write(self._descriptor, data)

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            self._ops.close(descriptor)
