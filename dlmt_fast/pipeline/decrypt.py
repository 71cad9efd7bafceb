"""`decrypt_store`: from a store of transformed images back to images."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

from ..errors import ParameterError, StoreError
from ..keys import Key
from ..stores.contract import Published
from ..stores.location import located
from ..stores.publish import OS, FileOps
from ..stores.segments import SEGMENT_BYTES, remove_parts
from .formats import Place
from .formats.contract import publish_extra
from .locks import JobLocks
from .plain_planned import PlannedDecrypt
from .plain_shard import PlainDuty, PlainTask, PlainWork
from .processes import InTurn, run_here, run_in_processes
from .slices import WHOLE
from .summary import Advance, Progress, Summary, counter, no_progress


def decrypt_store(
    source_path: str | Path,
    target_path: str | Path,
    key: Key,
    owner_folder: Callable[[str], Path],
    progress: Progress = no_progress,
    workers: int = 1,
    resume: bool = False,
    check: bool = False,
    segment_bytes: int = SEGMENT_BYTES,
    ops: FileOps = OS,
    tell: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Recover the images of a store: a store of the same kind, a folder's images as PNG under their original names.

    A shard counts once its entry is in the target's journal, a hidden folder that ends with the job. A decrypt that is
    stopped, fails or is killed after that leaves its shards; the same call with `resume` does the rest. One that stops
    before any shard counts leaves the target as it was.

    Args:
        source_path: a store that `encrypt_store` wrote, or its URL.
        target_path: a new folder of this machine, or a new file for a store that is one file.
        owner_folder: from the store's id to the owner's folder. Without it names stay hidden, and min-max stores
            cannot be decrypted.
        progress: called with a `Standing` as work is done.
        workers: how many shards are worked on at once, each in a process of its own; one shard, or IDX or .npy files,
            are done in this process.
        resume: go on with this same decrypt where it was stopped or killed; with nothing there, start.
        check: with `resume`, compare the digests of what is there, not only the sizes.
        segment_bytes: of an array that goes to one .npy or IDX file, what is done again after a kill; see `JobOptions`.
        ops: the disk.
        tell: called with what is left and how to go on, when the job stops before its end.

    Raises:
        WrongKeyError: the store was made with another key.
        StoreDamagedError: a file is not the one that was published.
        StoreError: among others, `resume` with another store, or with other ledgers; the message says what differs.
        DlmtError, OSError: whatever else is wrong.
    """
    if check and not resume:
        raise ParameterError("check is about what a stopped decrypt left: it goes with resume")
    if workers < 1:
        raise ParameterError(f"workers must be at least 1, got {workers}")
    started = time.perf_counter()
    source_path, target_path = located(source_path), located(target_path)
    job = PlannedDecrypt(source_path, target_path, key, owner_folder, resume, ops)
    manifest = job.store.manifest
    summary = Summary("decrypt", str(source_path), str(target_path), manifest.store_id, manifest.kind, "uint8")
    with job.begin() as locks:
        run = _Run(job, workers, segment_bytes, locks)
        try:
            run.start(check, summary)
            run.work(progress)
            run.finish(summary)
        except BaseException:
            run.stop(tell)
            raise
    if job.store.form.named and job.names.missing:
        summary.notes.append(f"original names are not restored: {job.owner.root} {job.names.lacking} (--owner DIR)")
    summary.seconds = time.perf_counter() - started
    return summary


