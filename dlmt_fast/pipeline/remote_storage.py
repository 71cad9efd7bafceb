"""Targets in remote places: shards are written into a local folder as for a local target, then uploaded under their
final names. A finished store is read back the same way: a shard at a time, into a local folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreDamagedError, UsageError
from ..stores.contract import Published
from ..stores.listing import Listed, read_listing
from ..stores.location import is_remote
from ..stores.objects import Objects, fetch_all, objects_at, publish_all
from ..stores.publish import FileOps
from ..stores.remote import is_s3
from ..stores.staging import NO_SYNC, remove_dead_staging, staging
from ..stores.walk import is_file
from .formats import Place, StoredFormat

_MARKER_BYTES = 1 << 10
_LISTING_BYTES = 1 << 30


class RemoteStorage:
    """See `storage.Storage`. There are no folders, and what is uploaded is durable."""

    def __init__(self, root: Path) -> None:
        self.root, self.objects = root, objects_at(root)
        self.shared = self.objects.shared

    @property
    def conditional(self) -> bool:
        """The server itself refuses to write over what is there."""
        return self.objects.conditional

    def prepare(self) -> None:
        """Nothing: a bucket is never made, and folders are only parts of names."""

    def withdraw(self, below: bool) -> None:
        """Nothing."""

    def create(self, name: str, data: bytes, store_id: str) -> None:
        self.objects.create(name, data)

    def probe(self, name: str, data: bytes) -> None:
        self.objects.probe(name, data)

    def publish(self, name: str, data: bytes, store_id: str, anew: bool) -> None:
        if anew:
            self.remove([name])
        with staging() as folder:
            (folder / "file").write_bytes(data)
            self.objects.publish(name, folder / "file", hashlib.sha256(data).hexdigest())

    def exists(self, name: str) -> bool:
        return self.objects.size(name) is not None

    def text(self, name: str) -> str | None:
        found = self.objects.read(name, _MARKER_BYTES)
        return None if found is None else found.decode("ascii", "replace")

    def taken(self, store: Path, names: Iterable[str], store_id: str) -> bool:
        if store != self.root:
            return any(map(self.exists, names))
        return next(self.objects.entries(), None) is not None or is_file(store)

    def clashing(self, names: Iterable[str], known: Container[str]) -> str | None:
        there = {name for name, _ in self.objects.entries() if name not in known}
        return next((name for name in names if name in there), None) if there else None

    def remove(self, names: Iterable[str]) -> None:
        self.objects.remove(iter(names))

    def remove_empty(self, folders: Iterable[str]) -> None:
        """There are no folders."""

    def sweep(self, store_id: str, shards: Container[int | None] | None, names: Callable[[], Iterable[str]]) -> None:
        remove_dead_staging()
        if shards is not None:
            self.objects.abort_uploads(lambda found: found.intersection(names()))


def check_access(root: Path, read_only: bool = False) -> None:
    """See that a remote place can be reached and listed, before any work is done.

    Raises:
        StoreError: it cannot; the message says why.
    """
    if is_remote(root):
        remove_dead_staging()
        if is_s3(root) or not read_only:  # what else is read may be a file, which some cannot list
            next(objects_at(root, read_only=read_only).entries(), None)


def refuse_remote_images(target: Path) -> None:
    """Decrypted images are written to this machine alone.

    Raises:
        UsageError: the target is remote.
    """
    if is_remote(target):
        raise UsageError(f"{target} is remote: decrypted images are written to this machine alone")


@contextmanager
def writing_place(target: Path, store_id: str, ops: FileOps) -> Iterator[Place]:
    """Where a shard's files are written: the target itself, or a local folder from which `upload` takes them."""
    if not is_remote(target):
        yield Place(target, store_id, ops)
        return
    with staging() as folder:
        yield Place(folder, store_id, NO_SYNC)


def upload(objects: Objects, folder: Path, form: StoredFormat, shard: Published, replace: bool) -> None:
    """Publish the files of a shard that were written into `folder`; the one that stands for it comes last."""
    if not form.one_file:
        listed = read_listing((folder / shard.name).read_bytes(), shard.name)
        publish_all(objects, folder, [(entry.name, entry.sha256) for entry in listed], replace)
    publish_all(objects, folder, [(shard.name, shard.sha256)], replace)


@contextmanager
def at_hand(root: Path, form: StoredFormat, shard: Published) -> Iterator[Path]:
    """A local folder with a shard's files: the store's own, or one that they were downloaded to. Files that are missing
    are missing there too."""
    if not is_remote(root):
        yield root
        return
    objects = objects_at(root, read_only=True)
    with downloaded(root, [shard.name]) as folder:
        if not form.one_file:
            fetch_all(objects, form.files(folder, shard) - {shard.name}, folder)
        yield folder


def shard_files(root: Path, form: StoredFormat, shard: Published) -> set[str]:
    """The relative names of a published shard's files, as far as they can be told from what is there."""
    if form.one_file:
        return {shard.name}
    with downloaded(root, [shard.name]) as folder:
        return form.files(folder, shard)


@contextmanager
def downloaded(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """A local folder with these files of a store, as `at_hand`."""
    if not is_remote(root):
        yield root
        return
    with staging() as folder:
        try:
            fetch_all(objects_at(root, read_only=True), names, folder)
            yield folder
        except StoreDamagedError as error:  # it names the copies
            raise StoreDamagedError(str(error).replace(str(folder), str(root))) from None


def listing_of(objects: Objects, form: StoredFormat, shard: Published) -> list[Listed] | None:
    """What a published shard's own file lists, or that file itself where it is all; None where it is not there as it
    was published."""
    if form.one_file:
        return [Listed(shard.sha256, shard.size, shard.name)]
    data = objects.read(shard.name, _LISTING_BYTES)
    if data is None or hashlib.sha256(data).hexdigest() != shard.sha256:
        return None
    return read_listing(data, f"{objects.root / shard.name}")
