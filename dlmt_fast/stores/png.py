"""A PNG writer with stored blocks: the size tells the dimensions and nothing else, and the bytes depend on the pixels
alone, not on the version of a compressor. Pillow reads the result like any other PNG.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR = {1: 0, 3: 2}
_BLOCK = 0xFFFF  # the largest stored block of deflate


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """The PNG file of a uint8 image (C, H, W) with C 1 (gray) or 3 (RGB).

    Raises:
        ValueError: another number of channels.
    """
    channels, height, width = image.shape
    if channels not in _COLOUR:
        raise ValueError(f"PNG holds 1 or 3 channels here, got {channels}")
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = 0  # filter "none"
    rows[:, 1:].reshape(height, width, channels)[...] = image.transpose(1, 2, 0)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR[channels], 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", _stored(rows.tobytes())) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _stored(data: bytes) -> bytes:
    """A zlib stream (RFC 1950, 1951) of stored blocks."""
    parts = [b"\x78\x01"]
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        last = start + _BLOCK >= len(data)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    parts.append(struct.pack(">I", zlib.adler32(data)))
    return b"".join(parts)
