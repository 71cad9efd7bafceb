"""The place a store is written to: refused unless empty or ours, marked while a job runs, left clean on failure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..errors import StoreError, UsageError
from ..stores.contract import Published
from ..stores.folder import read_listing
from ..stores.manifest import NAME, Manifest, read_manifest
from ..stores.publish import OS, FileOps, make_directories, publish_bytes

_MARKER = ".dlmt-job"


class Target:
    """`path` is a folder, or a single file beside which the manifest goes.

    Raises:
        UsageError: it is taken, or it and the source lie inside each other.
        StoreError: a job runs there, or it is to be replaced and is not a finished store, so that unknown files
            would be deleted.
    """

    def __init__(self, path: Path, single: bool, source: Path, overwrite: bool, ops: FileOps = OS) -> None:
        self.path, self.single, self._ops = path, single, ops
        self.root = path.parent if single else path
        self.manifest = path.with_name(f"{path.name}.{NAME}") if single else path / NAME
        self._marker = path.with_name(f".{path.name}{_MARKER}") if single else path / _MARKER
        self._made: list[Path] = []
        self._old: set[str] = set()
        self._publishes_manifest = False
        if single and path.is_dir():
            raise UsageError(f"{path} is a folder, and one file of images goes to a file; name the file in it")
        self._refuse_overlap(source)
        self._refuse_running()
        if self._taken():
            self._old = self._files_to_replace(overwrite)

    def begin(self, store_id: str) -> None:
        """Make the folder and its marker, exclusively."""
        self._made = [p for p in (self.root, *self.root.parents) if not p.exists()]
        try:
            make_directories(self.root, self._ops)
            descriptor = self._ops.create(self._marker)
        except FileExistsError:
            self._refuse_running()
            raise
        except BaseException:
            self._remove_empty(self._made)
            raise
        try:
            try:
                self._ops.write(descriptor, store_id.encode("ascii"))
                self._ops.fsync(descriptor)
            finally:
                self._ops.close(descriptor)
        except BaseException:
            self.give_up(())
            raise

    def refuse_unknown(self, names: Iterable[str]) -> None:
        """Refuse to write over files that the old store does not name.

        Raises:
            StoreError: there is one.
        """
        unknown = [name for name in names if name not in self._old and os.path.lexists(self.root / name)]
        if unknown:
            raise StoreError(f"{self.root / unknown[0]} is in the way and no file of the old store; move it elsewhere")

    def retire_old(self) -> None:
        """Remove the manifest of a store that is being replaced: from now on it reads as unfinished."""
        if self._old and self.manifest.exists():
            self._ops.unlink(self.manifest)
            self._ops.fsync_directory(self.root)

    def finish(self, manifest: Manifest | None, store_id: str, new: Iterable[str]) -> None:
        """Remove what the old store had beside the new files, publish the manifest (a decrypted target has none),
        unmark."""
        old = self._old - set(new)
        for name in old:
            self._ops.unlink(self.root / name)
        self._remove_empty({self.root / folder for name in old for folder in PurePosixPath(name).parents[:-1]})
        if manifest is not None:
            self._publishes_manifest = True
            publish_bytes(self.manifest, manifest.encode(), store_id, ops=self._ops)
        self._ops.unlink(self._marker)
        self._ops.fsync_directory(self.root)

    def give_up(self, published: Iterable[str]) -> None:
        """After a failure: remove what this job published, its marker, and the folders that it made."""
        for name in published:
            self._ops.unlink(self.root / name)
        if self._publishes_manifest:
            self._ops.unlink(self.manifest)
        self._ops.unlink(self._marker)
        if not self.single and self.root.is_dir():
            self._remove_empty(p for p in self.root.rglob("*") if p.is_dir())
        self._remove_empty(self._made)

    @staticmethod
    def _remove_empty(folders: Iterable[Path]) -> None:
        for folder in sorted(folders, reverse=True):  # a folder comes after those in it
            with suppress(OSError):  # not empty, or gone already: either is fine when cleaning up
                folder.rmdir()

    def _refuse_overlap(self, source: Path) -> None:
        here, there = self.path.resolve(), source.resolve()
        if here == there or there in here.parents or here in there.parents:
            raise UsageError(f"{self.path} and {source} lie inside each other; choose a target elsewhere")

    def _refuse_running(self) -> None:
        if self._marker.exists():
            raise StoreError(
                f"{self.path} is marked by a job that runs or was killed ({self._marker.name}); "
                "if none runs, remove what is there and start again"
            )

    def _taken(self) -> bool:
        if self.single:
            return self.path.exists() or self.manifest.exists()
        return self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))

    def _files_to_replace(self, overwrite: bool) -> set[str]:
        if not overwrite:
            raise UsageError(f"{self.path} is not empty; choose another target, or replace a store with --overwrite")
        try:
            return files_of(self.path, read_manifest(self.path))
        except StoreError as error:
            raise StoreError(
                f"{self.path} is not empty and not a finished store, so --overwrite will not delete it ({error}); "
                "remove it by hand if nothing in it is needed"
            ) from None


def files_of(store: Path, manifest: Manifest) -> set[str]:
    """The relative names of all files that a store's manifest and listings name."""
    names = {extra.name for extra in manifest.extras}
    for shard in manifest.shards:
        names |= files_of_shard(store if store.is_dir() else store.parent, manifest.kind, shard)
    return names


def files_of_shard(root: Path, kind: str, shard: Published) -> set[str]:
    """The relative names of a published shard's files."""
    path = root / shard.name
    listed = read_listing(path.read_bytes(), str(path)) if kind == "folder" and path.exists() else []
    return {shard.name} | {entry.name for entry in listed}
