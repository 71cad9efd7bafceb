"""The work on one shard of a decrypt: read, transform back, write, publish, enter in the journal. The same function
serves a job in one process and every worker process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..canonical import canonical_json
from ..errors import StoreDamagedError, StoreError
from ..functional import decrypt
from ..keys import Key
from ..stores.contract import Published, ShardWriter
from ..stores.folder_writer import FolderWriter
from ..stores.listing import Listed
from ..stores.manifest import Manifest
from ..stores.publish import OS, FileOps, naming_a_full_disk, remove_leftovers
from ..stores.segments import SEGMENT_BYTES, PartFile, cut
from .attempts import persistently
from .formats import Place, StoredBatch, StoredShard
from .owner import OwnerFolder
from .plain_journal import PlainJournal
from .plain_segments import PlainSegments
from .reordered import ReorderedWriter
from .stored import StoredImages
from .summary import Advance
from .worker import write_kept


@dataclass(frozen=True)
class PlainTask:
    """One shard of a store, what its file is called where it is to be one, and from the stored names of its samples to
    those that they get back, in the order of the ledger; empty where none are known."""

    index: int
    shard: Published
    name: str
    restored: Mapping[str, str]

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"shard {self.index}"


@dataclass(frozen=True)
class PlainJob:
    """What all shards of a decrypt share. It holds the key, so it pickles only while a worker process is started.

    Attributes:
        store, owner: the store, and the owner's folder.
        manifest: as `digest_of` gives it.
        target: the folder that files are published in.
        journal: the journal's folder.
        threads: of the kernels; None: their own choice.
        segment_bytes: see `JobOptions`.
    """

    key: Key
    store: Path
    owner: Path
    manifest: str
    target: Path
    journal: Path
    job_id: str
    threads: int | None
    ops: FileOps = OS
    segment_bytes: int = SEGMENT_BYTES


def digest_of(manifest: Manifest) -> str:
    """The SHA-256 of what a manifest says of its store's files; not of its header, whose nonce changes when a store is
    finished again."""
    files = {"shards": [vars(shard) for shard in manifest.shards], "extras": [vars(extra) for extra in manifest.extras]}
    about = {"kind": manifest.kind, "store": manifest.store_id, "dtype": manifest.dtype, "count": manifest.count}
    shape = None if manifest.shape is None else list(manifest.shape)
    return hashlib.sha256(canonical_json(files | about | {"shape": shape})).hexdigest()


@dataclass(frozen=True)
class PlainDuty:
    """Decrypting shards, as `processes.Duty`."""

    job: PlainJob
    advice = "fewer --workers need less"

    def begin(self) -> Callable[[PlainTask, Advance], Published]:
        """What does one task in this process.

        Raises:
            StoreError: the store is not the one that the job began with.
        """
        store = StoredImages(self.job.store, self.job.key)
        if digest_of(store.manifest) != self.job.manifest:
            raise StoreError(f"{self.job.store} changed since the job began; decrypt it when it is at rest")
        return PlainWork(self.job, store).make

    def clear(self, task: PlainTask) -> None:
        """Remove the temporaries that a dead worker left; files that it made visible are made again."""
        job = self.job
        folders = {(job.target / name).parent for name in (*task.restored.values(), task.name)} | {job.target}
        remove_leftovers((f for f in folders if f.is_dir()), job.job_id, job.ops, {task.index})
        PlainJournal(job.journal, job.job_id, job.ops).sweep({task.index})


class PlainWork:
    """Decrypts the shards of one job, one after the other."""

    def __init__(self, job: PlainJob, store: StoredImages) -> None:
        self._job, self._store = job, store
        self._owner = OwnerFolder(job.owner, store.seal)
        self._journal = PlainJournal(job.journal, job.job_id, job.ops)

    def make(self, task: PlainTask, advance: Advance) -> Published:
        """Decrypt, publish and enter one shard; errors that may pass are tried again from the start.

        Raises:
            StoreDamagedError: a file of the store, or the ledger, is not the one that was published.
            OSError: reading or writing failed, the last time.
        """
        return persistently(lambda attempt, tally: self._attempt(task, tally), advance)

    def _attempt(self, task: PlainTask, advance: Advance) -> Published:
        job = self._job
        with naming_a_full_disk(job.target), self._store.opened(task.shard) as opened:
            writer = self._writer(opened, task)
            published = self._decrypt(task, opened.read(), writer, advance)
        try:
            with naming_a_full_disk(job.journal):
                self._journal.enter(task.index, published, _files(writer, published))
        except BaseException:
            if isinstance(writer, PlainSegments):  # what a stop would remove, and segments are worth keeping
                writer.abort()
            raise
        if isinstance(writer, PlainSegments):
            writer.end()
        return published

    def _writer(self, opened: StoredShard, task: PlainTask) -> ShardWriter:
        """What writes the shard: a large array in segments, unless it was shuffled."""
        job, file, order = self._job, opened.plain_file(task.name), self._store.order(task.index)
        if order is not None:  # no image is where it was, so that a segment of the file is not one of the store
            place = Place(job.target, job.job_id, job.ops)
            writer = opened.plain_writer(place, task.index, task.name)
            return ReorderedWriter(writer, order, task.shard.count, place, task.index)
        places = [] if file is None else cut(file, job.segment_bytes)
        if file is None or len(places) < 2:
            return opened.plain_writer(Place(job.target, job.job_id, job.ops), task.index, task.name)
        part = PartFile(job.target, job.job_id, task.index, task.name, file, job.ops)
        return PlainSegments(self._journal, task.index, part, places)

    def _decrypt(
        self, task: PlainTask, batches: Iterable[StoredBatch], writer: ShardWriter, advance: Advance
    ) -> Published:
        """Write and publish one shard; on any error nothing of it stays."""
        store = self._store
        try:
            bounds, order = self._bounds(task)
            by_place = dict(enumerate(task.restored.values()))  # where the store keeps no names, the order tells
            for batch in batches:
                run = range(batch.position, batch.position + len(batch.images))
                if isinstance(writer, PlainSegments) and not writer.needs(run):
                    advance(len(batch.images))
                    continue
                limits = bounds[_positions(batch, order)] if len(bounds) else None
                if limits is None and store.needs_bounds and len(batch.images):
                    raise StoreDamagedError(f"the ledger of shard {task.index} holds no bounds")
                plan = store.plans.of(batch.images)
                images = decrypt(batch.images, plan, bounds=limits, threads=self._job.threads)
                outputs = [
                    by_place.get(batch.position + i, "") if not name else task.restored.get(name, as_png_stored(name))
                    for i, name in enumerate(batch.names)
                ]
                write_kept(writer, run, outputs, images, batch.labels, batch.kept)
                advance(len(images), images.nbytes)
            return writer.publish()
        except BaseException:
            writer.abort()
            raise

    def _bounds(self, task: PlainTask) -> tuple[Any, dict[str, int]]:
        """(bounds of the shard's images, where each stored name's are); none where the store needs none."""
        if not self._store.needs_bounds:
            return (), {}
        ledger = self._owner.read_ledger(task.index, task.shard.sha256) or {}
        order = {name: place for place, (name, _) in enumerate(ledger.get("names", []))}
        return np.array(ledger.get("bounds", []), np.int32), order


def as_png_stored(name: str) -> str:
    """What a file is called whose original name is not known."""
    return name.removesuffix(".npy").removesuffix(".png") + ".png"


def _positions(batch: StoredBatch, order: dict[str, int]) -> list[int]:
    if order and all(batch.names):
        return [order[name] for name in batch.names]
    return list(range(batch.position, batch.position + len(batch.images)))


def _files(writer: ShardWriter, published: Published) -> list[Listed]:
    """The files of a published shard: a folder's many, else one."""
    if isinstance(writer, FolderWriter):
        return list(writer.listed())
    return [Listed(published.sha256, published.size, published.name)]
