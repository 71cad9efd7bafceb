"""Numba loops of `affine`: v = A*M + B and its normalisation (contract sections 1 and 3).

Every kernel takes the images and the result as flat arrays, with the place of the first image and the step from one
image to the next, and works on `n` images at the positions p0..p1 of each. Helpers on a *row* see a run of positions
of one image and nothing else, so that LLVM vectorises them.

Numba widens int32 and uint32 expressions to 64 bits; the casts back let LLVM narrow the whole expression to 32-bit
lanes. Without fastmath nothing is contracted to a fused multiply-add, as the contract demands. A kernel calls only
functions of its own file, since Numba's cache is renewed when that file changes and no other.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import types
from numba.extending import overload

F = TypeVar("F", bound=Callable[..., Any])

_njit: Any = numba.njit  # typed in some versions of Numba only

#: NumPy's float16 and bfloat16 bits as Numba sees them: integers of 16 bits, told apart by the sign.
FLOAT16, BFLOAT16 = types.int16, types.uint16
#: Images of a row share the key: from this size on (in positions) re-reading it costs more than four streams at once.
KEY_IN_CACHE = 32768
#: Pixels in the tables of an interleaved row, powers of two: short where they are filled again for every image.
TABLE_PIXELS, RANGE_TABLE_PIXELS = 128, 512


def kernel(function: F) -> F:
    """Compiled at the first call, without the GIL, and cached on disk where Numba finds a place to write."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled = _njit(cache=True, **options)(function)
    except RuntimeError:  # "no locator available": neither __pycache__ nor the user's cache folder can be written
        return _njit(**options)(function)  # type: ignore[no-any-return]

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return compiled(*arguments)
        except OSError:  # a full disk: what was compiled could not be saved, but it is there
            return compiled(*arguments)

    return call  # type: ignore[return-value]


def row(function: F) -> F:
    """Compiled into the kernels that call it."""
    return _njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


@row
def _fixed_row(x, m, b, y):
    for p in range(m.size):
        y[p] = np.uint32(x[p] * m[p] + b[p]) >> np.uint32(24)


@row
def _fixed_row4(x0, x1, x2, x3, m, b, y0, y1, y2, y3):
    for p in range(m.size):
        y0[p] = np.uint32(x0[p] * m[p] + b[p]) >> np.uint32(24)
        y1[p] = np.uint32(x1[p] * m[p] + b[p]) >> np.uint32(24)
        y2[p] = np.uint32(x2[p] * m[p] + b[p]) >> np.uint32(24)
        y3[p] = np.uint32(x3[p] * m[p] + b[p]) >> np.uint32(24)


@kernel
def fixed(x, x0, xs, y, y0, ys, n, p0, p1, m24, b24):
    """uint8 "range": 24-bit fixed point modulo 2**32."""
    m, b, size, done = m24[p0:p1], b24[p0:p1], p1 - p0, 0
    i, j = x0 + p0, y0 + p0
    if size > KEY_IN_CACHE:
        while done + 4 <= n:
            i1, i2, i3 = i + xs, i + 2 * xs, i + 3 * xs
            j1, j2, j3 = j + ys, j + 2 * ys, j + 3 * ys
            _fixed_row4(
                x[i : i + size], x[i1 : i1 + size], x[i2 : i2 + size], x[i3 : i3 + size], m, b,
                y[j : j + size], y[j1 : j1 + size], y[j2 : j2 + size], y[j3 : j3 + size],
            )  # fmt: skip
            i, j, done = i + 4 * xs, j + 4 * ys, done + 4
    while done < n:
        _fixed_row(x[i : i + size], m, b, y[j : j + size])
        i, j, done = i + xs, j + ys, done + 1


@row
def _plain_row(x, m, b, y):
    for p in range(m.size):
        y[p] = np.int32(x[p] * m[p] + b[p])


@kernel
def plain(x, x0, xs, y, y0, ys, n, p0, p1, m, b):
    """ "none": v itself."""
    for image in range(n):
        i, j = x0 + image * xs, y0 + image * ys
        _plain_row(x[i + p0 : i + p1], m[p0:p1], b[p0:p1], y[j + p0 : j + p1])


def _encode(value, y):
    """float32 `value` as an element of `y`: its dtype picks. Rounding is to nearest, ties to even."""


@overload(_encode)
def _pick_encode(value, y):
    return {types.uint8: _to_uint8, types.float32: _to_float32, FLOAT16: _to_float16, BFLOAT16: _to_bfloat16}[y.dtype]


def _to_uint8(value, y):
    return np.uint8(np.int32(np.rint(value)))  # in 0..255: value is at most 255 * (1 + 2**-22)


def _to_float32(value, y):
    return value


def _to_bfloat16(value, y):
    bits = np.float32(value).view(np.uint32)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def _to_float16(value, y):
    """Without a branch. |value| < 65520, so nothing becomes infinite."""
    bits = np.float32(value).view(np.uint32)
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    even = np.uint32((size >> np.uint32(13)) & np.uint32(1))
    normal = np.uint32(size - np.uint32(0x38000000) + np.uint32(0xFFF) + even) >> np.uint32(13)
    # float32 around 0.5 has the spacing of float16's subnormals, 2**-24: the addition rounds
    subnormal = np.uint32(np.float32(size.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000))
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    return np.int16(sign | np.uint32(subnormal if size < np.uint32(0x38800000) else normal))


