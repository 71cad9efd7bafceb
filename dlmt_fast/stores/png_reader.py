"""PNG pixels by ISA-L and the native module, faster than Pillow and the same to the last bit.

It takes what is beyond doubt: 8-bit gray or RGB, not interlaced, every checksum right, and nothing left over. Whatever
else is in a file (a palette, transparency, damage, a missing end) is Pillow's to refuse or to take, so that one rule
says what an image is. Where the native module is missing, Pillow reads every file. Tests compare both. They know one
difference: a compressed stream that describes a code which it then does not use, in a way that zlib refuses and ISA-L
does not. Its pixels are what their checksums say.
"""

from __future__ import annotations

import struct

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from ..errors import BackendError

try:
    from ..backends.native import unfilter
except BackendError:  # of which `encrypt` warns
    unfilter = None  # type: ignore[assignment]

PNG_IS_OURS = unfilter is not None
_Inflate: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # what its stubs call an instance
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADS = {"L": (8, 0, 0, 0, 0), "RGB": (8, 2, 0, 0, 0)}  # depth, colour type, compression, filter, interlace
_PILLOWS = {b"tRNS", b"acTL", b"fcTL", b"fdAT"}  # transparency, and frames


def decode_png(data: bytes, mode: str, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """The pixels (H, W, C) of a PNG file; None where Pillow has to look.

    Args:
        data: the file.
        mode: "L" or "RGB", as Pillow reads the header.
        size: (width, height), likewise. Nothing is decoded of a file that says otherwise here.
    """
    (width, height), channels = size, len(mode) if mode == "RGB" else 1
    stream = _stream(data, struct.pack(">IIBBBBB", width, height, *_HEADS[mode]))
    if unfilter is None or stream is None:
        return None
    expected, inflater = height * (1 + width * channels), isal_zlib.decompressobj()
    try:
        rows = inflater.decompress(stream, expected + 1)  # one more, so that it comes to the checksum
    except _Inflate:
        return None
    if len(rows) != expected or not inflater.eof or inflater.unused_data:
        return None
    pixels = np.empty((height, width, channels), np.uint8)
    return pixels if unfilter(np.frombuffer(rows, np.uint8), pixels) else None


def _stream(data: bytes, header: bytes) -> bytes | memoryview | None:
    """The compressed pixels; None where the file is not a plain one with this header and right checksums."""
    view, place, parts = memoryview(data), len(_SIGNATURE), list[memoryview]()
    if not data.startswith(_SIGNATURE + struct.pack(">I4s", len(header), b"IHDR") + header):
        return None
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data) or int.from_bytes(view[end : end + 4], "big") != isal_zlib.crc32(view[place + 4 : end]):
            return None
        if kind == b"IDAT":
            parts.append(view[place + 8 : end])
        elif parts:  # text and EXIF may follow; what follows an end is nobody's
            return (parts[0] if len(parts) == 1 else b"".join(parts)) if kind == b"IEND" and not length else None
        elif kind in _PILLOWS or (kind[:1].isupper() and place > len(_SIGNATURE)):
            return None
        place = end + 4
    return None
