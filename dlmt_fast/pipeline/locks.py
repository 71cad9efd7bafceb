"""Who works on a job: one kernel lock a slice in the owner's folder, and a gate through which slices come and go.

A kernel lock ends with the process that holds it and with the workers that inherited it, however they end, so no lock
is ever broken by its age. Its file names the holder for messages alone.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from ..errors import StoreError
from .slices import Slice

FOLDER = "locks"
_PATIENCE = 20.0  # seconds for the workers of a killed job to end
_LOOK = 0.2  # seconds that a lock is at most held by one who only looks whether it is


class JobLocks:
    """The locks of one slice. As a context it gives up what it holds at the end."""

    def __init__(self, owner: Path, part: Slice) -> None:
        self._folder, self._part = owner / FOLDER, part
        self._held: int | None = None
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def __enter__(self) -> JobLocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def descriptor(self) -> int:
        """Of the slice's lock, for workers to inherit."""
        assert self._held is not None
        return self._held

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Held by one slice at a time while it joins the job, finishes or stops; waits for its turn."""
        import fcntl

        descriptor = os.open(self._folder / "gate", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def take(self) -> None:
        """Take the slice's lock, inside the gate.

        Raises:
            StoreError: the slice runs already, or the job runs in another number of slices; the message names who.
        """
        import fcntl

        descriptor = os.open(self._path(self._part), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            began = time.monotonic()
            while not _tried(descriptor, fcntl.LOCK_EX):
                _wait_or_refuse(began, self._part, _words(descriptor))
            while other := self._otherwise_split():
                _wait_or_refuse(began, *other)
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"host {socket.gethostname()}, pid {os.getpid()}, since {started}".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._held = descriptor

    def release(self) -> None:
        """Give the slice's lock up, if it is held."""
        import fcntl

        if self._held is not None:
            descriptor, self._held = self._held, None
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def others(self) -> dict[Slice, str]:
        """The other slices that run now, with their holders in words. Inside the gate none comes or goes unseen."""
        return {part: words for part, words in held(self._folder.parent).items() if part != self._part}

    def _otherwise_split(self) -> tuple[Slice, str] | None:
        """A slice that runs, of the same job in another number of slices, and its holder."""
        found = ((part, words) for part, words in held(self._folder.parent).items() if part.of != self._part.of)
        return next(found, None)

    def _path(self, part: Slice) -> Path:
        return self._folder / f"{part.number}-of-{part.of}"


def held(owner: Path) -> dict[Slice, str]:
    """The slices whose lock in an owner's folder is held, by host, pid and start time in words; empty where there is no
    such folder."""
    import fcntl

    found = {}
    paths = sorted((owner / FOLDER).iterdir()) if (owner / FOLDER).is_dir() else []
    for path in paths:
        name = re.fullmatch(r"(\d+)-of-(\d+)", path.name)
        if name is None:
            continue
        descriptor = os.open(path, os.O_RDWR)
        try:
            if not _tried(descriptor, fcntl.LOCK_SH):
                found[Slice(int(name[1]), int(name[2]))] = _words(descriptor)
        finally:
            os.close(descriptor)
    return found


def _tried(descriptor: int, how: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_or_refuse(began: float, part: Slice, holder: str) -> None:
    """Another holds a lock: a killed job's workers, who see its end and end, or one who runs."""
    waited = time.monotonic() - began
    if waited > (_LOOK if _lives(holder) else _PATIENCE):
        which = "" if part.whole else f" as slice {part}"
        raise StoreError(f"the same job runs already{which} ({holder}); wait for it, or stop it")
    time.sleep(0.05)


def _words(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode("utf-8", "replace")


def _lives(holder: str) -> bool:
    """Whether the process that a lock names may still run: on another host nobody can tell."""
    found = re.match(r"host (.*), pid (\d+), ", holder)
    if not found or found[1] != socket.gethostname():
        return True
    try:
        os.kill(int(found[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
