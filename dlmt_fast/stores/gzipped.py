"""gzip files without name and time. Level 0 stores, so that the bytes depend on the content alone, not on the version
of a compressor, and the size tells nothing beside the length.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable

_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no field, no time, no extra flags, unknown system
_BLOCK = 0xFFFF  # the largest stored block of deflate
_LAST = b"\x01\0\0\xff\xff"


def pack(chunks: Iterable[bytes], write: Callable[[bytes], object], level: int) -> None:
    """Write the gzip file of `chunks` piece by piece."""
    write(_HEADER)
    crc = size = 0
    deflate = zlib.compressobj(level, wbits=-zlib.MAX_WBITS)
    for chunk in chunks:
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        write(_stored(chunk) if level == 0 else deflate.compress(chunk))
    write(_LAST if level == 0 else deflate.flush())
    write(struct.pack("<II", crc, size & 0xFFFFFFFF))


def _stored(chunk: bytes) -> bytes:
    blocks = [chunk[start : start + _BLOCK] for start in range(0, len(chunk), _BLOCK)]
    return b"".join(struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF) + block for block in blocks)
