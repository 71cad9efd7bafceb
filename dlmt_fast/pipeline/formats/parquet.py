"""Parquet files of images in Hugging Face's layout, a file a shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import StoreDamagedError
from ...stores.contract import Published, ShardSpec, ShardWriter
from ...stores.listing import can_be_listed
from ...stores.manifest import Manifest
from ...stores.parquet_format import read_footer, read_rows, shard_name, split_of
from ...stores.parquet_writer import ParquetWriter
from .contract import Contents, OneFile, Place, StoredBatch, check_published, check_shape
from .folder import decode_stored


class ParquetFormat(OneFile):
    """See `contract.StoredFormat`. Samples lie in the order of their hidden names, which are in no file."""

    kind = "parquet"
    named = labelled = True
    folders = False
    libraries: tuple[str, ...] = ("pyarrow",)

    def check(self, dtype: str) -> None:
        """A .npy file in a row holds any dtype."""

    def suffix(self, dtype: str) -> str:
        return ".png" if dtype == "uint8" else ".npy"

    def shard_name(self, shard: ShardSpec, base: str) -> str:
        return shard_name(split_of(base), shard.index)

    def holds(self, name: str) -> bool:
        return can_be_listed(name)

    def plain_name(self, original: str, stored: str) -> str:
        return original.rpartition("//")[2]

    def labels_name(self, shard: str) -> str | None:
        return None

    def writer(self, place: Place, shard: ShardSpec, contents: Contents) -> ShardWriter:
        return ParquetWriter(
            place.root,
            place.store_id,
            shard.index,
            shard.name,
            contents.dtype,
            contents.labelled,
            contents.classes if contents.labelled else None,
            contents.names,
            place.ops,
            contents.kept,
        )

    def open(self, root: Path, shard: Published, manifest: Manifest) -> ParquetShard:
        return ParquetShard(root, shard, manifest)


class ParquetShard:
    """One file, whose bytes and number of rows are what the manifest says.

    Raises:
        StoreDamagedError: they are not.
    """

    def __init__(self, root: Path, shard: Published, manifest: Manifest) -> None:
        self._path, self._manifest = root / shard.name, manifest
        check_published(self._path, shard)
        self._footer = read_footer(self._path, keep=None)
        if sum(self._footer.groups) != shard.count:
            raise StoreDamagedError(f"{self._path} holds {sum(self._footer.groups)} rows, not as its manifest says")

    def read(self) -> Iterator[StoredBatch]:
        footer, suffix = self._footer, ".png" if self._manifest.dtype == "uint8" else ".npy"
        groups, rows = range(len(footer.groups)), range(sum(footer.groups))
        for row in read_rows(self._path, footer.columns, groups, rows, kept=footer.kept):
            where = f"{self._path}#{row.index}{suffix}"
            image = decode_stored(row.image or b"", where, self._manifest.dtype)
            check_shape(image.shape, self._manifest, self._path)
            labels, kept = None if row.label is None else [row.label], [row.kept] if footer.kept else None
            yield StoredBatch(row.index, [row.path or ""], image[None], labels, kept)

    def plain_file(self, name: str) -> None:
        """The images are not one array at fixed places."""

    def plain_writer(self, place: Place, index: int, name: str) -> ShardWriter:
        columns = self._footer.columns
        return ParquetWriter(
            place.root,
            place.store_id,
            index,
            name,
            "uint8",
            columns.label is not None,
            columns.classes,
            paths=True,
            ops=place.ops,
            kept=self._footer.kept,
        )
