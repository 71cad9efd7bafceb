"""Writes one object of a Zarr array, which is a whole Zarr shard. What makes objects an array, its metadata, is
published by others when all of them are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import StoreError
from .contract import Allow, Array, Published, anyway
from .publish import OS, FileOps, make_directories, temporary_name
from .streamed import StreamedFile
from .zarr_format import ArrayPlan, encode_chunk, encode_index


class ZarrWriter:
    """Writes `count` images, all that the object `name` will have."""

    def __init__(
        self, root: Path, store_id: str, shard: int, name: str, plan: ArrayPlan, count: int, ops: FileOps = OS
    ) -> None:
        self._path, self._name, self._plan, self._count, self._ops = root / name, name, plan, count, ops
        self._dtype = np.dtype(plan.dtype).newbyteorder("<")
        self._written = 0
        self._pending: list[Array] = []  # of the chunk to come
        self._sizes: list[int] = []
        self._renamed = False
        make_directories(self._path.parent, ops)
        self._file = StreamedFile(self._path.with_name(temporary_name(store_id, shard)), ops)

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None:
        """Append images (n, C, H, W). Labels are another array, which others write."""
        for image in images:
            self._pending.append(image)
            if len(self._pending) == self._plan.chunk_rows:
                self._write_chunk()
        self._written += len(images)

    def publish(self, allow: Allow = anyway) -> Published:
        if self._written != self._count:
            raise StoreError(f"{self._name}: {self._written} of {self._count} images came, and an array has no gaps")
        if self._pending:  # the array's last chunk: what no image fills is the fill value
            blank = np.zeros_like(self._pending[0])
            self._pending += [blank] * (self._plan.chunk_rows - len(self._pending))
            self._write_chunk()
        self._file.write(encode_index(self._sizes, self._plan.object_rows // self._plan.chunk_rows))
        self._file.finish()
        published = Published(self._name, self._count, self._file.size, self._file.sha256)
        allow(published)
        self._ops.rename(self._file.path, self._path)
        self._renamed = True
        self._ops.fsync_directory(self._path.parent)
        return published

    def abort(self) -> None:
        try:
            self._file.discard()
        finally:
            if self._renamed:
                self._ops.unlink(self._path)

    def _write_chunk(self) -> None:
        data = encode_chunk(np.stack(self._pending).astype(self._dtype, copy=False).tobytes())
        self._file.write(data)
        self._sizes.append(len(data))
        self._pending = []
