"""Reading files, local or remote: whole, or piece by piece with read-ahead.

A remote file is asked for in ranges. Where the tag of its content is known, S3 is asked for that content and no other
(If-Match), so that a file which changes while it is read is an error, without a question before each answer.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from ..errors import RemoteError, StoreError
from .contract import FileStamp, changed
from .location import is_remote
from .remote import file_system, information, is_s3, key_of, size_and_state
from .remote_errors import remote_errors

_FIRST, _MOST = 64 << 10, 4 << 20  # bytes of the first read, and of the longest read-ahead


def opened(path: Path, stamp: FileStamp | None = None) -> IO[bytes]:
    """A file, open for reading at any place.

    Args:
        stamp: of this file. Where that is remote, another content than the stamp's is refused.

    Raises:
        StoreError: the file changed. OSError: it cannot be read.
    """
    if not is_remote(path):
        return open(path, "rb")
    fetch, size = _fetcher(path, stamp)
    return cast("IO[bytes]", RangedFile(fetch, size))


def read_file(path: Path, stamp: FileStamp | None = None) -> bytes:
    """All bytes of a file; see `opened`."""
    if not is_remote(path):
        return path.read_bytes()
    fetch, size = _fetcher(path, stamp)
    return fetch(0, size)


def read_part(path: Path, start: int, size: int, stamp: FileStamp | None = None) -> bytes:
    """`size` bytes from `start` on, fewer where a local file ends before; see `opened`."""
    if is_remote(path):
        return _fetcher(path, stamp)[0](start, start + size)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def head_of(path: Path, size: int) -> bytes:
    """The first bytes of a file, to tell what it is; none where a local one cannot be read, which is told later."""
    try:
        with opened(path) as file:
            return file.read(size)
    except OSError:
        if is_remote(path):
            raise
        return b""


def size_of(path: Path) -> int:
    """The size of a file in bytes."""
    return size_and_state(information(path), str(path))[0] if is_remote(path) else path.stat().st_size


def _fetcher(path: Path, stamp: FileStamp | None) -> tuple[Callable[[int, int], bytes], int]:
    """(what reads the bytes from one place to another, the file's size)."""
    if stamp is None or not is_s3(path) or not stamp.size:  # S3 answers no question about an empty range
        size, state = size_and_state(information(path), str(path))
        if stamp is not None and (stamp.size, stamp.state) != (size, state):
            raise changed(path)
    else:
        size, state = stamp.size, str(stamp.state)
    read = _s3_reader(path, size, state) if is_s3(path) else _reader(path)

    def fetch(start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        with remote_errors(path):
            data = read(start, stop)
        if len(data) > stop - start:
            raise StoreError(f"{path}: the server gives whole files where a part was asked for; copy the files first")
        if len(data) < stop - start:
            raise RemoteError(errno.EIO, f"{path}: the answer ended after {len(data)} of {stop - start} bytes")
        return data

    return fetch, size


def _reader(path: Path) -> Callable[[int, int], bytes]:
    files, key = file_system(path), key_of(path)

    def read(start: int, stop: int) -> bytes:
        return cast(bytes, files.cat_file(key, start=start, end=stop))

    return read


def _s3_reader(path: Path, size: int, tag: str) -> Callable[[int, int], bytes]:
    details = {"name": key_of(path), "size": size, "ETag": tag, "type": "file"}
    with remote_errors(path):
        file = _s3_file()(file_system(path), key_of(path), details)

    def read(start: int, stop: int) -> bytes:
        try:
            file.seek(start)
            return cast(bytes, file.read(stop - start))
        except OSError as error:
            if type(error).__name__ == "FileExpired":
                raise changed(path) from None
            raise

    return read


@cache
def _s3_file() -> Any:
    """A class of s3fs's files that knows what its file is, so that it asks for that content without asking first."""
    from s3fs.core import S3File

    class KnownFile(S3File):  # type: ignore[misc]
        def __init__(self, files: Any, key: str, details: dict[str, Any]) -> None:
            self.details = details
            super().__init__(files, key, "rb", cache_type="none", requester_pays=bool(files.req_kw))

    return KnownFile


class RangedFile(io.RawIOBase):
    """A file that is read by ranges: a little at first and after a leap, twice as much each time where it goes on.

    Args:
        fetch: gives exactly the bytes from one place to another.
        size: of the file.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size, self._place = fetch, size, 0
        self._start, self._data, self._ahead = 0, b"", _FIRST

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, f"a seek to {place}")
        self._place = place
        return place

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(memoryview(buffer).cast("B")))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; fewer at the end of the file alone."""
        rest = max(0, self._size - self._place)
        size = rest if size is None or size < 0 else min(size, rest)
        parts = [self._held(size)]
        if left := size - len(parts[0]):
            self._fill(left)
            parts.append(self._held(left))
        return parts[0] + parts[1] if len(parts) == 2 else parts[0]

    def readall(self) -> bytes:
        """The rest of the file."""
        return self.read()

    def _held(self, size: int) -> bytes:
        first = self._place - self._start
        data = self._data[first : first + size] if 0 <= first < len(self._data) else b""
        self._place += len(data)
        return data

    def _fill(self, size: int) -> None:
        """Hold at least `size` bytes from the place on."""
        follows = 0 <= self._place - self._start - len(self._data) < _MOST
        self._ahead = min(2 * self._ahead, _MOST) if follows and self._data else _FIRST
        stop = min(self._size, self._place + max(size, self._ahead))
        self._start, self._data = self._place, self._fetch(self._place, stop)
