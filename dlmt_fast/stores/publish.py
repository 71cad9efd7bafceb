"""Publishing files so that a reader sees all of one or nothing, also after a power cut.

temporary in the same directory -> write -> fsync -> close -> rename -> fsync of the directory. A failed write, fsync
or close fails the attempt: the temporary is removed and never synced again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError

# What file systems without hard links answer, or that forbid them: FAT, those over a network or in user space.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_BLOCKS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # and who cannot tell files their blocks
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class FileOps:
    """The file operations that publishing uses, so that tests can replace the disk."""

    def create(self, path: Path, mode: int = 0o666) -> int:
        """Open a new file for writing; an existing one is an error, and links are not followed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        return os.open(path, flags, mode)

    def reopen(self, path: Path) -> int:
        """Open a file for writing at any place in it; links are not followed."""
        return os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))

    def write(self, descriptor: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]

    def allocate(self, descriptor: int, size: int) -> None:
        """Give a file its size, and its blocks, so that a full disk shows before any work; where the file system cannot
        do that, it shows when they are written."""
        try:
            os.posix_fallocate(descriptor, 0, size)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_BLOCKS:
                raise
            os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def datasync(self, descriptor: int) -> None:
        """What is needed to read the file's bytes again; times are not."""
        getattr(os, "fdatasync", os.fsync)(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name; an existing one is an error."""
        if not hasattr(os, "link"):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(new))
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        path.mkdir(mode)

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def fsync_directory(self, path: Path) -> None:
        if os.name == "nt":  # a directory cannot be opened there
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


OS = FileOps()


def temporary_name(store_id: str, shard: int | None) -> str:
    """A name beside the target that no reader takes for data. Without a shard: of a file that belongs to none."""
    mark = "none" if shard is None else f"{shard:05d}"
    return f".tmp-{store_id}-{mark}-{secrets.token_hex(8)}"


def is_temporary(name: str, store_id: str) -> bool:
    """Whether a name is one that `temporary_name` gives for this store."""
    return _temporaries(store_id).match(name) is not None


def _temporaries(store_id: str) -> re.Pattern[str]:
    return re.compile(rf"\.tmp-{store_id}-(?:(\d+)|none)-")


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """A write tells a descriptor and no name: say which folder the full disk holds."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(folder)
        raise


def write_temporary(path: Path, data: bytes | bytearray, ops: FileOps = OS, mode: int = 0o666) -> None:
    """Write and sync a temporary of a fresh name; on any error it is gone again."""
    try:
        descriptor = ops.create(path, mode)  # a signal may arrive as it returns
        with naming_a_full_disk(path.parent):
            _fill(descriptor, data, ops)
    except BaseException:
        ops.unlink(path)
        raise


def _fill(descriptor: int, data: bytes | bytearray, ops: FileOps) -> None:
    """Write, sync and close a new file."""
    try:
        ops.write(descriptor, data)
        ops.fsync(descriptor)
    finally:
        ops.close(descriptor)


def publish_bytes(
    path: Path, data: bytes, store_id: str, shard: int | None = None, ops: FileOps = OS, mode: int = 0o666
) -> None:
    """Publish one small file under its final name, replacing what was there. See `temporary_name`."""
    temporary = path.with_name(temporary_name(store_id, shard))
    try:
        write_temporary(temporary, data, ops, mode)
        ops.rename(temporary, path)
    except BaseException:
        ops.unlink(temporary)
        raise
    ops.fsync_directory(path.parent)


def create_bytes(path: Path, data: bytes, store_id: str, ops: FileOps = OS) -> None:
    """Publish one small file that is not there yet. Where the file system has no hard links others may see it before it
    is whole, and a power cut may leave it so.

    Raises:
        FileExistsError: it is there.
    """
    temporary = path.with_name(temporary_name(store_id, None))
    write_temporary(temporary, data, ops)
    try:
        try:
            ops.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _create_at_once(path, data, ops)
    finally:
        ops.unlink(temporary)
    try:
        ops.fsync_directory(path.parent)
    except BaseException:
        ops.unlink(path)
        raise


def _create_at_once(path: Path, data: bytes, ops: FileOps) -> None:
    """As `create_bytes`, under its own name from the start."""
    descriptor = ops.create(path)  # an error here may tell that it is another's
    try:
        _fill(descriptor, data, ops)
    except BaseException:
        ops.unlink(path)
        raise


def make_directories(path: Path, ops: FileOps = OS, mode: int = 0o777) -> list[Path]:
    """Make `path` and its missing ancestors, each synced into its parent. Returns those made, outermost first."""
    missing = []
    while not path.is_dir():
        if os.path.lexists(path):
            if path.is_dir():  # another worker has made it since
                break
            raise StoreError(f"{path} is in the way: a folder is needed there")
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            ops.mkdir(directory, mode)
        except FileExistsError:
            continue
        ops.fsync_directory(directory.parent)
    return missing[::-1]


def remove_all(paths: Iterable[Path], ops: FileOps = OS) -> None:
    """Remove temporaries after a failure."""
    for path in paths:
        ops.unlink(path)


def remove_leftovers(
    folders: Iterable[Path], store_id: str, ops: FileOps = OS, shards: Container[int | None] | None = None
) -> None:
    """Remove the temporaries that dead attempts of a job (or of some of its shards, where None among them stands for
    what belongs to no shard) left in these folders."""
    ours = _temporaries(store_id)
    for folder in folders:
        with os.scandir(folder) as entries:
            named = ((entry.path, ours.match(entry.name)) for entry in entries)
            found = [Path(path) for path, match in named if match and (shards is None or _shard(match) in shards)]
        remove_all(found, ops)
        if found:
            ops.fsync_directory(folder)


def _shard(name: re.Match[str]) -> int | None:
    return None if name[1] is None else int(name[1])


def file_digest(path: Path) -> tuple[int, str]:
    """(size, hex SHA-256) of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