class _Run:
    """A decrypt that holds its lock: worked on, then finished or stopped."""

    def __init__(self, job: PlannedDecrypt, workers: int, segment_bytes: int, locks: JobLocks) -> None:
        self._job, self._workers, self._segment_bytes, self._locks = job, workers, segment_bytes, locks
        self._count = len(job.store.manifest.shards)
        self._done = bytearray(self._count)  # a byte a shard
        self._sizes = 0
        self._begun: dict[int, PlainTask] = {}

    def start(self, check: bool, summary: Summary) -> None:
        """Find what an earlier attempt did, and remove what it left half-written."""
        job = self._job
        if not job.target.resumed:
            return
        job.target.sweep(job.id, WHOLE)
        job.journal.sweep(WHOLE)
        if job.target.ended:  # nothing is left but to clear up
            self._done = bytearray(b"\1" * self._count)
            summary.notes.append("resumed: all was done already, and only clearing up was left")
            return
        for index in range(self._count):
            entry = job.counted(index, check)
            if entry is not None:
                self._note(index, entry.published)
        if any(self._done):
            summary.notes.append(f"resumed: {sum(self._done)} of {self._count} shards were done already")
        if job.journal.has_segments():
            summary.notes.append("resumed: some segments of a large array were done already")

    def work(self, progress: Progress) -> None:
        """Do the shards that do not count yet."""
        shards = self._job.store.manifest.shards
        advance = counter(progress, self._job.store.manifest.count)
        advance(sum(shard.count for shard, done in zip(shards, self._done, strict=True) if done))
        with closing(self._engine(advance)) as done:
            for task, published in done:
                self._note(task.index, published)
                del self._begun[task.index]

    def finish(self, summary: Summary) -> None:
        """Publish what belongs to no shard, and clear up; then nothing of the job is left but its files."""
        job = self._job
        if not job.target.ended:
            for name, data in job.extras(self._published):
                self._publish_extra(name, data)
            remove_parts(job.target.root, job.id, job.ops)  # of a shard whose entry was the last that was written
            job.target.end(job.id)
        job.journal.remove()
        job.target.finish(None, job.id)
        manifest = job.store.manifest
        summary.add(manifest.count, Published("", manifest.count, self._sizes, ""), [])

    def stop(self, tell: Callable[[str], None]) -> None:
        """After a failure: what counts stays, nothing half-done does. Says how to go on where there is something."""
        job = self._job
        if not job.target.marked:  # the very last step failed
            tell("all is decrypted, and only clearing up was not ended")
            return
        job.journal.sweep(WHOLE)  # a worker that was ended had no time to
        for index, task in self._begun.items():
            entry = job.counted(index, False)
            if entry is None:
                job.target.discard(job.names.files(task))
            else:
                self._note(index, entry.published)
        parts = ", and of the next some segments" if job.journal.has_segments() else ""
        if not parts:
            remove_parts(job.target.root, job.id, job.ops)
        if not (any(self._done) or parts or job.target.resumed):
            job.journal.remove()
        if job.target.stop(job.id, any(self._done) or bool(parts), WHOLE):
            tell(
                f"{sum(self._done)} of {self._count} shards are done and stay{parts}, nothing half-written does; "
                "the same command with --resume goes on"
            )

    def _engine(self, advance: Advance) -> Generator[tuple[PlainTask, Published], None, None]:
        job, left = self._job, self._count - sum(self._done)
        # Reading and writing whole arrays takes less time than starting processes.
        processes = min(self._workers, left) if job.store.form.named else 1
        if processes > 1:
            duty = PlainDuty(job.context(1, self._segment_bytes))
            return run_in_processes(duty, InTurn(self._tasks()), processes, advance, self._locks.descriptor)
        return run_here(PlainWork(job.context(None, self._segment_bytes), job.store).make, self._tasks(), advance)

    def _tasks(self) -> Iterator[PlainTask]:
        """The work, entered in `_begun` when it is asked for."""
        for index in range(self._count):
            if not self._done[index]:
                self._begun[index] = task = self._job.names.task(index)
                yield task

    def _note(self, index: int, published: Published) -> None:
        self._done[index] = 1
        self._sizes += published.size

    def _published(self, index: int) -> Published:
        entry = self._job.journal.read(index)
        if entry is None:
            raise StoreError(f"the entry of shard {index} in {self._job.journal.root} is gone; --resume does it again")
        return entry.published

    def _publish_extra(self, name: str, data: bytes) -> None:
        """An attempt before this one may have published it."""
        path, job = self._job.target.root / name, self._job
        if not path.is_file() or path.read_bytes() != data:
            job.target.refuse_unknown([name])
            publish_extra(Place(job.target.root, job.id, job.ops), name, data)
