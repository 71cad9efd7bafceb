"""A temporary that is written from its start to its end, with its size and digest known when it is done."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .publish import OS, FileOps


class StreamedFile:
    """Made at once; `finish` syncs it, `discard` removes it. It keeps what was written in no memory."""

    def __init__(self, path: Path, ops: FileOps = OS) -> None:
        self.path, self.size, self._digest = path, 0, hashlib.sha256()
        self._ops, self._open = ops, True
        self._descriptor = ops.create(path)

    @property
    def sha256(self) -> str:
        """Of what was written, in hex."""
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        self._ops.write(self._descriptor, data)
        self._digest.update(data)
        self.size += memoryview(data).nbytes

    def finish(self) -> None:
        """Sync and close."""
        try:
            self._ops.fsync(self._descriptor)
        finally:
            self._close()

    def discard(self) -> None:
        """Remove it, whatever its state."""
        try:
            self._close()
        finally:
            self._ops.unlink(self.path)

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._ops.close(self._descriptor)
