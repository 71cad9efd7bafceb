"""One array in NumPy's own file format, read back strictly: header and length are checked before the values."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from ..errors import StoreDamagedError
from .contract import Array, Shape


def encode_npy(image: Array) -> bytes:
    """The .npy file of one array, version 1.0, C order."""
    buffer = io.BytesIO()
    npy_format.write_array(buffer, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes, dtype: np.dtype[Any], where: str) -> Array:
    """The array (C, H, W) of a .npy file.

    Raises:
        StoreDamagedError: it is no such file, or holds another dtype or number of axes.
    """
    buffer = io.BytesIO(data)
    try:
        if npy_format.read_magic(buffer) != (1, 0):
            raise ValueError("an unexpected version")
        shape, fortran, found = npy_format.read_array_header_1_0(buffer)
        if fortran or found != dtype or len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"an array of {found} with shape {shape}, expected {dtype} with 3 axes")
        body = data[buffer.tell() :]
        if len(body) != int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize:
            raise ValueError("another length than its header says")
    except (ValueError, EOFError, TypeError, OverflowError, SyntaxError) as error:
        raise StoreDamagedError(f"{where} is no array file of this store: {error}") from None
    checked: Shape = shape
    return np.frombuffer(body, dtype).reshape(checked)
