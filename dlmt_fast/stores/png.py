"""A PNG writer with stored blocks: the size tells the dimensions and nothing else, and the bytes depend on the pixels
alone, not on the version of a compressor. Pillow reads the result like any other PNG.
"""

from __future__ import annotations

import struct

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR = {1: 0, 3: 2}
_BLOCK = 0xFFFF  # the largest stored block of deflate
_HEAD = 5  # bytes in front of each block
_IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"


def encode_png(image: NDArray[np.uint8]) -> bytearray:
    """The PNG file of a uint8 image (C, H, W) with C 1 (gray) or 3 (RGB); quickest where the memory is (H, W, C).

    Raises:
        ValueError: another number of channels.
    """
    channels, height, width = image.shape
    if channels not in _COLOUR:
        raise ValueError(f"PNG holds 1 or 3 channels here, got {channels}")
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = 0  # filter "none"
    rows[:, 1:].reshape(height, width, channels)[...] = image.transpose(1, 2, 0)
    blocks = -(-rows.size // _BLOCK)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR[channels], 0, 0, 0)
    front = _SIGNATURE + _chunk(b"IHDR", header) + struct.pack(">I4s", 2 + _HEAD * blocks + rows.size + 4, b"IDAT")
    file = bytearray(len(front) + 2 + _HEAD * blocks + rows.size + 4 + 4 + len(_IEND))
    file[: len(front)] = front
    start, end = len(front) - 4, len(file) - len(_IEND) - 4  # what the checksum covers: kind and data
    _store(rows.reshape(-1), memoryview(file)[len(front) : end])
    file[end:] = struct.pack(">I", isal_zlib.crc32(memoryview(file)[start:end])) + _IEND
    return file


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(kind + data))


def _store(data: NDArray[np.uint8], target: memoryview) -> None:
    """Fill `target` with a zlib stream (RFC 1950, 1951) of stored blocks."""
    target[:2] = b"\x78\x01"
    target[-4:] = struct.pack(">I", isal_zlib.adler32(data.data))
    stream, whole = np.frombuffer(target[2:-4], np.uint8), (data.size - 1) // _BLOCK  # blocks before the last
    full = stream[: whole * (_HEAD + _BLOCK)].reshape(whole, _HEAD + _BLOCK)
    full[:, :_HEAD] = np.frombuffer(_head(0, _BLOCK), np.uint8)
    full[:, _HEAD:] = data[: whole * _BLOCK].reshape(whole, _BLOCK)
    last = data[whole * _BLOCK :]
    stream[full.size : full.size + _HEAD] = np.frombuffer(_head(1, last.size), np.uint8)
    stream[full.size + _HEAD :] = last


def _head(last: int, size: int) -> bytes:
    return struct.pack("<BHH", last, size, size ^ 0xFFFF)
