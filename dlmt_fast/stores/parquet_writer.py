"""One Parquet file of images, written so that its bytes and its size depend on the images' shapes and pixels alone:
nothing is compressed, there are no dictionaries, no statistics, no Arrow schema and no paths.

uint8 images are PNG files of stored blocks, which `datasets` shows as images. Other dtypes are .npy files in the same
column, for `numpy.load(io.BytesIO(row["image"]["bytes"]))`: three nested lists a row (`Array3D`) would cost levels for
every value and could not hold images of several sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from .contract import Allow, Array, Kept, Published, Value, anyway
from .npy import encode_npy
from .parquet_format import METADATA_KEY, features, library
from .png import encode_png
from .publish import OS, FileOps, temporary_name
from .streamed import StreamedFile

GROUP_ROWS = 100  # of a row group, which a reader loads at once
GROUP_BYTES = 32 << 20


class _Sink:
    """A streamed file as pyarrow's output. When it is dead, what pyarrow still writes goes nowhere."""

    closed = False

    def __init__(self, file: StreamedFile) -> None:
        self._file, self.dead = file, False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if not self.dead:
            self._file.write(view)
        return view.nbytes

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The file is finished or discarded by its owner."""


class ParquetWriter:
    """Writes one shard as one file.

    Args:
        labels: whether each image comes with an integer, for the column `label`.
        classes: the names of the labels, where they are to be public.
        paths: whether the names go into `image.path`, where there is one; else that is null everywhere.
        kept: columns that pass unchanged.
    """

    def __init__(
        self,
        root: Path,
        store_id: str,
        shard: int,
        name: str,
        dtype: str,
        labels: bool = False,
        classes: Sequence[str] | None = None,
        paths: bool = False,
        ops: FileOps = OS,
        kept: Sequence[Kept] = (),
    ) -> None:
        pa = library()
        self._root, self._name, self._ops, self._dtype = root, name, ops, np.dtype(dtype)
        self._paths = paths
        self._image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
        fields = [pa.field("image", self._image)] + ([pa.field("label", pa.int64())] if labels else [])
        self._kept, self._labelled = tuple(kept), labels
        fields += [pa.field(name, pa.type_for_alias(kind)) for name, kind in self._kept]
        self._schema = pa.schema(fields)
        self._features = features(self._dtype == np.uint8, labels, classes, self._kept)
        self._rows: list[tuple[bytes | bytearray, str | None, int | None]] = []
        self._values: list[Mapping[str, Value]] = []
        self._group_bytes = self._count = 0
        self._renamed: Path | None = None
        self._file = StreamedFile(root / temporary_name(store_id, shard), ops)
        self._sink = _Sink(self._file)
        try:
            self._writer = pa.parquet.ParquetWriter(
                self._sink,
                self._schema,
                version="2.6",
                compression="NONE",
                use_dictionary=False,
                write_statistics=False,
                store_schema=False,
                write_page_checksum=True,
            )
        except BaseException:
            self._file.discard()
            raise

    def write(
        self,
        positions: Sequence[int],
        names: Sequence[str],
        images: Array,
        labels: Sequence[int] | None = None,
        kept: Sequence[Mapping[str, Value]] | None = None,
    ) -> None:
        """Append images (n, C, H, W), in the order of `positions`, with their labels and kept values where the file has
        them."""
        if (labels is not None) != self._labelled:
            raise StoreError(f"{self._name}: some images have labels and some have none")
        encode = encode_png if self._dtype == np.uint8 else encode_npy
        for place, (name, image) in enumerate(zip(names, images, strict=True)):
            data = encode(image)
            self._rows.append(
                (data, (name or None) if self._paths else None, None if labels is None else int(labels[place]))
            )
            self._values.append(kept[place] if kept is not None else {})
            self._group_bytes += len(data)
            if len(self._rows) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
                self._flush()

    def publish(self, allow: Allow = anyway) -> Published:
        self._flush()
        self._writer.add_key_value_metadata({METADATA_KEY: self._features})
        self._writer.close()
        self._file.finish()
        published = Published(self._name, self._count, self._file.size, self._file.sha256)
        allow(published)
        self._ops.rename(self._file.path, self._root / self._name)
        self._renamed = self._root / self._name
        self._ops.fsync_directory(self._root)
        return published

    def abort(self) -> None:
        self._sink.dead = True
        try:
            self._file.discard()
        finally:
            self._writer.close()  # now, not when it is collected
            if self._renamed is not None:
                self._ops.unlink(self._renamed)

    def _flush(self) -> None:
        """Write a row group; its limits depend on the rows alone, not on how they came."""
        if not self._rows:
            return
        pa = library()
        images, paths, labels = zip(*self._rows, strict=True)
        image = pa.StructArray.from_arrays(
            [pa.array(images, pa.binary()), pa.array(paths, pa.string())], fields=list(self._image)
        )
        columns = [image] + ([pa.array(labels, pa.int64())] if self._labelled else [])
        for name, kind in self._kept:
            columns.append(pa.array([values.get(name) for values in self._values], pa.type_for_alias(kind)))
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(self._rows))
        self._count += len(self._rows)
        self._rows, self._values, self._group_bytes = [], [], 0
