"""The definition of the contract in code, NumPy only. Written to be read beside the contract, not to be fast.

Axes are (N, outer, C, inner) as `contract.py` says; `bounds` are (N, 1 or C, 2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Array, Bounds, Coefficients

Int64 = NDArray[np.int64]


def affine(images: Array, k: Coefficients, out: Array, bounds: Bounds | None, threads: int = 1) -> None:
    """v = A*M + B, then the plan's normalisation (contract sections 1 and 3)."""
    if k.M24 is not None and k.B24 is not None:
        out[...] = _range_uint8(images, k.M24, k.B24)
        return
    v = images.astype(np.int64) * k.M + k.B
    if k.normalize == "none":
        out[...] = v
        return
    if bounds is not None:
        axes = (1, 2, 3) if k.normalize == "minmax" else (1, 3)
        bounds[..., 0] = v.min(axes).reshape(bounds.shape[:2])
        bounds[..., 1] = v.max(axes).reshape(bounds.shape[:2])
    lo, hi = _bounds(k, bounds)
    if k.dtype == "uint8":
        out[...] = _minmax_uint8(v, lo, hi)
    else:
        out[...] = _store_float(_float32(v, lo, hi, k), k.dtype)


def affine_inverse(images: Array, k: Coefficients, bounds: Bounds | None, out: Array, threads: int = 1) -> int:
    """A from y, with the key (contract section 4)."""
    if k.normalize == "none":
        a, bad = _inverse_none(images.astype(np.int64), k)
    elif k.dtype == "uint8":
        lo, hi = _bounds(k, bounds)
        a, bad = _inverse_uint8(images.astype(np.int64), lo, hi, k), None
    else:
        lo, hi = _bounds(k, bounds)
        y = _load_float(images, k.dtype)
        a, bad = _inverse_float(y, lo, hi, k), ~np.isfinite(y)
    out[...] = np.clip(a, 0, 255)
    return int(bad.argmax()) if bad is not None and bad.any() else -1


def _bounds(k: Coefficients, bounds: Bounds | None) -> tuple[Int64, Int64]:
    """lo and hi, shaped to broadcast over (N, outer, C, inner)."""
    if bounds is None:
        return np.array(k.lo, np.int64), np.array(k.hi, np.int64)
    spread = bounds.astype(np.int64)[:, None, :, None, :]
    return spread[..., 0], spread[..., 1]


def _range_uint8(images: Array, m24: NDArray[np.uint32], b24: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """uint8 "range": 24-bit fixed point; uint32 arithmetic wraps modulo 2**32 as the contract asks."""
    return (images.astype(np.uint32) * m24 + b24) >> np.uint32(24)


def _minmax_uint8(v: Int64, lo: Int64, hi: Int64) -> NDArray[np.float32]:
    """uint8 min-max: each step one float32 operation; ties to even."""
    span = (hi - lo).astype(np.float32)
    s = np.divide(np.float32(255), span, out=np.zeros_like(span), where=span > 0)
    return np.clip(np.rint((v - lo).astype(np.float32) * s), 0, 255)


def _gain(lo: Int64, hi: Int64, k: Coefficients) -> NDArray[np.float32]:
    """g[c] = float32(1 / (float64(hi - lo) * std[c])), 0 where hi == lo; broadcasts over (N, outer, C, inner)."""
    divisor = (hi - lo).astype(np.float64) * k.std[:, None]
    return np.divide(1.0, divisor, out=np.zeros_like(divisor), where=divisor > 0).astype(np.float32)


def _float32(v: Int64, lo: Int64, hi: Int64, k: Coefficients) -> NDArray[np.float32]:
    """float32 in the unit range with mean and std: two roundings."""
    assert k.b is not None
    return (v - lo).astype(np.float32) * _gain(lo, hi, k) + k.b[:, None]


def _store_float(y: NDArray[np.float32], dtype: str) -> Array:
    """float32 to the storage of `dtype`, to nearest even."""
    if dtype == "bfloat16":
        bits = y.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return y.astype(dtype)


def _load_float(y: Array, dtype: str) -> NDArray[np.float64]:
    """The storage of `dtype` as float64, exactly."""
    if dtype == "bfloat16":
        y = (y.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return y.astype(np.float64)


def _div(p: Int64, q: Int64) -> Int64:
    """The nearest integer to p/q, halves up; where q < 0 both are negated first."""
    p, q = np.where(q < 0, -p, p), np.abs(q)
    n = p // q
    r = p - n * q
    return n + (r >= q - r)


def _inverse_none(v: Int64, k: Coefficients) -> tuple[Int64, NDArray[np.bool_]]:
    a = (v - k.B) // k.M
    bad = (v < k.lo) | (v > k.hi) | (a * k.M != v - k.B) | (a < 0) | (a > 255)
    return a, bad


def _inverse_uint8(y: Int64, lo: Int64, hi: Int64, k: Coefficients) -> Int64:
    return _div(y * (hi - lo) + 255 * (lo - k.B), 255 * k.M.astype(np.int64))


def _inverse_float(y: NDArray[np.float64], lo: Int64, hi: Int64, k: Coefficients) -> NDArray[Any]:
    """From floats, in float64 and in this order: ((y - b)/g + lo - B)/M + 1/2, floor. Where hi == lo, v is lo."""
    assert k.b is not None
    g = _gain(lo, hi, k).astype(np.float64)
    y = np.where(np.isfinite(y), y, 0.0)  # reported as bad by the caller
    difference = y - k.b.astype(np.float64)[:, None]
    v = np.divide(difference, g, out=np.zeros_like(difference), where=g > 0) + lo
    return np.floor((v - k.B) / k.M + 0.5)
