"""The work on one shard: read, transform, write, publish, enter in the journal. The same function serves a job in one
process and every worker process; nothing here knows how many shards or workers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ..errors import StoreDamagedError, StoreError
from ..stores.contract import Allow, Array, Batch, KeepingWriter, Published, Refused, ShardWriter, Value
from ..stores.location import is_remote
from ..stores.objects import objects_at
from ..stores.publish import naming_a_full_disk, remove_leftovers
from ..stores.staging import remove_dead_staging
from .attempts import persistently
from .formats import format_of
from .job import refuse_other_versions, refused_error
from .naming import in_order
from .owner import OwnerFolder
from .remote_storage import upload, writing_place
from .seal import StoreSeal
from .summary import Advance
from .task import JobContext, Made, Result, Task
from .transforming import Plans, Transform, planner, transform_on


class Entries:
    """Enters shards in the owner's folder, where they then count as done."""

    def __init__(self, owner: OwnerFolder) -> None:
        self._owner = owner

    @property
    def owner(self) -> OwnerFolder:
        """Where entries go."""
        return self._owner

    def enter(self, task: Task, made: Made, publish: Callable[[], None] = lambda: None) -> None:
        """Enter a published shard.

        Args:
            publish: makes the shard visible, where it is not yet: when all but its entry is on disk.

        Raises:
            StoreError: the journal has another digest for this shard, so that its bytes are not deterministic.
        """
        index, owner = task.shard.index, self._owner
        refuse_another_result(index, self.result(index), made.published)
        # The entry comes last: it makes the shard count, so all else of the shard is on disk by then.
        owner.write_ledger(index, made.ledger)
        owner.write_quarantine(index, made.refused)
        publish()
        owner.write_journal(made.published, index, made.attempt, len(task.shard.samples), len(made.refused))

    def result(self, index: int) -> Result | None:
        """What a shard's entry says was made; None where it has none."""
        try:
            entry = self._owner.read_journal(index)
        except StoreDamagedError:
            return None
        return None if entry is None else Result(entry["output_sha256"], entry["outputs"])


def refuse_another_result(index: int, entered: Result | None, published: Published) -> None:
    """Refuse a shard that was made with another result before.

    Raises:
        StoreError: that.
    """
    if entered is not None and entered != (published.sha256, published.count):
        raise StoreError(
            f"shard {index} came out with other bytes than the journal has for the same job: the work is not "
            "deterministic on this machine (other library builds?); nothing further is published"
        )


class ShardWork:
    """Does the shards of one job, one after the other.

    Args:
        entries: enters each shard; None: whoever gets what was made does.

    Raises:
        StoreError: this process has other versions than the job.
        BackendError: the device of the options cannot be used in it.
    """

    def __init__(self, job: JobContext, entries: Entries | None) -> None:
        refuse_other_versions(job.versions)
        self._job, self._entries = job, entries
        self._plans = Plans(planner(job.scheme, job.key, job.options))
        self._transform = transform_on(job.options.device, job.threads)
        self._seal = StoreSeal(job.key, job.store_id)
        self._objects = objects_at(job.target, job.conditional) if is_remote(job.target) else None

    def make(self, task: Task, advance: Advance) -> Made:
        """Transform, publish and enter one shard; errors that may pass are tried again from the start.

        Args:
            task: the shard.
            advance: called as work is done.

        Raises:
            ImageError: a sample cannot be taken, and `on_error` is "fail".
            StoreError: the journal has another digest for this shard, so that its bytes are not deterministic.
            OSError: reading or writing failed, the last time.
        """
        return persistently(lambda attempt, tally: self._attempt(task, attempt, tally), advance)

    def _attempt(self, task: Task, attempt: int, advance: Advance) -> Made:
        job, index = self._job, task.shard.index
        with writing_place(job.target, job.store_id, job.ops) as place, naming_a_full_disk(place.root):
            writer = format_of(job.kind).writer(place, task.shard, task.contents)
            published, ledger, refused = self.encrypted(task, writer, advance)
            if self._objects is not None:
                upload(self._objects, place.root, format_of(job.kind), published, replace=job.retire is not None)
        made = Made(published, refused, self._seal.seal_ledger(index, published.sha256, ledger), attempt)
        if self._entries is not None:
            self._entries.enter(task, made)
        return made

    def encrypted(
        self, task: Task, writer: ShardWriter, advance: Advance, places: range | None = None
    ) -> tuple[Published, Mapping[str, Any], list[Refused]]:
        """`encrypt_shard` with what the job says; with `places` nothing becomes visible."""
        job = self._job

        def allow(published: Published) -> None:
            if places is None:
                self.refuse_another_result(task, published)
                self.retire()

        on_error, decoders = job.options.on_error, job.decoders
        return encrypt_shard(task, self._plans, self._transform, writer, on_error, decoders, advance, allow, places)

    def refuse_another_result(self, task: Task, published: Published) -> None:
        """As the function does, before the shard is visible: from then on its entry would count it."""
        index, entries = task.shard.index, self._entries
        refuse_another_result(index, task.entered if entries is None else entries.result(index), published)

    def retire(self) -> None:
        """Take away the manifest of a store that is being replaced, before the first shard is visible."""
        if self._job.retire is None:
            return
        if self._objects is not None:
            self._objects.remove(iter([self._job.retire.name]))
        elif self._job.retire.exists():
            self._job.ops.unlink(self._job.retire)
            self._job.ops.fsync_directory(self._job.retire.parent)


