"""Local folders for the files of a remote store on their way up or down, one a shard, in `TMPDIR`.

A folder is its process's own for as long as that holds a kernel lock in it. What a process that was killed left behind
is removed by the next one that looks, whatever it works on; nothing is judged by its age.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import StoreError
from .publish import FileOps

_PREFIX = "dlmt-staging-"
_LOCK = ".lock"


class NoSync(FileOps):
    """Staged files need not survive a power cut: a shard whose upload did not end is made again."""

    def fsync(self, descriptor: int) -> None:
        """Nothing."""

    def fsync_directory(self, path: Path) -> None:
        """Nothing."""


NO_SYNC = NoSync()


@contextmanager
def staging() -> Iterator[Path]:
    """An empty folder for the time of the block."""
    folder, lock = _taken()
    try:
        yield folder / "files"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_dead_staging() -> None:
    """Remove the folders of processes that have ended without doing so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another process removes it at this moment
            status = folder.lstat()
            if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                if _locked(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def write_staged(file: BinaryIO, data: bytes) -> None:
    """Write to a staged file.

    Raises:
        StoreError: the disk refuses; it is told apart from what a server refuses.
    """
    try:
        file.write(data)
    except OSError as error:
        raise StoreError(f"{file.name} cannot be written: {error.strerror}; TMPDIR names another folder") from None


def _taken() -> tuple[Path, int]:
    """A new folder and the descriptor of its lock. Until the lock is held, another process may take it for dead."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue
        try:
            if _locked(descriptor) and os.fstat(descriptor).st_nlink:
                (folder / "files").mkdir()
                return folder, descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
