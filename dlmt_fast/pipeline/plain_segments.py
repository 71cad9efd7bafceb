"""A decrypted shard that is one large array, written in segments: each counts by itself, so that a killed decrypt goes
on in its middle. One process writes it, in one pass over the stored shard, whose digest has to be compared anyway.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ..stores.contract import Allow, Array, Published, anyway
from ..stores.segments import DamagedSegmentError, PartFile, Segment, SegmentWriter
from .plain_journal import PlainJournal


class PlainSegments:
    """A `ShardWriter` of one file that writes what does not count yet. Images come in order, and all of them."""

    def __init__(self, journal: PlainJournal, shard: int, part: PartFile, places: list[range]) -> None:
        self._journal, self._shard, self._part, self._places = journal, shard, part, places
        self._starts = [each.start for each in places]
        self._done = self._counted()
        if not part.there() and None not in self._done:
            part.take_back()  # killed between its name and its entry
        if not part.there():
            journal.forget_segments(shard)  # before a file is there that they would count for
            part.begin()
            self._done = [None] * len(places)
        self._writer: SegmentWriter | None = None

    def needs(self, positions: range) -> bool:
        """Whether any of these images is still to be written."""
        first, last = self._number(positions.start), self._number(positions.stop - 1)
        return None in self._done[first : last + 1]

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None:
        """Images (n, C, H, W) at `positions`; each part goes to its segment."""
        start, stop = positions[0], positions[-1] + 1
        while start < stop:
            number = self._number(start)
            until = min(stop, self._places[number].stop)
            if self._done[number] is None:
                self._write(number, range(start, until), images[start - positions[0] : until - positions[0]])
            start = until

    def publish(self, allow: Allow = anyway) -> Published:
        done = [each for each in self._done if each is not None]
        try:
            published = self._part.seal(done)
        except DamagedSegmentError as error:
            self._journal.forget_segments(self._shard, error.segment)
            if error.segment is None:
                self._part.remove()
            raise
        allow(published)
        self._part.publish()
        return published

    def abort(self) -> None:
        """What counts stays; the file is not visible."""
        if self._writer is not None:
            self._writer.abort()
        self._part.take_back()

    def end(self) -> None:
        """The shard counts: nothing of this is needed any more."""
        self._journal.forget_segments(self._shard)
        self._part.remove()

    def _write(self, number: int, places: range, images: Array) -> None:
        if self._writer is None:
            self._writer = self._part.writer(self._places[number])
        self._writer.write(places, [], images)
        if places.stop == self._places[number].stop:
            self._writer.publish()
            self._journal.enter_segment(self._shard, number, self._writer.written)
            self._done[number], self._writer = self._writer.written, None

    def _counted(self) -> list[Segment | None]:
        return [self._journal.segment(self._shard, number, places) for number, places in enumerate(self._places)]

    def _number(self, place: int) -> int:
        return bisect_right(self._starts, place) - 1
