"""What the pipeline asks of a kind of stored format, and what all kinds of one file a shard answer alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...errors import StoreDamagedError
from ...stores.contract import Array, Kept, Published, Shape, ShardSpec, ShardWriter, Value
from ...stores.manifest import Manifest
from ...stores.publish import OS, FileOps, file_digest, make_directories, publish_bytes
from ...stores.sliced import ArrayFile, SlicedWriter


@dataclass(frozen=True)
class Place:
    """Where shards are written: a folder, and whose temporaries they are until they are published."""

    root: Path
    store_id: str
    ops: FileOps = OS


@dataclass(frozen=True)
class Contents:
    """What a shard will hold.

    Attributes:
        array: the shape of all its images as one array, in the order of axes of the source; () where that has none.
        labelled: each image comes with a class number.
        classes: the names of these numbers, where they have names that may be seen.
        names: the names of the samples may be seen.
        shape: (C, H, W) of every image; None where sizes differ.
        kept: fields that pass unchanged.
        first, several: how many samples the first shard of the array has that this shard is part of, and whether it
            has more shards.
    """

    dtype: str
    array: tuple[int, ...] = ()
    labelled: bool = False
    classes: tuple[str, ...] | None = None
    names: bool = False
    shape: Shape | None = None
    first: int = 0
    several: bool = False
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True)
class StoredBatch:
    """Stored images (N, C, H, W) of one shape, the place of the first in the shard, their names ("" where a kind keeps
    none), their class numbers and kept values where they lie with the images."""

    position: int
    names: list[str]
    images: Array
    labels: Sequence[int] | None = None
    kept: Sequence[Mapping[str, Value]] | None = None


class StoredShard(Protocol):
    """A published shard that is read back; its bytes are compared with their digests before they are used."""

    def read(self) -> Iterator[StoredBatch]:
        """The shard's images in order, in batches of bounded size.

        Raises:
            StoreDamagedError: a file is missing, altered, or not what the manifest says.
        """
        ...

    def plain_file(self, name: str) -> ArrayFile | None:
        """How the decrypted images lie in the file `name`, where that is one array at fixed places; else None."""
        ...

    def plain_writer(self, place: Place, index: int, name: str) -> ShardWriter:
        """What writes the decrypted images (uint8), as shard `index` and, where a shard is one file, `name`."""
        ...


class StoredFormat(Protocol):
    """A kind of store.

    Attributes:
        kind: its name in manifests and for `--to`.
        named: samples have names, and lie in a shard in the order of these; else they have none and keep the order of
            the source.
        folders: the class of a sample is the folder that it lies in.
        labelled: class numbers lie with the images.
        one_file: a shard is one file; else a file a sample and a file that stands for the shard.
        libraries: packages that write the files, so that these depend on their versions.
        joined: the shards of a source of files are parts of one array, and the target is always a folder.
        cut: a shard holds samples by name, so that an array becomes several.
    """

    kind: str
    named: bool
    folders: bool
    labelled: bool
    one_file: bool
    libraries: tuple[str, ...]
    joined: bool
    cut: bool

    def check(self, dtype: str) -> None:
        """Refuse what no file of this kind can hold.

        Raises:
            ParameterError: that.
        """
        ...

    def check_job(self, shape: Shape | None, on_error: str) -> None:
        """Refuse a job whose result this kind cannot hold; `shape` as in `Contents`.

        Raises:
            ParameterError: that.
        """
        ...

    def closing(
        self, dtype: str, shape: Shape | None, shards: Sequence[Published], labels: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[str, bytes]]:
        """(name, content) of the files that make shards one whole, in the order of publication, when all are there.

        Args:
            labels: of each shard's samples in writing order.
        """
        ...

    def array_file(self, shard: ShardSpec, contents: Contents) -> ArrayFile | None:
        """How a shard's images lie in its file, where that is one array at fixed places; else None."""
        ...

    def closing_labels(self, shards: Iterable[str]) -> set[str]:
        """The names of the files of labels that `closing` may give; `shards` are names."""
        ...

    def suffix(self, dtype: str) -> str:
        """What the name of a sample ends with in the store; "" where samples have none."""
        ...

    def holds(self, name: str) -> bool:
        """Whether a sample can have this name, and no file of the store's own has it."""
        ...

    def plain_name(self, original: str, stored: str) -> str:
        """What a decrypted image is called; `original` is its path in the source, with .png, `stored` its name in the
        store."""
        ...

    def shard_name(self, shard: ShardSpec, base: str) -> str:
        """The published file of a shard; `base` is what it is called in the source, hidden where names are."""
        ...

    def labels_name(self, shard: str) -> str | None:
        """The file beside a shard that holds its labels, where its name follows from the shard's."""
        ...

    def writer(self, place: Place, shard: ShardSpec, contents: Contents) -> ShardWriter:
        """What writes a shard under its published name."""
        ...

    def open(self, root: Path, shard: Published, manifest: Manifest) -> StoredShard:
        """A published shard, to be read."""
        ...

    def stored_labels(self, root: Path, manifest: Manifest) -> list[Sequence[int] | None]:
        """The labels of each shard, where they are in what `closing` gave."""
        ...

    def files(self, root: Path, shard: Published) -> set[str]:
        """The relative names of a published shard's files, as far as they can be told from what is there."""
        ...

    def there(self, root: Path, shard: Published, check: bool) -> bool:
        """Whether all files of a shard are there with their sizes; with `check` also with their digests.

        Raises:
            StoreDamagedError: one is not, which is told by this or by the value.
        """
        ...

    def verify(self, root: Path, shard: Published) -> Iterator[int]:
        """Compare every byte of a shard with what was published; gives the numbers of images compared.

        Raises:
            StoreDamagedError: something is missing or altered.
        """
        ...