def _gain(span, std, y):
    """float32 scale for `y`; 0 where the image is constant."""


@overload(_gain, jit_options={"error_model": "numpy"})
def _pick_gain(span, std, y):
    return _gain_uint8 if y.dtype == types.uint8 else _gain_float


def _gain_uint8(span, std, y):
    return np.float32(255) / np.float32(span) if span > 0 else np.float32(0)


def _gain_float(span, std, y):
    return np.float32(1.0 / (np.float64(span) * std)) if span > 0 else np.float32(0)


@row
def _measure_row(x, m, b):
    lo, hi = np.int32(2**31 - 1), np.int32(-(2**31))
    for p in range(m.size):
        v = np.int32(x[p] * m[p] + b[p])
        lo = min(lo, v)
        hi = max(hi, v)
    return lo, hi


@row
def _scale_row(x, m, b, lo, g, c, y):
    for p in range(m.size):
        y[p] = _encode(np.float32(np.int32(x[p] * m[p] + b[p] - lo)) * g + c, y)


@kernel
def scaled(x, x0, xs, y, y0, ys, n, p0, p1, m, b, bounds, std, bias, measure, scale):
    """Min-max, and every float output, where each of `bias.size` channels is one run of positions.

    bounds (N or 1, 1 or C, 2) is written if `measure` is set, read if `scale` is set. Both in one call find the image
    still in the processor's cache.
    """
    for image in range(n):
        i, j, limits = x0 + image * xs, y0 + image * ys, bounds[image % len(bounds)]
        if measure:
            run = m.size // len(limits)
            for channel in range(p0 // run, (p1 + run - 1) // run):
                p, q = max(p0, channel * run), min(p1, (channel + 1) * run)
                limits[channel, 0], limits[channel, 1] = _measure_row(x[i + p : i + q], m[p:q], b[p:q])
        if scale:
            run = m.size // bias.size
            for channel in range(p0 // run, (p1 + run - 1) // run):
                p, q = max(p0, channel * run), min(p1, (channel + 1) * run)
                lo = limits[channel % len(limits), 0]
                gain = _gain(np.int64(limits[channel % len(limits), 1]) - lo, std[channel], y)
                _scale_row(x[i + p : i + q], m[p:q], b[p:q], lo, gain, bias[channel], y[j + p : j + q])


@row
def _measure_table(x, m, b, lo, hi):
    for p in range(m.size):
        v = np.int32(x[p] * m[p] + b[p])
        lo[p] = min(lo[p], v)
        hi[p] = max(hi[p], v)


@row
def _scale_table(x, m, b, lo, g, c, y):
    for p in range(m.size):
        y[p] = _encode(np.float32(np.int32(x[p] * m[p] + b[p] - lo[p])) * g[p] + c[p], y)


@row
def _fold(lo, hi, channels):
    """Brings the extents in a table together in its first C entries, by halves."""
    size = lo.size // 2
    while size >= channels:
        for p in range(size):
            lo[p] = min(lo[p], lo[p + size])
            hi[p] = max(hi[p], hi[p + size])
        size //= 2


@row
def _repeat(table, channels):
    """Fills a table with its first C entries, by doubling."""
    size = channels
    while size < table.size:
        for p in range(size):
            table[p + size] = table[p]
        size *= 2


@kernel
def interleaved(x, x0, xs, y, y0, ys, n, p0, p1, m, b, bounds, std, bias, measure, scale):
    """As `scaled`, where position p belongs to channel p % C, and p0 and p1 are multiples of C.

    What differs from channel to channel stands in tables as long as a row, one entry a position.
    """
    channels = bias.size
    length = channels * (TABLE_PIXELS if len(bounds) > 1 else RANGE_TABLE_PIXELS)
    lo, hi = np.empty(length, np.int32), np.empty(length, np.int32)
    gain, shift = np.empty(length, np.float32), np.empty(length, np.float32)
    for image in range(n):
        i, j, limits = x0 + image * xs, y0 + image * ys, bounds[image % len(bounds)]
        if measure and len(limits) == 1:
            limits[0, 0], limits[0, 1] = _measure_row(x[i + p0 : i + p1], m[p0:p1], b[p0:p1])
        elif measure:
            for p in range(length):
                lo[p] = 2**31 - 1
                hi[p] = -(2**31)
            for p in range(p0, p1, length):
                q = min(p1, p + length)
                _measure_table(x[i + p : i + q], m[p:q], b[p:q], lo, hi)
            _fold(lo, hi, channels)
            for channel in range(channels):
                limits[channel, 0], limits[channel, 1] = lo[channel], hi[channel]
        if scale and image < len(bounds):
            for channel in range(channels):
                least, most = limits[channel % len(limits), 0], limits[channel % len(limits), 1]
                lo[channel] = least
                gain[channel] = _gain(np.int64(most) - least, std[channel], y)
                shift[channel] = bias[channel]
            _repeat(lo, channels)
            _repeat(gain, channels)
            _repeat(shift, channels)
        if scale:
            for p in range(p0, p1, length):
                q = min(p1, p + length)
                _scale_table(x[i + p : i + q], m[p:q], b[p:q], lo, gain, shift, y[j + p : j + q])
