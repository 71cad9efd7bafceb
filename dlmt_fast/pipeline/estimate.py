"""How many bytes the images of a store will have, before one is written.

The size of what is written follows from shapes and dtypes alone (nothing is compressed), so that folders, .npy and IDX
files are known to the byte; of other kinds only the pixels are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from ..stores.contract import Shape
from ..stores.gzipped import pack
from ..stores.npy import encode_header, encode_npy
from ..stores.png import encode_png

_IDX_HEADER = 16
_PIECE = bytes(1 << 20)


def folder_bytes(shapes: Mapping[Shape, int], dtype: str) -> int:
    """The size of a folder's image files: `shapes` counts the images of each shape."""
    return sum(count * _file_bytes(shape, dtype) for shape, count in shapes.items())


def npy_bytes(array: tuple[int, ...], dtype: str) -> int:
    """The size of a .npy file of images."""
    return len(encode_header(np.dtype(dtype), array)) + math.prod(array) * np.dtype(dtype).itemsize


def idx_bytes(array: tuple[int, ...], dtype: str, gzipped: bool) -> int:
    """The size of an IDX file of images (N, H, W); gzip stores it, and adds some bytes a block."""
    plain = _IDX_HEADER + math.prod(array) * np.dtype(dtype).itemsize
    if not gzipped:
        return plain
    written: list[int] = []
    pack(_pieces(plain), lambda data: written.append(len(data)), level=0)
    return sum(written)


def pixel_bytes(shapes: Mapping[Shape, int], dtype: str) -> int:
    """The pixels alone."""
    return sum(count * math.prod(shape) for shape, count in shapes.items()) * np.dtype(dtype).itemsize


def _file_bytes(shape: Shape, dtype: str) -> int:
    blank = np.zeros(shape, dtype)
    return len(encode_png(blank) if dtype == "uint8" else encode_npy(blank))


def _pieces(size: int) -> Iterable[bytes]:
    for start in range(0, size, len(_PIECE)):
        yield _PIECE[: size - start]