def sliced_writer(place: Place, index: int, name: str, file: ArrayFile) -> ShardWriter:
    """What writes an array as shard `index`, from its start to its end."""
    return SlicedWriter(place.root, place.store_id, index, name, file, place.ops)


class OneFile:
    """The answers of kinds whose shards are one file each, and whose samples have no names unless they say so."""

    one_file = True
    libraries: tuple[str, ...] = ()
    joined = cut = False

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

    def holds(self, name: str) -> bool:
        return not name

    def plain_name(self, original: str, stored: str) -> str:
        return original

    def files(self, root: Path, shard: Published) -> set[str]:
        return {shard.name}

    def there(self, root: Path, shard: Published, check: bool) -> bool:
        if check:
            check_published(root / shard.name, shard)
        return size_of(root / shard.name) == shard.size

    def verify(self, root: Path, shard: Published) -> Iterator[int]:
        check_published(root / shard.name, shard)
        yield shard.count


def publish_extra(place: Place, name: str, data: bytes) -> Published:
    """Publish a file that belongs to no shard; what a manifest says of it."""
    make_directories((place.root / name).parent, place.ops)
    publish_bytes(place.root / name, data, place.store_id, ops=place.ops)
    return Published(name, 1, len(data), hashlib.sha256(data).hexdigest())


def check_published(path: Path, published: Published) -> None:
    """Compare a file with what was published.

    Raises:
        StoreDamagedError: it is missing or altered.
    """
    if published_digest(path) != (published.size, published.sha256):
        raise StoreDamagedError(f"{path} is damaged: its bytes are not those that were published")


def published_digest(path: Path) -> tuple[int, str]:
    """(size, hex SHA-256) of a file that a manifest names.

    Raises:
        StoreDamagedError: it is missing.
    """
    try:
        return file_digest(path)
    except (FileNotFoundError, IsADirectoryError):
        raise StoreDamagedError(f"{path} is missing, and the manifest names it") from None


def size_of(path: Path) -> int | None:
    """The size of a file; None where there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_shape(shape: tuple[int, ...], manifest: Manifest, path: Path) -> None:
    """Refuse an image (C, H, W) that is not of its store.

    Raises:
        StoreDamagedError: the manifest says another shape, or no store holds this one.
    """
    if shape[0] not in (1, 3) or manifest.shape not in (None, shape):
        raise StoreDamagedError(f"{path} holds an image of shape {shape}, the manifest says {manifest.shape}")
