"""Writes whole objects of a Zarr array: temporaries first, then all renames, then a listing, as a folder's shards have.
What makes the objects an array, its metadata, is published by others when all shards are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import StoreError
from .axes import layout_of
from .contract import Array, Published
from .listing import Listed, encode_listing, listing_name
from .publish import OS, FileOps, make_directories, publish_bytes, remove_all, temporary_name, write_temporary
from .streamed import StreamedFile
from .zarr_format import ArrayPlan, encode_chunk, encode_index


class _Object:
    """A Zarr shard that is being written: chunks of images, one after the other, and their index at the end."""

    def __init__(self, file: StreamedFile, plan: ArrayPlan, rows: int) -> None:
        self.file, self._plan, self.left = file, plan, rows
        self._sizes: list[int] = []
        self._rows: list[Array] = []  # of the chunk to come

    def add(self, images: Array) -> None:
        """Images in the order of axes of the array."""
        self.left -= len(images)
        for image in images:
            self._rows.append(image)
            if len(self._rows) == self._plan.chunk_rows:
                self._write_chunk()

    def finish(self) -> None:
        if self._rows:  # the last chunk of the array: what no image fills is the fill value
            blank = np.zeros_like(self._rows[0])
            self._rows += [blank] * (self._plan.chunk_rows - len(self._rows))
            self._write_chunk()
        self.file.write(encode_index(self._sizes, self._plan.object_rows // self._plan.chunk_rows))
        self.file.finish()

    def _write_chunk(self) -> None:
        values = np.stack(self._rows)
        data = encode_chunk(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        self.file.write(data)
        self._sizes.append(len(data))
        self._rows = []


class ZarrWriter:
    """Writes one shard, the images `rows` of an array; the first is the first of an object.

    Args:
        listed: publish a listing of the objects under the shard's name.
    """

    def __init__(
        self,
        root: Path,
        store_id: str,
        shard: int,
        plan: ArrayPlan,
        rows: range,
        ops: FileOps = OS,
        listed: bool = True,
    ) -> None:
        assert rows.start % plan.object_rows == 0, "a shard begins with an object"
        self._root, self._store_id, self._shard, self._ops, self._listed = root, store_id, shard, ops, listed
        self._plan, self._rows, self._next = plan, rows, rows.start
        self._transpose = len(plan.shape) == 4 and layout_of(plan.shape, root / plan.name) == "NHWC"
        self._labels: list[int] = []
        self._object: _Object | None = None
        self._files: dict[str, tuple[Path, int, str]] = {}
        self._renamed: list[Path] = []

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None:
        """Append images (n, C, H, W), with their labels where the array has them."""
        if (labels is not None) != (self._plan.labels is not None):
            raise StoreError(f"{self._plan.name}: some images have labels and some have none")
        values = images.transpose(0, 2, 3, 1) if self._transpose else images
        values = values.reshape(len(images), *self._plan.shape[1:])
        done = 0
        while done < len(values):
            if self._object is None:
                self._begin()
            assert self._object is not None
            count = min(self._object.left, len(values) - done)
            self._object.add(values[done : done + count])
            self._labels += [] if labels is None else map(int, labels[done : done + count])
            done += count
            self._next += count
            if not self._object.left:
                self._end()

    def publish(self) -> Published:
        if self._next != self._rows.stop:
            missing = self._rows.stop - self._next
            raise StoreError(
                f"{self._plan.name}: {missing} of {len(self._rows)} images did not come, and an array has no gaps"
            )
        for name, (temporary, _, _) in self._files.items():
            self._ops.rename(temporary, self._root / name)
            self._renamed.append(self._root / name)
        for folder in sorted({path.parent for path in self._renamed}):
            self._ops.fsync_directory(folder)
        listing = encode_listing(Listed(digest, size, name) for name, (_, size, digest) in self._files.items())
        if self._listed:
            self._renamed.append(self._root / listing_name(self._shard))
            publish_bytes(self._renamed[-1], listing, self._store_id, self._shard, self._ops)
        size = sum(size for _, size, _ in self._files.values())
        return Published(listing_name(self._shard), len(self._rows), size, hashlib.sha256(listing).hexdigest())

    def abort(self) -> None:
        try:
            if self._object is not None:
                self._object.file.discard()
        finally:
            remove_all([temporary for temporary, _, _ in self._files.values()] + self._renamed, self._ops)

    def _begin(self) -> None:
        if self._next >= self._rows.stop:
            raise StoreError(f"{self._plan.name}: more images came than the {len(self._rows)} of its shard")
        number = self._next // self._plan.object_rows
        temporary = self._temporary(self._plan.object_name(number))
        rows = min(self._plan.object_rows, self._rows.stop - self._next)
        self._object = _Object(StreamedFile(temporary, self._ops), self._plan, rows)

    def _end(self) -> None:
        assert self._object is not None
        self._object.finish()
        file, self._object = self._object.file, None
        number = (self._next - 1) // self._plan.object_rows
        self._files[self._plan.object_name(number)] = file.path, file.size, file.sha256
        if self._plan.labels is not None:
            values = np.zeros(self._plan.object_rows, "<i8")
            values[: len(self._labels)] = self._labels
            data, name = encode_chunk(values.tobytes()), self._plan.labels_name(number)
            temporary = self._temporary(name)
            write_temporary(temporary, data, self._ops)
            self._files[name] = temporary, len(data), hashlib.sha256(data).hexdigest()
            self._labels = []

    def _temporary(self, name: str) -> Path:
        folder = (self._root / name).parent
        make_directories(folder, self._ops)
        return folder / temporary_name(self._store_id, self._shard)
