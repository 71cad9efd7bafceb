"""The course of a job, or of a slice of one: what happens between its first and its last write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from ..errors import StoreError
from ..stores.contract import Published, ShardSpec
from ..stores.location import is_remote
from ..stores.manifest import Manifest
from ..stores.publish import FileOps, remove_leftovers
from ..stores.segments import remove_parts
from .duplicates import dropped_of, find_duplicates
from .engines import run_tasks, take_back
from .finished import finished, just_finished
from .job import header
from .locks import JobLocks
from .planned import PlannedJob
from .remote_storage import shard_files
from .slices import Slice
from .sources import keep_sources
from .summary import Progress, Summary, counter
from .task import ShardResult, Task

_UNCONDITIONAL = (
    "the target's server does not refuse to write over an object (If-None-Match): each was looked for before it was "
    "written, so a second writer of the same name at the same moment would not have been seen"
)


class Run:
    """A job, or a slice of one: begun or taken up, worked on, then finished or stopped.

    What several slices share (record, marker, labels, manifest) is written inside the gate of their locks, else each
    touches its own shards alone.
    """

    def __init__(self, job: PlannedJob, ops: FileOps, locks: JobLocks) -> None:
        self._job, self._ops, self._locks = job, ops, locks
        self._slice = job.options.slice
        self._shards = [shard for shard in job.shards if shard.index in self._slice]
        self._results: dict[int, ShardResult] = {}
        self._begun: dict[int, Task] = {}

    def start(self, summary: Summary, progress: Progress) -> None:
        """Begin the target, or take up what a stopped attempt or another slice left there."""
        job, target, owner = self._job, self._job.target, self._job.owner
        with self._locks.gate():
            self._locks.take()
            owner.sweep(self._slice)
            if not self._locks.others():
                owner.sweep({None})
            if not self._slice.whole:
                job.admit()
            owner.write_record(job.record)
            if job.options.duplicates is not None:
                self._look_for_duplicates(summary, progress)
            if not target.resumed:
                self._begin()
                return
            target.go_on(job.store_id, owner.read_replaced())
        target.sweep(job.store_id, self._slice, self._files)
        self._look_for(self._shards, job.options.check)
        if self._results:
            summary.notes.append(f"resumed: {len(self._results)} of {self._counted()} were done already")
        if job.owner.has_segments():
            summary.notes.append("resumed: some segments of a large array were done already")

    def work(self, progress: Progress) -> None:
        """Do the shards that do not count yet."""
        job = self._job
        if is_remote(job.target.root) and not job.target.resumed:
            # A local folder that was empty holds no temporaries; uploads are seen in no listing of files.
            job.target.sweep(job.store_id, self._slice, self._files)
        keep_sources(job.owner, job.source.stamps())
        todo = [shard for shard in self._shards if shard.index not in self._results]
        advance = counter(progress, sum(len(shard.samples) for shard in self._shards))
        advance(sum(len(shard.samples) for shard in self._shards if shard.index in self._results))
        if todo and job.target.resumed:
            job.target.unfinish()
            self._discard_lost(todo)
        engine = run_tasks(job, self._tasks(todo), len(todo), advance, self._locks.descriptor, self._ops)
        with closing(engine) as done:
            for task, result in done:
                self._results[task.shard.index] = result
                del self._begun[task.shard.index]

    def finish(self, summary: Summary) -> None:
        """Publish labels and manifest where all shards are done and no other slice runs, which would do it itself.

        Slices come through the gate one by one, and give their lock up inside it: so the last finds no other.
        """
        for shard in self._shards:
            result = self._results[shard.index]
            summary.add(len(shard.samples), result.published, result.refused)
        with self._locks.gate():
            left, words = self._left()
            if words:
                self._job.target.unfinish()
                summary.shards_left = left
                summary.notes.append(f"slice {self._slice} is done; {words}")
                self._locks.release()
            else:
                self._publish(summary)
        if not (words or self._slice.whole):
            summary.notes.append(f"slice {self._slice} was the last: the store is finished")

    def _left(self) -> tuple[int, str]:
        """(how many shards of other slices are to be done, which slices and why the store waits for them)."""
        job, running = self._job, self._locks.others()
        others = [shard for shard in job.shards if shard.index not in self._slice]
        missing = [shard for shard in others if not job.owner.has_journal(shard.index)]
        if not (missing or running):
            self._look_for(others, False)
            missing = [shard for shard in others if shard.index not in self._results]
        counts = Counter(shard.index % self._slice.of + 1 for shard in missing)
        words = []
        for number in sorted({*counts, *(part.number for part in running)}):
            holder = running.get(Slice(number, self._slice.of))
            words.append(f"{counts[number]} of slice {number} ({holder or 'which does not run'})")
        return len(missing), f"{len(missing)} shards are left: {', '.join(words)}" if words else ""

    def _publish(self, summary: Summary) -> None:
        """Labels and manifest, without what only the replaced store had."""
        job, target = self._job, self._job.target
        target.sweep(job.store_id, None)
        if job.form.joined:
            target.sweep(job.store_id, {None})  # some of what belongs to no shard lies in folders
        remove_leftovers([job.owner.root], job.store_id, self._ops)
        if not is_remote(target.root):
            remove_parts(target.root, job.store_id, self._ops)  # of a shard whose entry was the last that was written
        job.owner.forget_segments()
        published = tuple(self._results[shard.index].published for shard in job.shards)
        if target.resumed and job.options.engine == "ray":
            # Tasks of a dead driver hold no lock, and may have ended after it.
            target.sweep(job.store_id, self._slice, self._files)
        extras = [*self._copy_labels(), *self._close(published)]
        if target.old:
            for shard in published:
                target.keep(shard_files(target.root, job.form, shard))
        target.keep(extra.name for extra in extras)
        named = job.source.named or job.form.cut
        sealed = job.seal.seal_header(header(job.scheme, job.options, job.dtype, job.shape, named))
        count = sum(shard.count for shard in published)
        manifest = Manifest(job.kind, job.store_id, job.dtype, job.shape, count, published, tuple(extras), sealed)
        target.finish(manifest, job.store_id)
        if not target.storage.conditional:
            summary.notes.append(_UNCONDITIONAL)
        job.owner.forget_replaced()

    def stop(self, tell: Callable[[str], None]) -> None:
        """After a failure: what counts stays, nothing half-done does. Says how to go on where there is something."""
        try:
            resumable = self._clear_up()
        except (StoreError, OSError) as error:
            if not is_remote(self._job.target.root):
                raise
            # It may be out of reach, which the job then stops for: that error is the one to be told.
            tell(f"what is half-written could not be removed; the same command with --resume does that ({error})")
            return
        if resumable:
            done = sum(shard.index in self._results for shard in self._shards)
            parts = ", and of the next some segments" if self._job.owner.has_segments() else ""
            tell(
                f"{done} of {self._counted()} are done and stay{parts}, nothing half-written does; "
                "the same command with --resume goes on"
            )

    def _clear_up(self) -> bool:
        """Whether there is something to resume."""
        job, target, results = self._job, self._job.target, self._results
        job.owner.sweep(self._slice)  # a worker that was ended had no time to
        for task in self._begun.values():
            take_back(job, task, self._ops)
            check = job.options.check
            if just_finished(target.root, job.form, task.shard, job.store_id, job.owner, check) is None:
                target.discard(job.files_of(task.shard))
            else:
                results[task.shard.index] = ShardResult(Published("", 0, 0, ""))
        with self._locks.gate():
            kept = bool(results) or not self._slice.whole or job.owner.has_segments()
            if not (kept or is_remote(target.root)):
                remove_parts(target.root, job.store_id, self._ops)
            return target.stop(job.store_id, kept, self._slice, self._files)

    def _look_for(self, shards: list[ShardSpec], check: bool) -> None:
        """Enter the results of those that count."""
        job = self._job
        self._results |= finished(job.target.root, job.form, shards, job.store_id, job.owner, check)

    def _discard_lost(self, todo: list[ShardSpec]) -> None:
        """What counted once and does not any more is removed first where nothing is written over."""
        job = self._job
        for shard in todo:
            if is_remote(job.target.root) and job.owner.has_journal(shard.index):
                job.target.discard(job.files_of(shard))

    def _files(self) -> Iterator[str]:
        """The files that this slice publishes, or whoever finishes the job."""
        for shard in self._shards:
            yield from self._job.files_of(shard)
        yield from (name for _, name in self._job.labels())
        yield from self._job.form.closing_labels(shard.name for shard in self._job.shards)

    def _look_for_duplicates(self, summary: Summary, progress: Progress) -> None:
        found = find_duplicates(self._job, progress)
        summary.duplicates = found.equal
        where = f"; all are listed in {self._job.owner.root}/duplicates-*.json" if found.equal else ""
        summary.notes.append(found.words + where)

    def _counted(self) -> str:
        return f"{len(self._shards)} shards" + ("" if self._slice.whole else f" of slice {self._slice}")

    def _begin(self) -> None:
        target, owner = self._job.target, self._job.owner
        if target.old:
            target.refuse_unknown(self._job.files())
            owner.write_replaced(target.old)
        else:
            owner.forget_replaced()
        target.begin(self._job.store_id)

    def _tasks(self, shards: list[ShardSpec]) -> Iterator[Task]:
        """The work, entered in `_begun` when it is asked for."""
        for task in self._job.tasks(shards):
            if self._job.options.duplicates == "drop":
                task = replace(task, dropped=dict(dropped_of(self._job.owner, task.shard.index)) | dict(task.dropped))
            self._begun[task.shard.index] = task
            yield task

    def _copy_labels(self) -> list[Published]:
        """Labels pass: training needs them."""
        copied = []
        for original, name in self._job.labels():
            copied.append(self._extra(name, self._job.labels_data(original, name)))
        return copied

    def _extra(self, name: str, data: bytes) -> Published:
        job = self._job
        return job.target.publish(name, data, job.store_id, anew=job.options.check)

    def _close(self, published: Sequence[Published]) -> list[Published]:
        """Publish what makes the shards one whole, where there is such."""
        job = self._job
        if not job.form.joined:
            return []
        labels = [job.written_labels(shard) for shard in job.shards]
        files = job.form.closing(job.dtype, job.shape, published, labels)
        return [self._extra(name, data) for name, data in files]
