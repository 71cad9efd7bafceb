"""Tars of samples for WebDataset, a tar a shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import StoreDamagedError
from ...stores.contract import Published, ShardSpec, ShardWriter
from ...stores.listing import can_be_listed
from ...stores.manifest import Manifest
from ...stores.tar_index import read_index
from ...stores.tar_writer import TarWriter, key_of
from .contract import Contents, OneFile, Place, StoredBatch, check_published, check_shape
from .folder import decode_stored


class WebdatasetFormat(OneFile):
    """See `contract.StoredFormat`."""

    kind = "webdataset"
    named = labelled = cut = True
    folders = False

    def check(self, dtype: str) -> None:
        """A .npy member holds any dtype."""

    def suffix(self, dtype: str) -> str:
        return ".png" if dtype == "uint8" else ".npy"

    def shard_name(self, shard: ShardSpec, base: str) -> str:
        return f"shard-{shard.index:06d}.tar"

    def holds(self, name: str) -> bool:
        return can_be_listed(name) and "." not in key_of(name)[1] and not name.startswith("__")

    def plain_name(self, original: str, stored: str) -> str:
        folder, slash, last = original.rpartition("//")[2].rpartition("/")
        return folder + slash + last.removesuffix(".png").replace(".", "_") + ".png"

    def labels_name(self, shard: str) -> str | None:
        return None

    def writer(self, place: Place, shard: ShardSpec, contents: Contents) -> ShardWriter:
        return TarWriter(place.root, place.store_id, shard.index, shard.name, place.ops)

    def open(self, root: Path, shard: Published, manifest: Manifest) -> WebdatasetShard:
        return WebdatasetShard(root, shard, manifest)


class WebdatasetShard:
    """One tar, whose bytes and number of samples are what the manifest says.

    Raises:
        StoreDamagedError: they are not.
    """

    def __init__(self, root: Path, shard: Published, manifest: Manifest) -> None:
        self._path, self._manifest = root / shard.name, manifest
        check_published(self._path, shard)
        suffix = ".png" if manifest.dtype == "uint8" else ".npy"
        self._samples = read_index(self._path, (suffix,), keep=lambda field: field != "cls").samples
        if len(self._samples) != shard.count or any(sample.fault for sample in self._samples):
            raise StoreDamagedError(f"{self._path} holds {len(self._samples)} samples, not as its manifest says")

    def read(self) -> Iterator[StoredBatch]:
        with open(self._path, "rb") as file:
            for position, sample in enumerate(self._samples):
                file.seek(sample.offset)
                image = decode_stored(file.read(sample.size), sample.path, self._manifest.dtype)
                check_shape(image.shape, self._manifest, self._path / sample.path)
                labels = [sample.numbers["cls"]] if "cls" in sample.numbers else None
                kept = [{field: _part(file, *place) for field, place in sample.kept.items()}] if sample.kept else None
                yield StoredBatch(position, [sample.path], image[None], labels, kept)

    def plain_file(self, name: str) -> None:
        """The images are not one array at fixed places."""

    def plain_writer(self, place: Place, index: int, name: str) -> ShardWriter:
        return TarWriter(place.root, place.store_id, index, name, place.ops)


def _part(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
