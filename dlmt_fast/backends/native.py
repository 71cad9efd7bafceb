"""The C++ backend: loops compiled for several instruction sets, the best of which is chosen when first used.

The environment variable DLMT_CPU_LEVEL, or `set_level`, names another. All give the same bits.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import BackendError
from .built import why_missing
from .contract import Array, Bounds, Coefficients

try:
    _cpu = importlib.import_module("dlmt_fast._cpu")
except ModuleNotFoundError as error:
    raise BackendError(f"the native module dlmt_fast._cpu is missing: {why_missing('native')}") from error
except ImportError as error:
    raise BackendError(f"the native module dlmt_fast._cpu cannot be loaded: {error}") from error


def prepared(k: Coefficients, shape3: tuple[int, ...] | None = None) -> Any:
    """The coefficients as the C++ side keeps them, checked once; kept in `k.cache`.

    Args:
        shape3: the axes of one image in the caller's order, as they lie in memory; `direct` then takes such arrays.

    The object has `affine(images, out, bounds, threads)`, `affine_inverse(images, out, bounds, threads)`,
    `direct(images, out, threads)`, which returns whether it did the work, and
    `direct_pointers(in_ptr, out_ptr, n, threads)`, whose caller answers for the memory. They raise `_cpu.LevelError`
    where DLMT_CPU_LEVEL names no level.
    """
    name = "native" if shape3 is None else f"native {shape3}"
    found = k.cache.get(name)
    if found is None:
        if shape3 is None:
            found = _cpu.Prepared(
                k.normalize, k.dtype, k.lo, k.hi, k.M, k.B, k.M24, k.B24, k.std, k.g, k.b
            )  # by two threads at once: either serves
        else:
            found = prepared(k).with_shape(shape3)
        k.cache[name] = found
    return found


def affine(images: Array, k: Coefficients, out: Array, bounds: Bounds | None, threads: int = 1) -> None:
    """See `contract`."""
    try:
        prepared(k).affine(images, out, bounds, threads)
    except _cpu.LevelError as error:
        raise BackendError(str(error)) from None


def affine_inverse(images: Array, k: Coefficients, bounds: Bounds | None, out: Array, threads: int = 1) -> int:
    """See `contract`."""
    try:
        found: int = prepared(k).affine_inverse(images, out, bounds, threads)
    except _cpu.LevelError as error:
        raise BackendError(str(error)) from None
    return found


def copy(images: Array, out: Array, streaming: bool = False, threads: int = 1) -> None:
    """Only move the bytes, as fast as this machine can: the limit that benchmarks divide by.

    Args:
        images: uint8, contiguous.
        out: uint8 (a copy) or float32 (a conversion), the same shape, contiguous.
        streaming: use stores that pass the caches, where the CPU level has them: they win where `out` is larger than
            the caches, and lose where it is not.
        threads: an upper limit.
    """
    try:
        _cpu.copy(images, out, streaming, threads)
    except _cpu.LevelError as error:
        raise BackendError(str(error)) from None


def unfilter(rows: Array, out: Array) -> bool:
    """Undo the filters of a PNG image's rows; returns whether every filter is one.

    Args:
        rows: uint8, contiguous: for each row of the image its filter, 0 to 4, and W * C bytes.
        out: uint8 (H, W, C) with C 1 or 3, contiguous. What it holds after False is undefined.
    """
    try:
        return bool(_cpu.unfilter(rows, out))
    except _cpu.LevelError as error:
        raise BackendError(str(error)) from None


def levels() -> list[str]:
    """The CPU levels built and supported by this machine, best first."""
    found: list[str] = _cpu.levels()
    return found


def level() -> str:
    """The CPU level in use.

    Raises:
        BackendError: DLMT_CPU_LEVEL names none of `levels()`.
    """
    try:
        return str(_cpu.level())
    except _cpu.LevelError as error:
        raise BackendError(str(error)) from None


def set_level(name: str) -> None:
    """Use another of `levels()` from now on, in the whole process.

    Raises:
        BackendError: `name` is none of them; nothing changes.
    """
    try:
        _cpu.set_level(name)
    except _cpu.LevelError as error:
        raise BackendError(str(error)) from None
