"""The files of a source, sorted by the bytes of their paths: on disk, so that memory does not grow with their number.

Sorted runs are written to temporary files without a name (in `TMPDIR`) and merged there; 10^8 files
take some 12 GB of disk for the time of the job, twice that while they are sorted, and a few megabytes of memory.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeAlias

from .contract import FileStamp
from .scratch import Scratch

#: (the bytes of a path, size and state): neither holds a zero byte, which stands between them on disk.
_Record: TypeAlias = tuple[bytes, bytes]

_RUN = 2048  # records sorted in memory: 0.5 MB
_BLOCK = 32  # records of a run that are in memory while runs are merged
_MERGED_AT_ONCE = 128
_READ = 256  # records read at once in order


class Stamps:
    """An immutable sequence of `FileStamp`, read by index or in order, in the order of the paths' bytes."""

    def __init__(self, stamps: Iterable[FileStamp]) -> None:
        self._data, self._index = Scratch(), Scratch()
        self._count = 0
        ends = array("Q", [0])
        for path, rest in _sorted(map(_pack, stamps)):
            self._data.append(b"%b\0%b\0" % (path, rest))
            ends.append(self._data.size)
            self._count += 1
            if len(ends) == _RUN:
                self._index.append(ends.tobytes())
                del ends[:]
        self._index.append(ends.tobytes())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> FileStamp:
        return self.part(range(index, index + 1))[0]

    def __iter__(self) -> Iterator[FileStamp]:
        for start in range(0, self._count, _READ):
            yield from self.part(range(start, min(start + _READ, self._count)))

    def part(self, indices: range) -> list[FileStamp]:
        """The stamps of consecutive indices.

        Raises:
            IndexError: the range goes beyond the last file.
        """
        if not 0 <= indices.start <= indices.stop <= self._count or indices.step != 1:
            raise IndexError(f"{indices} of {self._count} files")
        ends = array("Q")
        width = ends.itemsize
        ends.frombytes(self._index.read(indices.start * width, (len(indices) + 1) * width))
        fields = self._data.read(ends[0], ends[-1] - ends[0]).split(b"\0")
        return [_unpack(path, rest) for path, rest in zip(fields[0:-1:2], fields[1::2], strict=True)]


def _pack(stamp: FileStamp) -> _Record:
    if isinstance(stamp.state, str):
        return stamp.path.encode("utf-8"), b"%d =%b" % (stamp.size, stamp.state.encode("utf-8"))
    return stamp.path.encode("utf-8"), b"%d %d" % (stamp.size, stamp.state)


def _unpack(path: bytes, rest: bytes) -> FileStamp:
    size, _, state = rest.partition(b" ")
    tag = state.startswith(b"=")
    return FileStamp(path.decode("utf-8"), int(size), state[1:].decode("utf-8") if tag else int(state))


def _sorted(records: Iterator[_Record]) -> Iterator[_Record]:
    """All records in order: each run sorted in memory, then runs merged, so many at once, until one merge is left."""
    first = sorted(islice(records, _RUN))
    if len(first) < _RUN:
        return iter(first)
    runs = _Runs(chain([first], iter(lambda: sorted(islice(records, _RUN)), [])))
    while len(runs) > _MERGED_AT_ONCE:
        runs = _Runs(runs.merged(start) for start in range(0, len(runs), _MERGED_AT_ONCE))
    return runs.merged(0)


class _Runs:
    """Sorted runs in a temporary file, in blocks: a length, then the records."""

    def __init__(self, runs: Iterable[Iterable[_Record]]) -> None:
        self._file = Scratch()
        self._starts = array("Q", [0])
        for run in runs:
            records = iter(run)
            while block := list(islice(records, _BLOCK)):
                data = b"\0".join(chain.from_iterable(block))
                self._file.append(len(data).to_bytes(8, "little") + data)
            self._starts.append(self._file.size)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def merged(self, start: int) -> Iterator[_Record]:
        """The records of runs from `start` on, as many as are merged at once."""
        runs = range(start, min(start + _MERGED_AT_ONCE, len(self)))
        return heapq.merge(*(self._records(self._starts[run], self._starts[run + 1]) for run in runs))

    def _records(self, place: int, end: int) -> Iterator[Any]:
        while place < end:
            length = int.from_bytes(self._file.read(place, 8), "little")
            fields = self._file.read(place + 8, length).split(b"\0")
            yield from zip(fields[::2], fields[1::2], strict=True)
            place += 8 + length
