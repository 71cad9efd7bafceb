"""A file of one array that several workers write, segment by segment, over several attempts: one preallocated temporary
that outlives them, in which a segment counts once its bytes are synced and it is entered elsewhere.

Its name begins otherwise than that of other temporaries, so that sweeping those leaves it. Segments have checksums, not
digests: they tell of bytes that a disk has lost between two attempts, and the SHA-256 that is published is taken of the
whole file in the end, at a third of that speed (1.3 and 3.9 GB/s on the machine of README.md's table).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from isal import isal_zlib

from ..errors import StoreDamagedError, StoreError
from .contract import Allow, Array, Published, anyway
from .publish import OS, FileOps, naming_a_full_disk, remove_all, temporary_name
from .sliced import ArrayFile, pack_file

#: Output bytes of a segment, at least: what a killed worker does again, and what starting it anew is worth.
SEGMENT_BYTES = 64 << 20
_PIECE = 1 << 20  # bytes read at once
_PARTS = re.compile(r"\.part-([0-9a-f]{32})-\d+")


class Segment(NamedTuple):
    """A run of places in a shard's array, and the CRC-32 of their bytes."""

    places: range
    crc32: int


def cut(file: ArrayFile, least: int) -> list[range]:
    """The segments of a file, of `least` bytes and less than twice that each; a small file is one."""
    rows = max(1, -(-least // max(1, file.item_bytes)))
    starts = [number * rows for number in range(max(1, file.count // rows))]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], file.count], strict=True)]


def remove_parts(folder: Path, store_id: str, ops: FileOps = OS) -> None:
    """Remove the unfinished files of a job that gives up, or is done with them."""
    if not folder.is_dir():  # a job that ended before it made it
        return
    with os.scandir(folder) as entries:
        found = [
            Path(entry.path) for entry in entries if (name := _PARTS.fullmatch(entry.name)) and name[1] == store_id
        ]
    remove_all(found, ops)
    if found:
        ops.fsync_directory(folder)


class PartFile:
    """The unfinished file of shard `shard`, which is to become `name`."""

    def __init__(self, root: Path, store_id: str, shard: int, name: str, file: ArrayFile, ops: FileOps = OS) -> None:
        self.path, self._final = root / f".part-{store_id}-{shard:05d}", root / name
        self._packed = root / temporary_name(store_id, shard)
        self._name, self._file, self._ops = name, file, ops

    def there(self) -> bool:
        """Whether it is, with its size."""
        return _size_of(self.path) == self._file.size

    def begin(self) -> None:
        """Make it, whatever was there, with its header and nothing else."""
        self._ops.unlink(self.path)
        try:
            descriptor = self._ops.create(self.path)
            with naming_a_full_disk(self.path.parent):
                try:
                    self._ops.write(descriptor, self._file.header)
                    self._ops.allocate(descriptor, self._file.size)
                    self._ops.fsync(descriptor)
                finally:
                    self._ops.close(descriptor)
        except BaseException:
            self._ops.unlink(self.path)  # with whatever it took of a full disk
            raise
        self._ops.fsync_directory(self.path.parent)

    def writer(self, places: range) -> SegmentWriter:
        """What writes the images of these places."""
        return SegmentWriter(self.path, self._file, places, self._ops)

    def seal(self, segments: Sequence[Segment]) -> Published:
        """The digest of the whole file, by one read that checks every segment; compresses where that is wanted.

        Raises:
            StoreDamagedError: what is read is not what was written; the error's `segment` is the first such.
        """
        if self._file.gzip_level is None:
            whole = hashlib.sha256()
            for piece in self._compared(segments):
                whole.update(piece)
            size, digest = self._file.size, whole.hexdigest()
        else:
            size, digest = pack_file(self._compared(segments), self._packed, self._file.gzip_level, self._ops)
        return Published(self._name, self._file.count, size, digest)

    def publish(self) -> None:
        """Make it visible under its name, which `seal` allowed."""
        self._ops.rename(self.path if self._file.gzip_level is None else self._packed, self._final)
        self._ops.fsync_directory(self._final.parent)

    def take_back(self) -> None:
        """Undo `publish` for a shard that does not count, as far as it came; segments stay."""
        self._ops.unlink(self._packed)
        if self._file.gzip_level is not None:
            self._ops.unlink(self._final)
        elif not self.path.exists() and _size_of(self._final) == self._file.size:
            self._ops.rename(self._final, self.path)
            self._ops.fsync_directory(self.path.parent)

    def remove(self) -> None:
        """After its shard counts: only a compressed one leaves it behind."""
        self._ops.unlink(self.path)

    def _compared(self, segments: Sequence[Segment]) -> Iterator[bytes]:
        """The content, piece by piece."""
        with open(self.path, "rb") as file:
            header = file.read(len(self._file.header))
            if header != self._file.header:
                raise DamagedSegmentError(f"{self.path} does not begin as it was begun", None)
            yield header
            for number, segment in enumerate(segments):
                crc, left = 0, len(segment.places) * self._file.item_bytes
                while piece := file.read(min(_PIECE, left)):
                    crc, left = isal_zlib.crc32(piece, crc), left - len(piece)
                    yield piece
                if left or crc != segment.crc32:
                    raise DamagedSegmentError(
                        f"{self.path}: segment {number} is not on the disk as it was written", number
                    )


class DamagedSegmentError(StoreDamagedError):
    """A segment is not what was written; `segment` is its number, None where all are to be done again."""

    def __init__(self, message: str, segment: int | None) -> None:
        super().__init__(message)
        self.segment = segment


class SegmentWriter:
    """Writes the images of some places, in their order; nothing else of the file is touched."""

    def __init__(self, path: Path, file: ArrayFile, places: range, ops: FileOps) -> None:
        self._path, self._file, self._places, self._ops = path, file, places, ops
        self._next, self._crc = places.start, 0
        self._descriptor: int | None = ops.reopen(path)
        os.lseek(self._descriptor, file.offset(places.start), os.SEEK_SET)

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None:
        """Images (n, C, H, W) at `positions`, which follow those before."""
        assert self._descriptor is not None
        if positions[0] != self._next or positions[-1] >= self._places.stop:
            raise StoreError(f"{self._path}: images came for places {positions}, and {self._next} is the next")
        data = self._file.encode(images)
        self._ops.write(self._descriptor, data)
        self._crc = isal_zlib.crc32(data, self._crc)
        self._next += len(images)

    def publish(self, allow: Allow = anyway) -> Published:
        """Sync; nothing becomes visible. The SHA-256 that is given is empty: only the whole file has one."""
        assert self._descriptor is not None
        if self._next != self._places.stop:
            raise StoreError(f"{self._path}: {self._next} of {self._places.stop} images came to be written")
        self._ops.datasync(self._descriptor)
        self._close()
        count = len(self._places)
        published = Published(self._path.name, count, count * self._file.item_bytes, "")
        allow(published)
        return published

    @property
    def written(self) -> Segment:
        """What `publish` synced."""
        return Segment(self._places, self._crc)

    def abort(self) -> None:
        """The segment's bytes do not count, and will be written again."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            self._ops.close(descriptor)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
