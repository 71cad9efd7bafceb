"""The contract on the CPU with Numba: flat views, slices for the threads, and which kernel does what.

The loops are in `numba_kernels` and `numba_inverse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from . import numba_inverse, numba_kernels, pool
from .contract import Array, Bounds, Coefficients

#: A thread that transforms fewer pixels than this costs more than it brings.
LEAST_WORK = 1 << 19
#: Transforming in place goes through a buffer of about this size, which the processor's cache holds.
STAGE_BYTES = 1 << 20
_INT32 = np.iinfo(np.int32)


class Box(NamedTuple):
    """The images first..last at the positions begin..end: the share of one thread."""

    first: int
    last: int
    begin: int
    end: int


class Scaling(NamedTuple):
    """What normalises: the arguments of the kernels `scaled` and `interleaved`.

    `limits` is (1 or N, 1 or C, 2), `std` and `bias` have one entry for each channel that is unlike the others.
    """

    limits: Bounds
    std: NDArray[np.float64]
    bias: NDArray[np.float32]
    woven: bool

    def arguments(self, box: Box, key: tuple[Array, Array]) -> tuple[Array, ...]:
        limits = self.limits[box.first : box.last] if len(self.limits) > 1 else self.limits
        return *key, limits, self.std, self.bias


def affine(images: Array, k: Coefficients, out: Array, bounds: Bounds | None, threads: int) -> None:
    """v = A*M + B, then the plan's normalisation, as `contract.py` says."""
    if not _regular(out):
        staged = np.empty(out.shape, out.dtype)
        affine(images, k, staged, bounds, threads)
        out[...] = staged
        return
    for start, source in _staged(images, out):
        part = slice(start, start + len(source))
        _affine(source, k, out[part], None if bounds is None else bounds[part], threads)


def affine_inverse(images: Array, k: Coefficients, bounds: Bounds | None, out: Array, threads: int) -> int:
    """A from what `affine` wrote; -1, or the flat index of the first impossible value, as `contract.py` says."""
    for start, source in _staged(images, out):
        part = slice(start, start + len(source))
        found = _inverse(source, k, None if bounds is None else bounds[part], out[part], threads)
        if found >= 0:
            return start * k.M.size + found
    return -1


