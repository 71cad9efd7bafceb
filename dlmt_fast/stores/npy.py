"""One array in NumPy's own file format, read back strictly: header and length are checked before the values."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreDamagedError
from .contract import Array

_MAGIC = b"\x93NUMPY\x01\x00"
# NumPy's own reader evaluates the header as Python, which warns and raises in many ways on damaged input.
_HEADER = re.compile(
    rb"\{'descr': '([<|][a-z][0-9]{1,2})', 'fortran_order': False, "
    rb"'shape': \(([1-9][0-9]{0,9}), ([1-9][0-9]{0,9}), ([1-9][0-9]{0,9})\), \} *\n"
)


def encode_npy(image: Array) -> bytes:
    """The .npy file of one array, version 1.0, C order, little-endian: its bytes depend on the values alone."""
    values = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
    return encode_header(values.dtype, values.shape) + values.tobytes()


def decode_npy(data: bytes, dtype: np.dtype[Any], where: str) -> Array:
    """The array (C, H, W) of a .npy file.

    Raises:
        StoreDamagedError: it is no such file, or holds another dtype or number of axes.
    """
    body_start = 10 + int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10:body_start])
    if data[:8] != _MAGIC or header is None:
        raise StoreDamagedError(f"{where} is no array file of this store: its header is not that of a (C, H, W) array")
    found, shape = header[1].decode("ascii"), tuple(int(n) for n in header.groups()[1:])
    if found != dtype.newbyteorder("<").str:
        raise StoreDamagedError(f"{where} is no array file of this store: it holds {found!r}, expected {dtype}")
    if len(data) - body_start != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise StoreDamagedError(f"{where} is no array file of this store: another length than its header says")
    return np.frombuffer(data, dtype.newbyteorder("<"), offset=body_start).astype(dtype, copy=False).reshape(shape)


def encode_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header, version 1.0, of an array in C order; its bytes do not depend on NumPy's version."""
    sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    text = f"{{'descr': '{dtype.newbyteorder('<').str}', 'fortran_order': False, 'shape': ({sizes}), }}".encode("ascii")
    padded = text.ljust(-(len(text) + 11) % 64 + len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def encode_labels(labels: NDArray[np.integer[Any]]) -> bytes:
    """The .npy file of labels (N,): as they are, little-endian."""
    values = labels.astype(labels.dtype.newbyteorder("<"))
    return encode_header(values.dtype, values.shape) + values.tobytes()