def clear_shard(job: JobContext, task: Task) -> None:
    """Remove what a dead worker left half-written of a shard on its way to the target."""
    if is_remote(job.target):
        remove_dead_staging()
        ours = [*task.names.values(), task.shard.name]
        objects_at(job.target).abort_uploads(lambda found: found.intersection(ours))
        return
    folders = {(job.target / name).parent for name in (*task.names.values(), task.shard.name)} | {job.target}
    remove_leftovers((folder for folder in folders if folder.is_dir()), job.store_id, job.ops, {task.shard.index})


def encrypt_shard(
    task: Task,
    plans: Plans,
    transform: Transform,
    writer: ShardWriter,
    on_error: str,
    decoders: int,
    advance: Advance,
    allow: Allow,
    places: range | None = None,
) -> tuple[Published, Mapping[str, Any], list[Refused]]:
    """Transform and publish one shard; on any error nothing of it stays. Gives the shard, its ledger, its refused.

    Args:
        allow: see `ShardWriter`.
        places: those of the shard that `writer` takes; None: all.
    """
    names, source = task.names, task.source
    order = in_order(names) if places is None else in_order(names)[places.start : places.stop]
    originals: list[list[str]] = []
    bounds: list[Any] = []
    refused: list[Refused] = []
    position = 0 if places is None else places.start
    try:
        for item in source.read(order, decoders):
            if isinstance(item, Refused):
                refused.append(item)
                if on_error == "fail":
                    raise refused_error([item])
                advance(1, refused=1)
                continue
            item = _without(item, task, refused, advance)
            if not len(item.images):
                continue
            plan = plans.of(item.images)
            images, limits = transform(item.images, plan, item.spare)
            outputs = [names[index] for index in item.indices]
            run, labels = range(position, position + len(images)), _labels(task, item)
            write_kept(writer, run, outputs, images, labels, item.kept)
            if any(outputs):
                originals += [[name, source.path_of(i)] for name, i in zip(outputs, item.indices, strict=True)]
            if plan.normalize.startswith("minmax"):
                bounds += limits.tolist()
            position += len(images)
            advance(len(images), images.nbytes)
        published = writer.publish(allow)
    except BaseException:
        writer.abort()
        raise
    return published, ledger_of(task, originals, bounds), refused


def ledger_of(task: Task, originals: list[list[str]], bounds: list[Any]) -> dict[str, Any]:
    """A shard's ledger, from the names that its samples have and had, and their bounds."""
    ledger: dict[str, Any] = {"names": originals, "bounds": bounds}
    if task.shard.name != task.original:
        ledger["file"] = task.original
    return ledger


def write_kept(
    writer: ShardWriter,
    positions: Sequence[int],
    names: Sequence[str],
    images: Array,
    labels: Sequence[int] | None,
    kept: Sequence[Mapping[str, Value]] | None,
) -> None:
    """Write samples, with the values of fields that pass unchanged where there are some, for which the kind of target
    has a place then."""
    if kept is None:
        writer.write(positions, names, images, labels)
    else:
        cast(KeepingWriter, writer).write(positions, names, images, labels, kept)


def _without(batch: Batch, task: Task, refused: list[Refused], advance: Advance) -> Batch:
    """A batch without the samples that are left out, which are entered as refused."""
    stay = [place for place, index in enumerate(batch.indices) if index not in task.dropped]
    if len(stay) == len(batch.indices):
        return batch
    for index in set(batch.indices) & task.dropped.keys():
        refused.append(Refused(index, task.source.path_of(index), task.dropped[index]))
        advance(1, refused=not refused[-1].equal)
    labels = None if batch.labels is None else [batch.labels[place] for place in stay]
    kept = None if batch.kept is None else [batch.kept[place] for place in stay]
    indices = [batch.indices[place] for place in stay]
    return replace(batch, indices=indices, images=batch.images[stay], labels=labels, kept=kept)


def _labels(task: Task, batch: Batch) -> list[int] | None:
    """The class numbers of a batch, where the shard is to hold some."""
    if not task.contents.labelled:
        return None
    if batch.labels is not None:
        return list(batch.labels)
    found = [task.source.label_of(index) for index in batch.indices]
    if None in found:
        raise StoreError(
            f"some samples have a class number and some have none: {task.source.path_of(batch.indices[0])}"
        )
    return [label for label in found if label is not None]
