"""gzip files without name and time. Level 0 stores, so that the bytes depend on the content alone, not on the version
of a compressor, and the size tells nothing beside the length.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable

from isal import isal_zlib

_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no field, no time, no extra flags, unknown system
_BLOCK = 0xFFFF  # the largest stored block of deflate


def pack(chunks: Iterable[bytes], write: Callable[[bytes], object], level: int) -> None:
    """Write the gzip file of `chunks` piece by piece."""
    write(_HEADER)
    crc = size = 0
    deflate = _Stored() if level == 0 else zlib.compressobj(level, wbits=-zlib.MAX_WBITS)
    for chunk in chunks:
        crc, size = isal_zlib.crc32(chunk, crc), size + len(chunk)
        write(deflate.compress(chunk))
    write(deflate.flush())
    write(struct.pack("<II", crc, size & 0xFFFFFFFF))


class _Stored:
    """Stored blocks (RFC 1951), split in the same places however the content comes."""

    def __init__(self) -> None:
        self._rest = b""

    def compress(self, chunk: bytes) -> bytes:
        data = self._rest + chunk
        whole = len(data) // _BLOCK * _BLOCK
        self._rest = data[whole:]
        return b"".join(self._block(0, data[start : start + _BLOCK]) for start in range(0, whole, _BLOCK))

    def flush(self) -> bytes:
        return self._block(1, self._rest)

    @staticmethod
    def _block(last: int, data: bytes) -> bytes:
        return struct.pack("<BHH", last, len(data), len(data) ^ 0xFFFF) + data
