"""The kinds of stores that this package writes, one object a kind. What is written, and how it is read back, is decided
by the kind of the target alone, whatever the source was.

To add a kind: a file in `stores/` with its source, writer and reader; a module here with an object that has what
`contract.StoredFormat` asks for; a line in `_FORMATS`; a line in `pipeline/open.py`; its name in
`stores.manifest.KINDS`; and in `kinds.TARGETS` which sources can become it.
"""

from __future__ import annotations

from .contract import Contents, Place, StoredBatch, StoredFormat, StoredShard
from .folder import FolderFormat
from .idx import IdxFormat
from .npy import NpyFormat
from .parquet import ParquetFormat
from .webdataset import WebdatasetFormat
from .zarr import ZarrFormat

__all__ = ["KINDS", "Contents", "Place", "StoredBatch", "StoredFormat", "StoredShard", "format_of"]

_FORMATS: dict[str, StoredFormat] = {
    "folder": FolderFormat(),
    "idx": IdxFormat(),
    "npy": NpyFormat(),
    "parquet": ParquetFormat(),
    "webdataset": WebdatasetFormat(),
    "zarr": ZarrFormat(),
}
KINDS = tuple(_FORMATS)


def format_of(kind: str) -> StoredFormat:
    """The format of a kind of store, one of `KINDS`."""
    return _FORMATS[kind]
