"""Triton's kernels among the peers: the straightforward ones, and ones that keep the key in registers over images.

Numbers are folded into a float32 scale and shift a position, as an informed user would; "range" to uint8 is in the
contract's fixed point too. Images, keys and results are flat; `size` is the positions of one image.
"""

# ruff: noqa: SIM108 - a constant decides which branch is compiled
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plain_range(x, scale, shift, y, size, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """One program a block of positions of one image: y = x * scale + shift."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < size
    at = tl.program_id(1).to(tl.int64) * size + position
    a = tl.load(x + at, mask=inside, other=0).to(tl.float32)
    v = a * tl.load(scale + position, mask=inside, other=0) + tl.load(shift + position, mask=inside, other=0)
    if HALF:
        tl.store(y + at, (v + 0.5).to(tl.int32).to(tl.uint8), mask=inside)
    else:
        tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def kept_range(
    x, scale, shift, y, size, count, groups,
    HALF: tl.constexpr, BLOCK: tl.constexpr, IMAGES: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One program a block of positions, for every image of its group: the key is read once."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < size
    g = tl.load(scale + position, mask=inside, other=0)[None, :]
    b = tl.load(shift + position, mask=inside, other=0)[None, :]
    for first in range(tl.program_id(1) * IMAGES, count, groups * IMAGES):
        image = first + tl.arange(0, IMAGES)
        at = image.to(tl.int64)[:, None] * size + position[None, :]
        if WHOLE:
            a = tl.load(x + at)
        else:
            a = tl.load(x + at, mask=(image < count)[:, None] & inside[None, :], other=0)
        v = a.to(tl.float32) * g + b
        if HALF:
            r = (v + 0.5).to(tl.int32).to(tl.uint8)
        else:
            r = v.to(y.dtype.element_ty)
        if WHOLE:
            tl.store(y + at, r)
        else:
            tl.store(y + at, r, mask=(image < count)[:, None] & inside[None, :])


@triton.jit
def kept_fixed(
    x, m24, b24, y, size, count, groups,
    BLOCK: tl.constexpr, IMAGES: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """As `kept_range`, in 24-bit fixed point: y = (x * m24 + b24) >> 24, the contract's bits."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < size
    m = tl.load(m24 + position, mask=inside, other=0)[None, :]
    b = tl.load(b24 + position, mask=inside, other=0)[None, :]
    for first in range(tl.program_id(1) * IMAGES, count, groups * IMAGES):
        image = first + tl.arange(0, IMAGES)
        at = image.to(tl.int64)[:, None] * size + position[None, :]
        if WHOLE:
            a = tl.load(x + at)
        else:
            a = tl.load(x + at, mask=(image < count)[:, None] & inside[None, :], other=0)
        r = (((a.to(tl.int32) * m + b) >> 24) & 255).to(tl.uint8)
        if WHOLE:
            tl.store(y + at, r)
        else:
            tl.store(y + at, r, mask=(image < count)[:, None] & inside[None, :])


@triton.jit
def plain_minmax(x, m, b, y, size, BLOCK: tl.constexpr):
    """One program an image, in two passes over it."""
    base = tl.program_id(0).to(tl.int64) * size
    offset = tl.arange(0, BLOCK)
    least = tl.full((BLOCK,), 2147483647, tl.int32)
    most = tl.full((BLOCK,), -2147483648, tl.int32)
    for start in range(0, size, BLOCK):
        position = start + offset
        inside = position < size
        a = tl.load(x + base + position, mask=inside, other=0).to(tl.int32)
        v = a * tl.load(m + position, mask=inside, other=0) + tl.load(b + position, mask=inside, other=0)
        least = tl.minimum(least, tl.where(inside, v, 2147483647))
        most = tl.maximum(most, tl.where(inside, v, -2147483648))
    lo = tl.min(least, 0)
    s = 255.0 / (tl.max(most, 0) - lo).to(tl.float32)
    for start in range(0, size, BLOCK):
        position = start + offset
        inside = position < size
        a = tl.load(x + base + position, mask=inside, other=0).to(tl.int32)
        v = a * tl.load(m + position, mask=inside, other=0) + tl.load(b + position, mask=inside, other=0)
        r = ((v - lo).to(tl.float32) * s + 0.5).to(tl.int32).to(tl.uint8)
        tl.store(y + base + position, r, mask=inside)


@triton.jit
def kept_minmax(x, m, b, y, size, count, BLOCK: tl.constexpr, IMAGES: tl.constexpr):
    """Images of at most BLOCK positions: a program keeps the whole key, and reads each image once."""
    position = tl.arange(0, BLOCK)
    inside = position < size
    gain = tl.load(m + position, mask=inside, other=0)[None, :]
    bias = tl.load(b + position, mask=inside, other=0)[None, :]
    for first in range(tl.program_id(0) * IMAGES, count, tl.num_programs(0) * IMAGES):
        image = first + tl.arange(0, IMAGES)
        at = image.to(tl.int64)[:, None] * size + position[None, :]
        there = (image < count)[:, None] & inside[None, :]
        v = tl.load(x + at, mask=there, other=0).to(tl.int32) * gain + bias
        lo = tl.min(tl.where(there, v, 2147483647), 1)[:, None]
        hi = tl.max(tl.where(there, v, -2147483648), 1)[:, None]
        s = 255.0 / (hi - lo).to(tl.float32)
        tl.store(y + at, ((v - lo).to(tl.float32) * s + 0.5).to(tl.int32).to(tl.uint8), mask=there)


@triton.jit
def extremes(x, m, b, least, most, size, count, groups, BLOCK: tl.constexpr, IMAGES: tl.constexpr):
    """First of two launches for large images: the smallest and largest v of each, by atomics."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < size
    gain = tl.load(m + position, mask=inside, other=0)[None, :]
    bias = tl.load(b + position, mask=inside, other=0)[None, :]
    for first in range(tl.program_id(1) * IMAGES, count, groups * IMAGES):
        image = first + tl.arange(0, IMAGES)
        at = image.to(tl.int64)[:, None] * size + position[None, :]
        there = (image < count)[:, None] & inside[None, :]
        v = tl.load(x + at, mask=there, other=0).to(tl.int32) * gain + bias
        tl.atomic_min(least + image, tl.min(tl.where(there, v, 2147483647), 1), mask=image < count)
        tl.atomic_max(most + image, tl.max(tl.where(there, v, -2147483648), 1), mask=image < count)


@triton.jit
def rescale(x, m, b, least, most, y, size, count, groups, BLOCK: tl.constexpr, IMAGES: tl.constexpr):
    """Second of two launches for large images."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < size
    gain = tl.load(m + position, mask=inside, other=0)[None, :]
    bias = tl.load(b + position, mask=inside, other=0)[None, :]
    for first in range(tl.program_id(1) * IMAGES, count, groups * IMAGES):
        image = first + tl.arange(0, IMAGES)
        at = image.to(tl.int64)[:, None] * size + position[None, :]
        there = (image < count)[:, None] & inside[None, :]
        lo = tl.load(least + image, mask=image < count, other=0)[:, None]
        hi = tl.load(most + image, mask=image < count, other=1)[:, None]
        s = 255.0 / (hi - lo).to(tl.float32)
        v = tl.load(x + at, mask=there, other=0).to(tl.int32) * gain + bias
        tl.store(y + at, ((v - lo).to(tl.float32) * s + 0.5).to(tl.int32).to(tl.uint8), mask=there)
