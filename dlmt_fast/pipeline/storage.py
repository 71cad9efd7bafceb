"""What a target asks of the place that it lies in: files that are made, published, looked for and removed by name. One
implementation for folders of this machine, with all that durability needs; one for remote places.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ..stores.location import is_remote
from ..stores.publish import FileOps, create_bytes, is_temporary, make_directories, publish_bytes, remove_leftovers
from ..stores.walk import entries, folders_below
from .remote_storage import RemoteStorage

_FOLDERS = 1 << 10  # whose changes are synced at once: there may be very many


class Storage(Protocol):
    """A place; names are relative to `root`.

    Attributes:
        shared: other processes see the same files.
        conditional: what is there is not written over, whoever wrote it.
    """

    root: Path
    shared: bool

    @property
    def conditional(self) -> bool: ...

    def prepare(self) -> None:
        """Make what must be there before the first file."""
        ...

    def withdraw(self, below: bool) -> None:
        """Remove the folders that are empty: those that `prepare` made, and with `below` those under the root."""
        ...

    def create(self, name: str, data: bytes, store_id: str) -> None:
        """Make a file that is not there; other processes see all of it or nothing, where the place can do that.

        Raises:
            FileExistsError: it is there.
        """
        ...

    def probe(self, name: str, data: bytes) -> None:
        """Find out what the place can do, with a file that is there and has this content."""
        ...

    def publish(self, name: str, data: bytes, store_id: str, anew: bool) -> None:
        """Publish a small file, whole or not at all.

        Args:
            anew: whatever is there goes; else that may be refused unless its content is the same.
        """
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        ...

    def text(self, name: str) -> str | None:
        """What is in a small file; None where there is none."""
        ...

    def taken(self, store: Path, names: Iterable[str], store_id: str) -> bool:
        """Whether the store `store_id` cannot be begun at `store`: one of these files is there; without names, anything
        but temporaries of this store, which a kill can leave before all else."""
        ...

    def clashing(self, names: Iterable[str], known: Container[str]) -> str | None:
        """One of the names that is there and not among the known ones."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, so that they stay removed after a power cut; those that are not there are well."""
        ...

    def remove_empty(self, folders: Iterable[str]) -> None:
        """Remove those of these folders that are empty, so that they stay removed."""
        ...

    def sweep(self, store_id: str, shards: Container[int | None] | None, names: Callable[[], Iterable[str]]) -> None:
        """Remove what attempts left half-written. Nothing may be writing it.

        Args:
            shards: those concerned, None among them for what belongs to no shard. None: only what lies in the root
                itself, whatever its shard.
            names: gives the files that these shards publish.
        """
        ...


def storage_of(root: Path, single: bool, ops: FileOps) -> Storage:
    """The storage for a root. `single`: only files in the root itself are concerned."""
    return RemoteStorage(root) if is_remote(root) else LocalStorage(root, single, ops)


class LocalStorage:
    """A folder of this machine; see `Storage`."""

    shared = conditional = True

    def __init__(self, root: Path, single: bool, ops: FileOps) -> None:
        self.root, self._single, self._ops = root, single, ops
        self._made: list[Path] = []

    def prepare(self) -> None:
        self._made = [path for path in (self.root, *self.root.parents) if not path.exists()]
        make_directories(self.root, self._ops)

    def withdraw(self, below: bool) -> None:
        if below and self.root.is_dir():
            self._remove_empty(folder for folder in folders_below(self.root) if folder != self.root)
        self._remove_empty(self._made)

    def create(self, name: str, data: bytes, store_id: str) -> None:
        create_bytes(self.root / name, data, store_id, self._ops)

    def probe(self, name: str, data: bytes) -> None:
        """All is known."""

    def publish(self, name: str, data: bytes, store_id: str, anew: bool) -> None:
        make_directories((self.root / name).parent, self._ops)
        publish_bytes(self.root / name, data, store_id, ops=self._ops)

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def text(self, name: str) -> str | None:
        try:
            return (self.root / name).read_bytes().decode("ascii", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def taken(self, store: Path, names: Iterable[str], store_id: str) -> bool:
        if self._single:
            return any(map(self.exists, names))
        if not store.is_dir():
            return store.exists()
        return not all(is_temporary(entry.name, store_id) for entry in entries(store))

    def clashing(self, names: Iterable[str], known: Container[str]) -> str | None:
        return next((name for name in names if name not in known and os.path.lexists(self.root / name)), None)

    def remove(self, names: Iterable[str]) -> None:
        folders: set[Path] = set()
        for name in names:
            path = self.root / name
            self._ops.unlink(path)
            folders.add(path.parent)  # of what an attempt before removed as well: it may have been killed then
            if len(folders) == _FOLDERS:
                self._settle(folders)
                folders.clear()
        self._settle(folders)

    def remove_empty(self, folders: Iterable[str]) -> None:
        found = {self.root / folder for folder in folders}
        self._remove_empty(found)
        self._settle({folder.parent for folder in found})

    def _remove_empty(self, folders: Iterable[Path]) -> None:
        for folder in sorted(folders, reverse=True):  # a folder comes after those in it
            with suppress(OSError):  # not empty, or gone already: either is fine when cleaning up
                self._ops.rmdir(folder)

    def _settle(self, folders: Iterable[Path]) -> None:
        """What was removed from these folders stays removed. Of those that are gone the ones above know that."""
        for folder in {next(path for path in (folder, *folder.parents) if path.is_dir()) for folder in folders}:
            self._ops.fsync_directory(folder)

    def sweep(self, store_id: str, shards: Container[int | None] | None, names: Callable[[], Iterable[str]]) -> None:
        alone = self._single or shards is None
        folders: Iterator[Path] = iter([self.root]) if alone else folders_below(self.root)
        remove_leftovers(folders, store_id, self._ops, shards)
