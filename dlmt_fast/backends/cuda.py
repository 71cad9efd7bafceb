"""The CUDA backend: images that lie on a GPU, given by device pointers, on the caller's stream.

It differs from the other backends in its arguments, since no NumPy array can stand for such memory: `on_device` in the
layer above looks at the arrays of torch, CuPy and the rest. Every call returns before the work is done, allocates
nothing and can be captured in a CUDA graph, once the plan has run on that device.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from ..errors import BackendError
from .built import why_missing
from .contract import Coefficients

try:
    _cuda = importlib.import_module("dlmt_fast._cuda")
except ModuleNotFoundError as error:
    raise BackendError(f"the CUDA module dlmt_fast._cuda is missing: {why_missing('cuda')}") from error
except ImportError as error:
    raise BackendError(f"the CUDA module dlmt_fast._cuda cannot be loaded: {error}") from error

_uploading = threading.Lock()


def status() -> str:
    """ "ok", or one sentence: why no kernel can run in this process."""
    return str(_cuda.status())


def require() -> None:
    """Raise where no kernel can run in this process, a forked child of one that used the GPU included.

    Raises:
        BackendError: with the sentence of `status`.
    """
    found = status()
    if found != "ok":
        raise BackendError(found)


def architectures() -> list[str]:
    """What the module was compiled for, as ["sm_80", "sm_90", "compute_100"]; the last is for newer devices."""
    return [str(name) for name in _cuda.architectures()]


def devices() -> list[dict[str, Any]]:
    """The visible devices in torch's numbering: name, capability ("9.0"), memory (bytes), multiprocessors."""
    return [dict(device) for device in _cuda.devices()]


def prepared(k: Coefficients) -> Any:
    """The coefficients as the CUDA side keeps them in main memory, checked once; kept in `k.cache`."""
    found = k.cache.get("cuda")
    if found is None:
        found = k.cache["cuda"] = _cuda.Prepared(
            k.normalize, k.dtype, k.lo, k.hi, k.M, k.B, k.M24, k.B24, k.std, k.g, k.b
        )
    return found


def on(k: Coefficients, device: int) -> Any:
    """The coefficients on one device, uploaded at the first call and kept in `k.cache` as long as the plan lives.

    Raises:
        BackendError: no memory, no such device, or the first call for this device came inside a graph capture.
    """
    name = f"cuda {device}"
    found = k.cache.get(name)
    if found is None:
        require()  # before the lock, which a forked child may never get
        with _uploading:
            found = k.cache.get(name)
            if found is None:
                try:
                    found = k.cache[name] = prepared(k).on(device)
                except (RuntimeError, ValueError) as error:
                    raise BackendError(str(error)) from None
    return found


def affine(k: Coefficients, images: int, out: int, bounds: int, n: int, device: int, stream: int) -> None:
    """Encrypt `n` images that lie one after the other, on the stream.

    Args:
        images, out: device pointers: uint8, and `k.dtype`, aligned to its elements. May be equal for uint8.
        bounds: device pointer to int32 (n, 1 or C, 2), written for min-max; 0 otherwise.
        stream: the stream's handle; 0 is the default stream.

    Raises:
        BackendError: the kernel could not be launched, with what CUDA says, or the module cannot take such pointers.
    """
    ready = on(k, device)
    try:
        ready.affine(images, out, bounds, n, stream)
    except (RuntimeError, ValueError) as error:
        raise BackendError(str(error)) from None


def affine_inverse(
    k: Coefficients, images: int, bounds: int, out: int, bad: int, n: int, device: int, stream: int
) -> None:
    """Decrypt `n` images that lie one after the other, on the stream.

    Args:
        bad: device pointer to an int64 that receives -1, or the smallest flat index (in memory order over images) of
            a value that cannot come from this key.

    Raises:
        BackendError: as for `affine`.
    """
    ready = on(k, device)
    try:
        ready.affine_inverse(images, bounds, out, bad, n, stream)
    except (RuntimeError, ValueError) as error:
        raise BackendError(str(error)) from None


def copy(images: int, out: int, elements: int, dtype: str, device: int, stream: int) -> None:
    """Only move the bytes: the limit that benchmarks divide by.

    Args:
        images, out: device pointers: uint8, and `dtype`: "uint8" (a copy), "float32", "float16" or "bfloat16" (a cast).
    """
    try:
        _cuda.copy(images, out, elements, dtype, device, stream)
    except (RuntimeError, ValueError) as error:
        raise BackendError(str(error)) from None
