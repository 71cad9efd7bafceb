"""Zarr v3 arrays of images as this package writes them: what their metadata says, and where which value lies.

An array (N, C, H, W) is cut along its first axis alone. Its objects are whole Zarr shards (codec `sharding_indexed`) of
`object_rows` images each, and these hold chunks of `chunk_rows` images, uncompressed, each followed by its CRC-32C; at
the end stands the index: where each chunk begins and how long it is, little-endian uint64, and a CRC-32C. See
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html. Labels are an int64 array beside the
images, one object.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import StoreDamagedError, missing
from .runs import labels_beside

METADATA = "zarr.json"
_CHUNK_BYTES = 64 << 10  # what a reader of one small image gets at once
_ABSENT = (1 << 64) - 1
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}


@dataclass(frozen=True)
class ArrayPlan:
    """An array of a store and how it is cut.

    Attributes:
        name: of the array within the group.
        labelled: an array of labels lies beside it.
        shape: (N, C, H, W).
        dtype: of the images.
        object_rows: images in one stored object; all but the last have so many.
    """

    name: str
    labelled: bool
    shape: tuple[int, int, int, int]
    dtype: str
    object_rows: int

    @property
    def chunk_rows(self) -> int:
        """Images in a chunk: the most that divide an object and stay small."""
        most = min(self.object_rows, _small(self.shape[1:], self.dtype))
        return next(rows for rows in range(most, 0, -1) if self.object_rows % rows == 0)

    @property
    def labels_name(self) -> str:
        """The name of the array of labels."""
        parent, slash, name = self.name.rpartition("/")
        return parent + slash + labels_beside(name)

    @property
    def labels_object(self) -> str:
        """The file of all labels."""
        return f"{self.labels_name}/c.0"

    def metadata(self) -> dict[str, dict[str, Any]]:
        """What `zarr.json` says, by name of array."""
        inner = (self.chunk_rows, *self.shape[1:])
        sharded = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": list(inner),
                "codecs": [_BYTES, _CRC],
                "index_codecs": [_BYTES, _CRC],
                "index_location": "end",
            },
        }
        fill: int | float = 0.0 if np.dtype(self.dtype).kind == "f" else 0
        found = {self.name: _array(self.shape, (self.object_rows, *self.shape[1:]), self.dtype, fill, [sharded])}
        if self.labelled:
            count = self.shape[0]
            found[self.labels_name] = _array((count,), (max(1, count),), "int64", 0, [_BYTES, _CRC])
        return found


def object_name(array: str, number: int) -> str:
    """The file of an array's object, relative to the group."""
    return f"{array}/c.{number}.0.0.0"


def array_of(name: str) -> str:
    """The array that an object's file belongs to."""
    return name.rpartition("/")[0]


def rows_of_objects(first: int, several: bool, shape: Sequence[int], dtype: str) -> int:
    """How many images (C, H, W) the objects of an array have.

    Args:
        first: images in its first object.
        several: there are more; else the only object has room for whole chunks of a good size.
    """
    chunk = min(_small(shape, dtype), max(1, first))
    return first if several else -(-max(1, first) // chunk) * chunk


def _small(shape: Sequence[int], dtype: str) -> int:
    """How many images make a chunk of a good size."""
    return int(max(1, _CHUNK_BYTES // (int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)))


def metadata_files(plans: Sequence[ArrayPlan]) -> list[tuple[str, bytes]]:
    """(name, content) of the files that make objects a Zarr group, in the order in which they are to be published.

    The group's holds all the arrays' again, as zarr-python's consolidated metadata, so that opening it asks for one
    file and looks at no other.
    """
    arrays = {name: content for plan in plans for name, content in plan.metadata().items()}
    inline = {"kind": "inline", "must_understand": False, "metadata": arrays}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}, "consolidated_metadata": inline}
    files = [(f"{name}/{METADATA}", _json(content)) for name, content in arrays.items()]
    return [*files, (METADATA, _json(group))]


def encode_chunk(values: bytes) -> bytes:
    """A chunk's bytes with their CRC-32C behind them."""
    return values + struct.pack("<I", crc32c(values))


def encode_labels(labels: Sequence[int]) -> bytes:
    """The object of an array's labels."""
    return encode_chunk(np.array(labels or [0], "<i8").tobytes())


def decode_chunk(data: bytes, where: str) -> bytes:
    """The values of a chunk.

    Raises:
        StoreDamagedError: its CRC-32C does not match.
    """
    if data[-4:] != struct.pack("<I", crc32c(data[:-4])):
        raise StoreDamagedError(f"{where} is damaged: a checksum does not match")
    return data[:-4]


def index_bytes(chunks: int) -> int:
    """The length of an index."""
    return 16 * chunks + 4


def encode_index(sizes: Sequence[int], chunks: int) -> bytes:
    """The index of an object whose first chunks have these sizes, one after the other, and whose others are absent."""
    ends = np.cumsum([0, *sizes])
    index = np.full((chunks, 2), _ABSENT, "<u8")
    index[: len(sizes)] = np.stack([ends[:-1], np.array(sizes, np.int64)], axis=1).astype("<u8")
    return encode_chunk(index.tobytes())


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli).

    Raises:
        BackendError: the package that computes it is not installed.
    """
    try:
        import google_crc32c
    except ImportError:
        raise missing("google_crc32c", "a Zarr store", "zarr") from None
    return int(google_crc32c.value(data))


def library() -> Any:
    """zarr, version 3.

    Raises:
        BackendError: it is not installed, or older.
    """
    try:
        import zarr
    except ImportError:
        raise missing("zarr", "a Zarr store", "zarr") from None
    if int(zarr.__version__.split(".")[0]) < 3:
        raise missing("zarr>=3", f"a Zarr store (here is zarr {zarr.__version__})", "zarr")
    return zarr


def _array(
    shape: tuple[int, ...], cut: tuple[int, ...], dtype: str, fill: int | float, codecs: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(cut)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
        "storage_transformers": [],
    }


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode("utf-8") + b"\n"
