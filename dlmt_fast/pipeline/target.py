"""The place a store is written to: refused unless empty or ours, marked while a job runs, left clean on failure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import RemoteError, StoreError, UsageError
from ..stores.contract import Published
from ..stores.location import is_remote
from ..stores.manifest import NAME, Manifest, is_single, read_manifest
from ..stores.publish import OS, FileOps
from ..stores.walk import is_file, is_folder
from .formats import format_of
from .remote_storage import shard_files
from .storage import storage_of

_MARKER = ".dlmt-job"
_ENDED = "ended"


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
        self.path, self.single, self._holder = path, single, holder
        self.root = path.parent if single else path
        self.storage = storage_of(self.root, single, ops)
        self.manifest = path.with_name(f"{path.name}.{NAME}") if single else path / NAME
        self._marker = path.with_name(f".{path.name}{_MARKER}") if single else path / _MARKER
        self._old: set[str] = set()
        self._publishes_manifest = self.resumed = self.ended = False
        if single and is_folder(path):
            raise UsageError(f"{path} is a folder, and one file of images goes to a file; name the file in it")
        self._refuse_overlap(source)
        if not joins:
            self._refuse_running()
            if self._taken():
                self._old = self._files_to_replace(overwrite)

    @property
    def marked(self) -> bool:
        """Whether a job's marker is there."""
        return self.storage.exists(self._marker.name)

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
        if marked is None and self._taken(store_id):
            try:
                manifest = read_manifest(self.path)
            except RemoteError:
                raise
            except StoreError:
                raise UsageError(f"{self.path} is not empty and no stopped job is there to resume") from None
            if manifest.store_id != store_id:
                raise StoreError(f"{self.path} is another job's finished store: {explain(manifest.store_id)}")
            if not finished:
                raise UsageError(
                    f"{self.path} is this job's finished store already; --resume looks whether all is there"
                )
        self.resumed = marked is not None or self._taken(store_id)

    def go_on(self, store_id: str, replaced: set[str]) -> None:
        """Take up a stopped job, or join one: the marker is there again."""
        self._old = replaced
        if not self.marked:
            self.storage.create(self._marker.name, store_id.encode("ascii"), store_id)
        else:
            self.storage.probe(self._marker.name, store_id.encode("ascii"))

    def unfinish(self) -> None:
        """Remove the manifest of this job's own store, which lost a shard: it is unfinished until that is back."""
        if not self._old and self._has_manifest():
            self.storage.remove([self.manifest.name])

    def sweep(
        self, store_id: str, shards: Container[int | None] | None, names: Callable[[], Iterable[str]] = lambda: ()
    ) -> None:
        """Remove what attempts left half-written; nothing may be writing it. See `Storage.sweep`."""
        self.storage.sweep(store_id, shards, lambda: chain(names(), [self.manifest.name]))

    def discard(self, names: Iterable[str]) -> None:
        """Remove what a shard that does not count has made visible. Before the old store is retired that is nothing.

        Args:
            names: the file that stands for the shard is the last of them, and goes first.
        """
        if not (self._old and self._has_manifest()):
            found = list(names)
            self.storage.remove(found[-1:])
            self.storage.remove(found[:-1])

    def stop(
        self, store_id: str, keep: bool, shards: Container[int | None], names: Callable[[], Iterable[str]] = lambda: ()
    ) -> bool:
        """After a failure: leave a state to resume, or, where no shard counts and nothing was begun, the place as it
        was. Gives whether there is something to resume.

        Args:
            keep: there is something to keep, in any case.
            shards: whose temporaries go; others may be at work on the rest.
            names: gives the files that these shards publish.
        """
        self.sweep(store_id, shards, names)
        if not self.marked:  # the very last step failed: the store is whole
            return True
        if self._publishes_manifest:
            self.storage.remove([self.manifest.name])
        keep = keep or self.resumed or bool(self._old and not self._has_manifest())
        if not keep:
            self._publishes_manifest = False
            self.give_up(())
        return keep

    def begin(self, store_id: str) -> None:
        """Make the folder and its marker, exclusively."""
        try:
            self.storage.prepare()
            self.storage.create(self._marker.name, store_id.encode("ascii"), store_id)
        except (FileExistsError, FileNotFoundError):  # another was faster, and may have swept what this one began
            self._refuse_running()
            raise
        except BaseException:
            self.storage.withdraw(False)
            raise
        try:
            self.sweep(store_id, None)  # of an attempt that was killed before its marker was there
        except BaseException:
            self.give_up(())
            raise

    def refuse_unknown(self, names: Iterable[str]) -> None:
        """Refuse to write over files that the old store does not name.

        Raises:
            StoreError: there is one.
        """
        unknown = self.storage.clashing(names, self._old)
        if unknown is not None:
            raise StoreError(f"{self.root / unknown} is in the way and no file of the old store; move it elsewhere")

    def publish(self, name: str, data: bytes, store_id: str, anew: bool = False) -> Published:
        """Publish a file that belongs to no shard; what a manifest says of it. See `Storage.publish`."""
        self.storage.publish(name, data, store_id, anew or bool(self._old))
        return Published(name, 1, len(data), hashlib.sha256(data).hexdigest())

    def keep(self, new: Iterable[str]) -> None:
        """These are files of the new store, whatever the old one had there."""
        if self._old:
            self._old -= set(new)

    def finish(self, manifest: Manifest | None, store_id: str) -> None:
        """Remove what the old store had beside the new files, publish the manifest (a decrypted target has none),
        unmark."""
        self.storage.remove(self._old)
        self.storage.remove_empty(str(folder) for name in self._old for folder in PurePosixPath(name).parents[:-1])
        if manifest is not None:
            self._publishes_manifest = True
            self.storage.publish(self.manifest.name, manifest.encode(), store_id, anew=True)
        self.storage.remove([self._marker.name])

    def end(self, store_id: str) -> None:
        """Note in the marker that all is done but clearing up, which `finish` ends."""
        self.storage.publish(self._marker.name, f"{store_id} {_ENDED}".encode("ascii"), store_id, anew=True)

    def give_up(self, published: Iterable[str]) -> None:
        """After a failure: remove what this job published, its marker, and the folders that it made."""
        self.storage.remove(published)
        if self._publishes_manifest:
            self.storage.remove([self.manifest.name])
        self.storage.remove([self._marker.name])
        self.storage.withdraw(not self.single)

    def _refuse_overlap(self, source: Path) -> None:
        here, there = (
            str(path).replace("s3a://", "s3://") if is_remote(path) else path.resolve() for path in (self.path, source)
        )
        if _within(here, there) or _within(there, here):
            raise UsageError(f"{self.path} and {source} lie inside each other; choose a target elsewhere")

    def _has_manifest(self) -> bool:
        return self.storage.exists(self.manifest.name)

    def _marked_by(self, store_id: str) -> str | None:
        """The id in the marker."""
        text = self._marker_text(store_id)
        if text is None:
            return None
        found, _, state = text.partition(" ")
        self.ended = state == _ENDED
        return found

    def _marker_text(self, store_id: str = "") -> str | None:
        """What the marker says.

        Raises:
            StoreError: nothing yet, or half of `store_id`. That can be where a file is seen before it is whole.
        """
        text = self.storage.text(self._marker.name)
        if text == "" or (text is not None and text != store_id and store_id.startswith(text)):
            raise StoreError(
                f"{self.root / self._marker.name} is not whole: a job begins there at this moment, or was killed as it "
                "did; if none runs, remove that file and give the command again"
            )
        return text

    def _refuse_running(self) -> None:
        marked = self._marker_text()
        if marked is not None:
            who = self._holder(marked)
            if who:
                raise StoreError(f"{self.path} is marked by a job that runs ({who}); wait for it, or stop it")
            raise StoreError(
                f"{self.path} is marked by a job that runs or was stopped or killed ({self._marker.name}); "
                "if none runs, the same command with --resume goes on; to give it up, remove what is there"
            )

    def _taken(self, store_id: str = "") -> bool:
        return self.storage.taken(self.path, [self.path.name, self.manifest.name], store_id)

    def _files_to_replace(self, overwrite: bool) -> set[str]:
        if not overwrite:
            raise UsageError(
                f"{self.path} is not empty; choose another target, replace a store with --overwrite, or go on with a "
                "job that was stopped there with --resume"
            )
        try:
            return set(files_of(self.path, read_manifest(self.path)))
        except RemoteError:
            raise
        except StoreError as error:
            raise StoreError(
                f"{self.path} is not empty and not a finished store, so --overwrite will not delete it ({error}); "
                "remove it by hand if nothing in it is needed"
            ) from None


def marker_of(path: Path) -> Path | None:
    """The marker of the job that runs or was stopped at a target, a folder or a file; None where there is none."""
    places = (path / _MARKER, path.with_name(f".{path.name}{_MARKER}"))
    return next((place for place in places if is_file(place)), None)


def files_of(store: Path, manifest: Manifest) -> Iterator[str]:
    """The relative names of all files that a store's manifest and listings name."""
    root, form = store.parent if is_single(store) else store, format_of(manifest.kind)
    yield from (extra.name for extra in manifest.extras)
    for shard in manifest.shards:
        yield from shard_files(root, form, shard)


def _within(one: Any, other: Any) -> bool:
    """Whether a path or URL is another, or lies in it; a path never lies in a URL."""
    if isinstance(one, str) and isinstance(other, str):
        return one == other or one.startswith(f"{other}/")
    return type(one) is type(other) and (one == other or other in one.parents)