def _staged(images: Array, out: Array) -> Iterator[tuple[int, Array]]:
    """The images, part by part where `out` is the same memory: LLVM's vector loops ask that they lie apart."""
    if _regular(images) and not np.may_share_memory(images, out):
        yield 0, images
        return
    step = max(1, STAGE_BYTES * len(images) // max(1, images.nbytes))
    buffer = np.empty((min(step, len(images)), *images.shape[1:]), images.dtype)
    for start in range(0, len(images), step):
        part = images[start : start + step]
        copy = buffer[: len(part)]
        copy[...] = part
        yield start, copy


def _affine(images: Array, k: Coefficients, out: Array, bounds: Bounds | None, threads: int) -> None:
    if k.normalize != "none" and k.M24 is None:
        _affine_scaled(images, k, out, bounds, threads)
        return
    boxes = _split(len(images), k.M.size, threads)
    if k.M24 is not None and k.B24 is not None:
        _run(numba_kernels.fixed, images, out, boxes, [(_frozen(k.M24), _frozen(k.B24))] * len(boxes), threads)
    else:
        _run(numba_kernels.plain, images, out, boxes, [(_frozen(k.M), _frozen(k.B))] * len(boxes), threads)


def _inverse(images: Array, k: Coefficients, bounds: Bounds | None, out: Array, threads: int) -> int:
    key = (_frozen(k.M), _frozen(k.B))
    if k.normalize == "none":
        boxes = _split(len(images), k.M.size, threads)
        kernel: Callable[..., Any] = numba_inverse.plain
        tails: list[tuple[Any, ...]] = [(*key, int(k.lo), int(k.hi))] * len(boxes)
    else:
        scaling = _scaling(k, None if bounds is None else _frozen(bounds).reshape(bounds.shape))
        boxes = _split(len(images), k.M.size, threads, align=len(scaling.bias))
        kernel = numba_inverse.interleaved if scaling.woven else numba_inverse.scaled
        tails = [scaling.arguments(box, key) for box in boxes]
    found = _run(kernel, images, out, boxes, tails, threads)
    return min((box.first * k.M.size + at for box, at in zip(boxes, found, strict=True) if at >= 0), default=-1)


def _affine_scaled(images: Array, k: Coefficients, out: Array, bounds: Bounds | None, threads: int) -> None:
    """Min-max and floats. Fewer images than threads share their extents between measuring and scaling."""
    key, scaling = (_frozen(k.M), _frozen(k.B)), _scaling(k, bounds)
    kernel = numba_kernels.interleaved if scaling.woven else numba_kernels.scaled
    measure = bounds is not None
    boxes = _split(len(images), k.M.size, threads, align=len(scaling.bias), whole=measure)
    if bounds is not None and any(box.end - box.begin < k.M.size for box in boxes):
        extents = np.empty((len(boxes), *bounds.shape), np.int32)
        extents[..., 0], extents[..., 1] = _INT32.max, _INT32.min
        tails = [
            (*scaling._replace(limits=part).arguments(box, key), True, False)
            for box, part in zip(boxes, extents, strict=True)
        ]
        _run(kernel, images, out, boxes, tails, threads)
        bounds[..., 0], bounds[..., 1] = extents[..., 0].min(axis=0), extents[..., 1].max(axis=0)
        measure = False
    _run(kernel, images, out, boxes, [(*scaling.arguments(box, key), measure, True) for box in boxes], threads)


def _scaling(k: Coefficients, bounds: Bounds | None) -> Scaling:
    limits = np.array([[[k.lo, k.hi]]], np.int32) if bounds is None else bounds
    bias = np.zeros(len(k.std), np.float32) if k.b is None else np.array(k.b)
    std = np.array(k.std)
    outer, channels, _ = k.M.shape
    if limits.shape[1] == 1 and len({*zip(std.tolist(), bias.tolist(), strict=True)}) == 1:
        channels = 1  # all alike: one long run
    return Scaling(limits, std[:channels], bias[:channels], woven=channels > 1 and outer > 1)


def _split(images: int, size: int, threads: int, align: int = 1, whole: bool = False) -> list[Box]:
    """Shares of about equal work: of the batch, or of every image where they are few.

    `align`: positions are cut at its multiples. `whole`: images are cut only where they are fewer than the threads.
    """
    parts = max(1, min(threads, images * size // LEAST_WORK))
    if parts == 1:
        return [Box(0, images, 0, size)] if images else []
    if images >= (parts if whole else 4 * parts):
        cuts = _cuts(images, parts, 1)
        return [Box(first, last, 0, size) for first, last in pairwise(cuts) if first < last]
    cuts = _cuts(size, parts, 64 * align)
    return [Box(0, images, begin, end) for begin, end in pairwise(cuts) if begin < end]


def _cuts(total: int, parts: int, align: int) -> list[int]:
    return [total * part // parts // align * align for part in range(parts)] + [total]


def _run(
    kernel: Callable[..., Any],
    source: Array,
    target: Array,
    boxes: Sequence[Box],
    tails: Sequence[tuple[Any, ...]],
    threads: int,
) -> list[Any]:
    """The results of `kernel` on each box, with the arguments that are its own in `tails`."""
    if not boxes:
        return []
    x, x0, xs = _flat(source)
    y, y0, ys = _flat(target)
    x.flags.writeable = False  # else Numba compiles once for read-only images and once for others
    tasks = [
        partial(kernel, x, x0 + box.first * xs, xs, y, y0 + box.first * ys, ys, box.last - box.first, *box[2:], *tail)
        for box, tail in zip(boxes, tails, strict=True)
    ]
    return pool.run(tasks, threads)


def _regular(array: Array) -> bool:
    """Whether elements lie as compiled code expects them. Fields of a packed record do not."""
    return array.flags.aligned and array.strides[0] % array.itemsize == 0


def _flat(array: Array) -> tuple[Array, int, int]:
    """All memory from the first image to the last as one flat array, where image 0 starts and the step to image 1."""
    array = array.view(np.int16) if array.dtype == np.float16 else array
    if array.flags.c_contiguous:
        return array.reshape(-1), 0, array[0].size
    step = array.strides[0] // array.itemsize
    reach = abs(step) * (len(array) - 1)
    lowest = array[-1] if step < 0 else array[0]
    flat = as_strided(lowest, (reach + lowest.size,), (array.itemsize,), writeable=bool(array.flags.writeable))
    return flat, reach if step < 0 else 0, step


def _frozen(array: Array) -> Array:
    flat = array.reshape(-1)
    flat.flags.writeable = False
    return flat
