"""Doing shards where the owner's folder is at hand: large arrays by segments, all else as `worker.ShardWork` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError
from ..stores.contract import Published, Reader
from ..stores.idx import IdxSource
from ..stores.publish import naming_a_full_disk
from .attempts import persistently
from .owner import OwnerFolder
from .seal import StoreSeal
from .segmented import SegmentedShard, SegmentTask
from .summary import Advance
from .task import JobContext, Made, ShardResult, Task
from .worker import Entries, ShardWork, clear_shard


class SegmentWork(ShardWork):
    """Does the shards of one job, or segments of them, and enters each."""

    def __init__(self, job: JobContext, owner: OwnerFolder) -> None:
        super().__init__(job, Entries(owner))
        self._owner = owner

    def make(self, task: Task, advance: Advance) -> Made:
        """As `ShardWork.make`; of a large array those segments that do not count yet."""
        shard = SegmentedShard.of(self._job, self._owner, task)
        if shard is None:
            return super().make(task, advance)
        left = shard.begin()
        advance(len(task.shard.samples) - sum(len(each.places) for each in left))
        for each in left:
            self.make_segment(each, advance)
        return self._finish(task, shard)

    def make_segment(self, task: SegmentTask, advance: Advance) -> None:
        """Transform and enter one segment of a shard whose file is begun. Raises what `make` raises."""
        shard = SegmentedShard.of(self._job, self._owner, task.task)
        assert shard is not None, "a shard has the same segments everywhere"

        def attempt(number: int, tally: Advance) -> None:
            with naming_a_full_disk(self._job.target):
                writer = shard.part.writer(task.places)
                _, ledger, _ = self.encrypted(task.task, writer, tally, task.places)
            shard.enter(task.number, writer.written, ledger["bounds"])

        persistently(attempt, advance)

    def _finish(self, task: Task, shard: SegmentedShard) -> Made:
        """Publish and enter a shard all of whose segments count."""

        def publish() -> None:
            self.retire()
            shard.part.publish()

        def attempt(number: int, tally: Advance) -> Made:
            try:
                with naming_a_full_disk(self._job.target):
                    published, ledger = shard.sealed()
                    self._compare(task, shard, published)
                    made = Made(published, [], ledger, number)
                    Entries(self._owner).enter(task, made, publish)
            except BaseException:
                shard.part.take_back()
                raise
            shard.end()
            return made

        return persistently(attempt, lambda samples, size=0, refused=0: None)

    def _compare(self, task: Task, shard: SegmentedShard, published: Published) -> None:
        """Refuse another result than the journal has. Its segments go: who resumes does not go on with them."""
        try:
            self.refuse_another_result(task, published)
        except StoreError:
            shard.end()
            raise


def in_turn(source: Reader, shard: int) -> bool:
    """Whether an array can be read from its start only."""
    return isinstance(source, IdxSource) and source.compressed(shard)


@dataclass(frozen=True)
class ShardDuty:
    """Transforming shards and segments, as `processes.Duty`; `owner` is the owner's folder."""

    job: JobContext
    owner: Path
    advice = "fewer --workers or a smaller --shard-size need less"

    def begin(self) -> Callable[[Task | SegmentTask, Advance], ShardResult | None]:
        """What does one task in this process."""
        work = SegmentWork(self.job, self._folder())

        def do(task: Task | SegmentTask, advance: Advance) -> ShardResult | None:
            if isinstance(task, SegmentTask):
                work.make_segment(task, advance)
                return None
            return work.make(task, advance).result

        return do

    def left(self, task: Task, advance: Advance) -> list[SegmentTask]:
        """Begin a large array's file; gives the segments that do not count yet. None for another shard, and where each
        would have to read those before: these are for one worker."""
        shard = SegmentedShard.of(self.job, self._folder(), task)
        if shard is None or in_turn(task.source, task.shard.index):
            return []
        left = shard.begin()
        advance(len(task.shard.samples) - sum(len(each.places) for each in left))
        return left

    def take_back(self, task: Task) -> None:
        """Of a large array whose shard does not count, hide the file again, where it was made visible."""
        shard = SegmentedShard.of(self.job, self._folder(), task)
        if shard is not None:
            shard.take_back()

    def clear(self, task: Task | SegmentTask) -> None:
        """Remove what a dead worker left in the target and in the owner's folder. Of a segment that is nothing in the
        target, and with the owner others may be writing for the same shard: that is swept when the job ends."""
        if isinstance(task, SegmentTask):
            return
        clear_shard(self.job, task)
        self._folder().sweep({task.shard.index})

    def _folder(self) -> OwnerFolder:
        return OwnerFolder(self.owner, StoreSeal(self.job.key, self.job.store_id), self.job.ops)
