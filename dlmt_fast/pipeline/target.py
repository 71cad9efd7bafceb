"""The place a store is written to: refused unless empty or ours, marked while a job runs, left clean on failure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..errors import StoreError, UsageError
from ..stores.manifest import NAME, Manifest, read_manifest
from ..stores.publish import OS, FileOps, make_directories, publish_bytes, remove_all, remove_leftovers
from ..stores.walk import folders_below, is_empty
from .formats import format_of

_MARKER = ".dlmt-job"


class Target:
    """`path` is a folder, or a single file beside which the manifest goes.

    Raises:
        UsageError: it is taken, or it and the source lie inside each other.
        StoreError: a job runs there, or it is to be replaced and is not a finished store, so that unknown files
            would be deleted.

    Args:
        joins: whether a job may be at work or stopped there, which `admit` will look at.
        holder: from the id of the job that marks the place to who runs it, in words; empty where nobody is known to.
    """

    def __init__(
        self,
        path: Path,
        single: bool,
        source: Path,
        overwrite: bool,
        joins: bool = False,
        ops: FileOps = OS,
        holder: Callable[[str], str] = lambda store_id: "",
    ) -> None:
        self.path, self.single, self._ops, self._holder = path, single, ops, holder
        self.root = path.parent if single else path
        self.manifest = path.with_name(f"{path.name}.{NAME}") if single else path / NAME
        self._marker = path.with_name(f".{path.name}{_MARKER}") if single else path / _MARKER
        self._made: list[Path] = []
        self._old: set[str] = set()
        self._publishes_manifest = self.resumed = False
        if single and path.is_dir():
            raise UsageError(f"{path} is a folder, and one file of images goes to a file; name the file in it")
        self._refuse_overlap(source)
        if not joins:
            self._refuse_running()
            if self._taken():
                self._old = self._files_to_replace(overwrite)

    @property
    def old(self) -> set[str]:
        """The files of the store that is being replaced."""
        return self._old

    def admit(self, store_id: str, explain: Callable[[str], str], finished: bool) -> None:
        """Let the job `store_id` go on with what is here; an empty place is begun anew.

        Args:
            explain: from another job's id to what differs from it.
            finished: whether that may be its own finished store.

        Raises:
            StoreError: another job's marker or store is here. UsageError: something else is.
        """
        marked = self._marked_by(store_id)
        if marked is not None and marked != store_id:
            who = self._holder(marked)
            runs = f"another job, which runs ({who})" if who else "another job, so it cannot be resumed"
            raise StoreError(f"{self.path} belongs to {runs}: {explain(marked)}")
        if marked is None and self._taken():
            try:
                manifest = read_manifest(self.path)
            except StoreError:
                raise UsageError(f"{self.path} is not empty and no stopped job is there to resume") from None
            if manifest.store_id != store_id:
                raise StoreError(f"{self.path} is another job's finished store: {explain(manifest.store_id)}")
            if not finished:
                raise UsageError(
                    f"{self.path} is this job's finished store already; --resume looks whether all is there"
                )
        self.resumed = marked is not None or self._taken()

    def go_on(self, store_id: str, replaced: set[str]) -> None:
        """Take up a stopped job, or join one: the marker is there again."""
        self._old = replaced
        if not self._marker.exists():
            self._mark(store_id)

    def unfinish(self) -> None:
        """Remove the manifest of this job's own store, which lost a shard: it is unfinished until that is back."""
        if not self._old and self.manifest.exists():
            self._ops.unlink(self.manifest)
            self._ops.fsync_directory(self.root)

    def sweep(self, store_id: str, shards: Container[int]) -> None:
        """Remove what attempts left half-written of these shards; nothing may be writing it."""
        folders = [self.root] if self.single else folders_below(self.root)
        remove_leftovers(folders, store_id, self._ops, shards)

    def discard(self, names: Iterable[str]) -> None:
        """Remove what a shard that does not count has made visible. Before the old store is retired that is nothing."""
        if not (self._old and self.manifest.exists()):
            remove_all((self.root / name for name in names), self._ops)

    def stop(self, store_id: str, keep: bool, shards: Container[int]) -> bool:
        """After a failure: leave a state to resume, or, where no shard counts and nothing was begun, the place as it
        was. Gives whether there is something to resume.

        Args:
            keep: there is something to keep, in any case.
            shards: whose temporaries go; others may be at work on the rest.
        """
        self.sweep(store_id, shards)
        if not self._marker.exists():  # the very last step failed: the store is whole
            return True
        if self._publishes_manifest:
            self._ops.unlink(self.manifest)
        keep = keep or self.resumed or bool(self._old and not self.manifest.exists())
        if not keep:
            self._publishes_manifest = False
            self.give_up(())
        return keep

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
        self._fill(descriptor, store_id)

    def _mark(self, store_id: str) -> None:
        self._fill(self._ops.create(self._marker), store_id)

    def _fill(self, descriptor: int, store_id: str) -> None:
        try:
            try:
                self._ops.write(descriptor, store_id.encode("ascii"))
                self._ops.fsync(descriptor)
            finally:
                self._ops.close(descriptor)
            self._ops.fsync_directory(self.root)
        except BaseException:
            if not self.resumed:
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

    def keep(self, new: Iterable[str]) -> None:
        """These are files of the new store, whatever the old one had there."""
        if self._old:
            self._old -= set(new)

    def finish(self, manifest: Manifest | None, store_id: str) -> None:
        """Remove what the old store had beside the new files, publish the manifest (a decrypted target has none),
        unmark."""
        for name in self._old:
            self._ops.unlink(self.root / name)
        self._remove_empty({self.root / folder for name in self._old for folder in PurePosixPath(name).parents[:-1]})
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
            self._remove_empty(folder for folder in folders_below(self.root) if folder != self.root)
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

    def _marked_by(self, store_id: str) -> str | None:
        """The id in the marker. A marker without one was being made when its job was killed: it is removed."""
        for wait in (0.5, 0.0):
            try:
                found = self._marker.read_bytes().decode("ascii", "replace")
            except FileNotFoundError:
                return None
            if found == store_id or not store_id.startswith(found):
                return found
            time.sleep(wait)  # another job may be writing it at this moment
        self._ops.unlink(self._marker)
        return None

    def _refuse_running(self) -> None:
        if self._marker.exists():
            who = self._holder(self._marker.read_text("ascii", "replace"))
            if who:
                raise StoreError(f"{self.path} is marked by a job that runs ({who}); wait for it, or stop it")
            raise StoreError(
                f"{self.path} is marked by a job that runs or was stopped or killed ({self._marker.name}); "
                "if none runs, the same command with --resume goes on; to give it up, remove what is there"
            )

    def _taken(self) -> bool:
        if self.single:
            return self.path.exists() or self.manifest.exists()
        return self.path.exists() and (not self.path.is_dir() or not is_empty(self.path))

    def _files_to_replace(self, overwrite: bool) -> set[str]:
        if not overwrite:
            raise UsageError(f"{self.path} is not empty; choose another target, or replace a store with --overwrite")
        try:
            return set(files_of(self.path, read_manifest(self.path)))
        except StoreError as error:
            raise StoreError(
                f"{self.path} is not empty and not a finished store, so --overwrite will not delete it ({error}); "
                "remove it by hand if nothing in it is needed"
            ) from None


def marker_of(path: Path) -> Path | None:
    """The marker of the job that runs or was stopped at a target, a folder or a file; None where there is none."""
    places = (path / _MARKER, path.with_name(f".{path.name}{_MARKER}"))
    return next((place for place in places if place.is_file()), None)


def files_of(store: Path, manifest: Manifest) -> Iterator[str]:
    """The relative names of all files that a store's manifest and listings name."""
    root, form = store if store.is_dir() else store.parent, format_of(manifest.kind)
    yield from (extra.name for extra in manifest.extras)
    for shard in manifest.shards:
        yield from form.files(root, shard)
