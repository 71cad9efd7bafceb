"""A folder of PNG or .npy files, with a listing a shard."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from ...errors import StoreDamagedError
from ...stores.contract import Array, Published, Shape, ShardSpec, ShardWriter
from ...stores.folder_writer import FolderWriter
from ...stores.listing import Listed, can_be_listed, listing_name, read_listed, read_listing
from ...stores.manifest import Manifest
from ...stores.npy import decode_npy
from ...stores.sliced import ArrayFile
from .contract import Contents, Place, StoredBatch, check_shape, published_digest, size_of


class FolderFormat:
    """See `contract.StoredFormat`."""

    kind = "folder"
    named = folders = cut = True
    labelled = False
    one_file = False
    libraries: tuple[str, ...] = ()
    joined = False

    def check(self, dtype: str) -> None:
        """A .npy file holds any dtype."""

    def check_job(self, shape: Shape | None, on_error: str) -> None:
        """Files hold images of any size, and fewer of them too."""

    def closing(
        self, dtype: str, shape: Shape | None, shards: Sequence[Published], labels: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[str, bytes]]:
        return iter(())

    def closing_labels(self, shards: Iterable[str]) -> set[str]:
        return set()

    def stored_labels(self, root: Path, manifest: Manifest) -> list[Sequence[int] | None]:
        return [None] * len(manifest.shards)

    def array_file(self, shard: ShardSpec, contents: Contents) -> ArrayFile | None:
        return None

    def suffix(self, dtype: str) -> str:
        return ".png" if dtype == "uint8" else ".npy"

    def shard_name(self, shard: ShardSpec, base: str) -> str:
        return listing_name(shard.index)

    def holds(self, name: str) -> bool:
        return can_be_listed(name)

    def plain_name(self, original: str, stored: str) -> str:
        """A sample of a tar lies in its class, then in a folder called as the tar; one of an array in its class."""
        tar, inside, name = original.partition("//")
        return "/".join(filter(None, (stored.rpartition("/")[0], tar, name))) if inside else original

    def labels_name(self, shard: str) -> str | None:
        return None

    def writer(self, place: Place, shard: ShardSpec, contents: Contents) -> ShardWriter:
        return FolderWriter(place.root, place.store_id, shard.index, place.ops)

    def open(self, root: Path, shard: Published, manifest: Manifest) -> FolderShard:
        return FolderShard(root, shard, manifest)

    def files(self, root: Path, shard: Published) -> set[str]:
        path = root / shard.name
        listed = read_listing(path.read_bytes(), str(path)) if path.exists() else []
        return {shard.name} | {entry.name for entry in listed}

    def there(self, root: Path, shard: Published, check: bool) -> bool:
        for entry in read_shard_listing(root, shard):
            if check:
                read_listed(root, entry)
            elif size_of(root / entry.name) != entry.size:
                return False
        return True

    def verify(self, root: Path, shard: Published) -> Iterator[int]:
        for entry in read_shard_listing(root, shard):
            read_listed(root, entry)
            yield 1


@dataclass(frozen=True)
class FolderShard:
    """The files that a listing names."""

    root: Path
    shard: Published
    manifest: Manifest

    def read(self) -> Iterator[StoredBatch]:
        for position, entry in enumerate(read_shard_listing(self.root, self.shard)):
            image = decode_stored(read_listed(self.root, entry), entry.name, self.manifest.dtype)
            check_shape(image.shape, self.manifest, self.root / entry.name)
            yield StoredBatch(position, [entry.name], image[None])

    def plain_file(self, name: str) -> None:
        """The images are not one array at fixed places."""

    def plain_writer(self, place: Place, index: int, name: str) -> ShardWriter:
        return FolderWriter(place.root, place.store_id, index, place.ops, listed=False)


def read_shard_listing(root: Path, shard: Published) -> list[Listed]:
    """A folder shard's listing, checked against the manifest.

    Raises:
        StoreDamagedError: it is missing or altered.
    """
    path = root / shard.name
    if published_digest(path)[1] != shard.sha256:
        raise StoreDamagedError(f"{path} is damaged: its bytes are not those that were published")
    listing = read_listing(path.read_bytes(), str(path))
    if len(listing) != shard.count or sum(entry.size for entry in listing) != shard.size:
        raise StoreDamagedError(f"{path} lists {len(listing)} files, the manifest says {shard.count}")
    return listing


def decode_stored(data: bytes, name: str, dtype: str) -> Array:
    """One stored image, a PNG or .npy file by its name, as (C, H, W).

    Raises:
        StoreDamagedError: it is none of this dtype.
    """
    if not name.endswith(".png"):
        return decode_npy(data, np.dtype(dtype), name)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mode, pixels = image.mode, np.array(image)
    except Exception as error:  # noqa: BLE001  the plugin raises almost anything on damaged content
        raise StoreDamagedError(f"{name} is no PNG file ({type(error).__name__})") from None
    if mode not in ("L", "RGB") or dtype != "uint8":
        raise StoreDamagedError(f"{name} is not a PNG file of this store")
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
