"""Temporary files without a name, in `TMPDIR`: nobody else reads them, and they end with their owner."""

from __future__ import annotations

import os
import tempfile
import weakref


class Scratch:
    """Bytes that are appended, and read at any place."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="dlmt-")  # noqa: SIM115  it is closed with the owner
        weakref.finalize(self, self._file.close)
        self.size = 0

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; safe in several threads once nothing is appended any more."""
        self._file.flush()
        return os.pread(self._file.fileno(), size, start)
