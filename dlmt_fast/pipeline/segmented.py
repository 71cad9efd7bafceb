"""A shard that is one large array, done in segments: each counts by itself, so that several workers do one file, and a
killed job goes on in its middle.

A segment counts once its bytes are synced in the unfinished file and its entry is with the owner: sealed, for it holds
bounds. When all do, the file is read once, compared with every entry, and published as any other; the entries end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..canonical import canonical_json
from ..stores.contract import Published
from ..stores.location import is_remote
from ..stores.segments import DamagedSegmentError, PartFile, Segment, cut
from .formats import format_of
from .owner import OwnerFolder
from .seal import StoreSeal
from .task import JobContext, Task
from .worker import ledger_of


@dataclass(frozen=True)
class SegmentTask:
    """Segment `number` of a shard: the images at `places` of it."""

    task: Task
    number: int
    places: range

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"segment {self.number} of {self.task.title}"


class SegmentedShard:
    """What is done and what is left of a shard that has several segments."""

    def __init__(self, job: JobContext, owner: OwnerFolder, task: Task, part: PartFile, places: list[range]) -> None:
        self._owner, self._task, self.part, self._places = owner, task, part, places
        self._seal, self._index, self._retire = StoreSeal(job.key, job.store_id), task.shard.index, job.retire

    @classmethod
    def of(cls, job: JobContext, owner: OwnerFolder, task: Task) -> SegmentedShard | None:
        """None where the shard is no array at fixed places, or a small one, or goes to a remote place in one piece."""
        file = None if is_remote(job.target) else format_of(job.kind).array_file(task.shard, task.contents)
        if file is None:
            return None
        places = cut(file, job.options.segment_bytes)
        if len(places) < 2:
            return None
        part = PartFile(job.target, job.store_id, task.shard.index, task.shard.name, file, job.ops)
        return cls(job, owner, task, part, places)

    def begin(self) -> list[SegmentTask]:
        """Take up the unfinished file, or make it; gives the segments that do not count yet."""
        tasks = [SegmentTask(self._task, number, places) for number, places in enumerate(self._places)]
        self.take_back()
        if not self.part.there():
            self._owner.forget_segments(self._index)  # before a file is there that they would count for
            self.part.begin()
            return tasks
        return [task for task in tasks if self._entry(task.number) is None]

    def take_back(self) -> None:
        """Where a worker was ended between the file's name and the shard's entry: it is unfinished again."""
        visible = self._retired() and self._owner.read_journal(self._index) is None and not self.part.there()
        if visible and all(self._entry(k) is not None for k in range(len(self._places))):
            self.part.take_back()

    def enter(self, number: int, written: Segment, bounds: list[object]) -> None:
        """Enter a segment, which is on the disk."""
        places = written.places
        entry = {"first": places.start, "count": len(places), "crc32": written.crc32, "bounds": bounds}
        self._owner.write_segment(self._index, number, self._seal.seal_segment(self._index, number, entry))

    def sealed(self) -> tuple[Published, bytes]:
        """The file as it is to be published, and its ledger; every segment counts.

        Raises:
            StoreDamagedError: one is not on the disk as it was written; it does not count any more.
        """
        try:
            published = self.part.seal([self._segment(number) for number in range(len(self._places))])
        except DamagedSegmentError as error:
            if error.segment is None:
                self.part.remove()
            else:
                self._owner.forget_segments(self._index, error.segment)
            raise
        pieces = (self._bounds(number) for number in range(len(self._places)))
        ledger = self._seal.seal_bounds(self._index, published.sha256, pieces, ledger_of(self._task, [], []))
        return published, ledger

    def end(self) -> None:
        """The shard counts: nothing of this is needed any more."""
        self._owner.forget_segments(self._index)
        self.part.remove()

    def _retired(self) -> bool:
        """Whether a file under the shard's name can be this job's: no store is there that it has yet to replace."""
        return self._retire is None or not self._retire.exists()

    def _entry(self, number: int) -> dict[str, Any] | None:
        sealed = self._owner.read_segment(self._index, number)
        entry = None if sealed is None else self._seal.open_segment(self._index, number, sealed)
        places = self._places[number]
        return entry if entry and (entry["first"], entry["count"]) == (places.start, len(places)) else None

    def _counted(self, number: int) -> dict[str, Any]:
        entry = self._entry(number)
        if entry is None:
            raise DamagedSegmentError(f"{self.part.path}: the entry of segment {number} is gone or damaged", number)
        return entry

    def _segment(self, number: int) -> Segment:
        return Segment(self._places[number], self._counted(number)["crc32"])

    def _bounds(self, number: int) -> bytes:
        """As in a list, without its brackets."""
        return canonical_json(self._counted(number)["bounds"])[1:-1]


class Unfolded:
    """Shards as they come, but of each large array the segments first, then the shard itself, which needs them all.

    Args:
        segments: of a task, those that are left; none for a small shard.
    """

    def __init__(self, tasks: Iterator[Task], segments: Callable[[Task], list[SegmentTask]]) -> None:
        self._tasks, self._segments = tasks, segments
        self._ready: deque[Task | SegmentTask] = deque()
        self._left: dict[int, int] = {}  # segments of each shard that are begun or ready

    def take(self) -> Task | SegmentTask | None:
        """The next that can be begun; None where others have to end first, or nothing is left."""
        if not self._ready:
            task = next(self._tasks, None)
            if task is None:
                return None
            segments = self._segments(task)
            self._left[task.shard.index] = len(segments)
            self._ready.extend(segments or [task])
        return self._ready.popleft()

    def done(self, task: Task | SegmentTask) -> None:
        """It was done; what waits for it may be ready now."""
        if isinstance(task, SegmentTask):
            self._left[task.task.shard.index] -= 1
            if not self._left[task.task.shard.index]:
                self._ready.append(task.task)
