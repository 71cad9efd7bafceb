"""Numba loops of `affine_inverse` (contract section 4); what `numba_kernels` says of kernels and rows holds here too.

Everything is computed in float64. The integers that occur stay below 2**53, and a quotient p/q near 0..255 that is no
tie is at least 1/(2q) > 2**-41 from every tie, further than the roundings reach (2**-44): so floor(p/q + 1/2) is the
integer division of the contract. Negating p and q, as it asks for M < 0, leaves p/q as it is.

A row returns the first of its positions whose value cannot come from the key, or its size. It does so while writing,
because in place the values are gone afterwards.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from .numba_kernels import BFLOAT16, FLOAT16, RANGE_TABLE_PIXELS, TABLE_PIXELS, kernel, row


@row
def _plain_row(v, m, b, lo, hi, x):
    first = m.size
    for p in range(m.size):
        a = np.float64(v[p] - np.int64(b[p])) / np.float64(m[p])  # an integer only where M divides
        whole = np.int32(min(max(a, 0.0), 255.0))
        possible = (v[p] >= lo) & (v[p] <= hi) & (a == np.float64(whole))
        first = min(first, m.size if possible else p)
        x[p] = whole
    return first


@kernel
def plain(y, y0, ys, x, x0, xs, n, p0, p1, m, b, lo, hi):
    """From "none". The first impossible position, image * P + p, or -1."""
    for image in range(n):
        j, i = y0 + image * ys, x0 + image * xs
        first = _plain_row(y[j + p0 : j + p1], m[p0:p1], b[p0:p1], lo, hi, x[i + p0 : i + p1])
        if first < p1 - p0:
            return image * m.size + p0 + first
    return -1


def _undo(value, m, b, lo, g, c):
    """A + 1/2 before rounding down, and whether `value` is finite; the dtype of `value` picks."""


@overload(_undo, jit_options={"error_model": "numpy"})
def _pick_undo(value, m, b, lo, g, c):
    return {types.uint8: _undo_uint8, types.float32: _undo_float, FLOAT16: _undo_float16, BFLOAT16: _undo_bfloat16}[
        value
    ]


def _undo_uint8(value, m, b, lo, g, c):
    return (value * g + 255.0 * (lo - b)) / (255.0 * m) + 0.5, True


def _undo_float(value, m, b, lo, g, c):
    return ((np.float64(value) - c) / g + lo - b) / m + 0.5, abs(value) < np.inf


def _undo_bfloat16(value, m, b, lo, g, c):
    return _undo(np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32), m, b, lo, g, c)


def _undo_float16(value, m, b, lo, g, c):
    bits = np.uint32(np.uint16(value))
    size = np.uint32(bits & np.uint32(0x7FFF))
    normal = np.uint32(np.uint32(size << np.uint32(13)) + np.uint32(0x38000000)).view(np.float32)
    number = normal if size >= np.uint32(0x400) else np.float32(np.int32(size)) * np.float32(2.0**-24)
    number = number if size < np.uint32(0x7C00) else np.float32(np.inf)
    return _undo(np.float32(-number if bits > size else number), m, b, lo, g, c)


def _divisor(span, std, y):
    """What `_undo` takes as g: hi - lo for uint8, else the gain; infinite where hi == lo, so that v becomes lo."""


@overload(_divisor, jit_options={"error_model": "numpy"})
def _pick_divisor(span, std, y):
    return _divisor_uint8 if y.dtype == types.uint8 else _divisor_float


def _divisor_uint8(span, std, y):
    return np.float64(span)


def _divisor_float(span, std, y):
    return np.float64(np.float32(1.0 / (np.float64(span) * std))) if span > 0 else np.inf


@row
def _unscale_row(y, m, b, lo, g, c, x):
    first = m.size
    for p in range(m.size):
        a, finite = _undo(y[p], np.float64(m[p]), np.float64(b[p]), lo, g, c)
        first = min(first, m.size if finite else p)
        x[p] = np.int32(min(max(a, 0.0), 255.0))
    return first


@kernel
def scaled(y, y0, ys, x, x0, xs, n, p0, p1, m, b, bounds, std, bias):
    """From uint8 or floats, where each channel is one run. The first value that is not finite, or -1."""
    run = m.size // bias.size
    for image in range(n):
        j, i, limits = y0 + image * ys, x0 + image * xs, bounds[image % len(bounds)]
        for channel in range(p0 // run, (p1 + run - 1) // run):
            p, q = max(p0, channel * run), min(p1, (channel + 1) * run)
            lo, hi = np.int64(limits[channel % len(limits), 0]), np.int64(limits[channel % len(limits), 1])
            g, c = _divisor(hi - lo, std[channel], y), np.float64(bias[channel])
            first = _unscale_row(y[j + p : j + q], m[p:q], b[p:q], np.float64(lo), g, c, x[i + p : i + q])
            if first < q - p:
                return image * m.size + p + first
    return -1


@row
def _unscale_table(y, m, b, lo, g, c, x):
    first = m.size
    for p in range(m.size):
        a, finite = _undo(y[p], np.float64(m[p]), np.float64(b[p]), lo[p], g[p], c[p])
        first = min(first, m.size if finite else p)
        x[p] = np.int32(min(max(a, 0.0), 255.0))
    return first


@row
def _repeat(table, channels):
    """Fills a table with its first C entries, by doubling."""
    size = channels
    while size < table.size:
        for p in range(size):
            table[p + size] = table[p]
        size *= 2


@kernel
def interleaved(y, y0, ys, x, x0, xs, n, p0, p1, m, b, bounds, std, bias):
    """As `scaled`, where position p belongs to channel p % C, and p0 and p1 are multiples of C."""
    channels = bias.size
    length = channels * (TABLE_PIXELS if len(bounds) > 1 else RANGE_TABLE_PIXELS)
    lo, gain, shift = np.empty(length), np.empty(length), np.empty(length)
    for image in range(n):
        j, i, limits = y0 + image * ys, x0 + image * xs, bounds[image % len(bounds)]
        if image < len(bounds):
            for channel in range(channels):
                least, most = np.int64(limits[channel % len(limits), 0]), np.int64(limits[channel % len(limits), 1])
                lo[channel], shift[channel] = least, bias[channel]
                gain[channel] = _divisor(most - least, std[channel], y)
            _repeat(lo, channels)
            _repeat(gain, channels)
            _repeat(shift, channels)
        for p in range(p0, p1, length):
            q = min(p1, p + length)
            first = _unscale_table(y[j + p : j + q], m[p:q], b[p:q], lo, gain, shift, x[i + p : i + q])
            if first < q - p:
                return image * m.size + p + first
    return -1
