"""A decrypt before it starts: everything that decides its files, and the place that they go to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..keys import CONTRACT, Key
from ..stores.contract import Published
from ..stores.publish import FileOps
from .formats.contract import check_published
from .job import differences, library_versions
from .locks import JobLocks, held
from .order import Order
from .owner import OwnerFolder
from .plain_journal import Entry, PlainJournal, id_of, journal_folder
from .plain_names import PlainNames
from .plain_shard import PlainJob, digest_of
from .remote_storage import check_access, downloaded, refuse_remote_images
from .shuffle import array_of_labels, reordered
from .slices import WHOLE
from .stored import StoredImages
from .target import Target


class PlannedDecrypt:
    """What is read, how its files are called, and where they go. Nothing is written before `begin`."""

    def __init__(
        self,
        source: Path,
        target: Path,
        key: Key,
        owner_folder: Callable[[str], Path],
        resume: bool,
        ops: FileOps,
    ) -> None:
        refuse_remote_images(target)
        check_access(source, read_only=True)
        self.store, self.key, self.ops = StoredImages(source, key), key, ops
        manifest, single = self.store.manifest, self.store.single
        folder = journal_folder(target, single)
        self.target = Target(target, single, source, False, resume, ops, lambda _: "; ".join(held(folder).values()))
        self.owner = OwnerFolder(owner_folder(manifest.store_id), self.store.seal)
        self.names = PlainNames(self.store, self.owner, target if single else None)
        self.manifest = digest_of(manifest)
        self.record = self._record()
        self.journal = PlainJournal(folder, id_of(self.record), ops)
        if resume:
            self.target.admit(self.id, self._differences, finished=False)

    @property
    def id(self) -> str:
        """Whose marker and temporaries are in the target: not the store's id, which an encrypt's there would have."""
        return id_of(self.record)

    def begin(self) -> JobLocks:
        """Mark the target, or take it up, and take the job's lock.

        Raises:
            StoreError: another process does the same decrypt; or a file is in the way.
        """
        if self.target.resumed:
            self.target.go_on(self.id, set())
        else:
            self.target.refuse_unknown(self._labels().values())
            self.target.begin(self.id)
        try:
            self.journal.prepare(self.record)
            locks = JobLocks(self.journal.root, WHOLE)
        except BaseException:
            if not self.target.resumed:
                self.journal.remove()
                self.target.give_up(())
            raise
        with locks.gate():
            locks.take()
        if not (self.target.marked and self.journal.root.is_dir()):
            locks.release()
            raise StoreError(f"{self.target.path}: the same decrypt ran at the same time, and has ended meanwhile")
        return locks

    def counted(self, index: int, check: bool) -> Entry | None:
        """A shard's entry, where it counts: its files are there; with `check` their digests are compared too."""
        entry = self.journal.read(index)
        if entry is None or entry.published.count != self.store.manifest.shards[index].count:
            return None
        return entry if entry.there(self.target.root, check) else None

    def context(self, threads: int | None, segment_bytes: int) -> PlainJob:
        """What all its shards share."""
        return PlainJob(
            key=self.key,
            store=self.store.path,
            owner=self.owner.root,
            manifest=self.manifest,
            target=self.target.root,
            journal=self.journal.root,
            job_id=self.id,
            threads=threads,
            ops=self.ops,
            segment_bytes=segment_bytes,
        )

    def extras(self, published: Callable[[int], Published]) -> Iterator[tuple[str, bytes]]:
        """(name, content) of what belongs to no shard: the store's own with its labels, or, where that makes shards one
        whole, the like of it for the decrypted ones."""
        store, manifest = self.store, self.store.manifest
        if store.form.joined:
            shards = [published(index) for index in range(len(manifest.shards))]
            with downloaded(store.root, [extra.name for extra in manifest.extras]) as folder:
                stored = store.form.stored_labels(folder, manifest)
            labels = [_in_order(values, store.order(index)) for index, values in enumerate(stored)]
            yield from store.form.closing("uint8", manifest.shape, shards, labels)
            return
        renamed = self._labels()
        for extra in manifest.extras:
            with downloaded(store.root, [extra.name]) as folder:
                check_published(folder / extra.name, extra)
                data = (folder / extra.name).read_bytes()
            if store.order(0) is not None:
                array = array_of_labels(extra.name, [shard.name for shard in manifest.shards])
                data = reordered(data, extra.name, _rows(store.order(array), manifest.shards[array].count))
            yield renamed.get(extra.name, extra.name), data

    def _labels(self) -> dict[str, str]:
        """From the names of labels files in the store to those beside the decrypted files, where they follow these."""
        form, found = self.store.form, {}
        for index, shard in enumerate(self.store.manifest.shards if self.store.manifest.extras else ()):
            labels = form.labels_name(shard.name)
            if labels is not None:
                found[labels] = form.labels_name(self.names.task(index).name) or labels
        return found

    def _record(self) -> dict[str, Any]:
        """What decides the bytes and names of all files."""
        manifest = self.store.manifest
        return {
            "contract": CONTRACT,
            "command": "decrypt",
            "store": manifest.store_id,
            "manifest": self.manifest,
            "ledgers": self.names.ledgers,
            "versions": library_versions(self.store.form.libraries) | {"zlib": zlib.ZLIB_RUNTIME_VERSION},  # of .gz
        }

    def _differences(self, marked: str) -> str:
        found = self.journal.read_record()
        if found is None:
            return "it is no decrypt's, or its record is gone"
        return differences(found, self.record) or "its record is damaged"


def _in_order(labels: Sequence[int] | None, order: Order | None) -> Sequence[int] | None:
    """Labels of an array as they lay before it was shuffled."""
    if labels is None or order is None:
        return labels
    return [labels[row] for row in _rows(order, len(labels))]


def _rows(order: Order | None, count: int) -> Any:
    """Where each sample of an array stands in the store."""
    return np.arange(count) if order is None else order.place(range(count))
