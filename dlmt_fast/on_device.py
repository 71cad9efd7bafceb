"""`encrypt` and `decrypt` for images that lie on a GPU: checked here, transformed there.

Images that lie dense as NCHW or NHWC are read where they are. Others are copied on the device first, whole, by the
library that owns them. Nothing comes to main memory but the bounds given to `decrypt` and one number of its check.
Used by `functional` alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import backends
from .arrays import overlaps_itself
from .bounds import caller_shape, cannot_decrypt, check_missing, check_shape, check_values, is_minmax
from .device_arrays import DeviceImages, adopt, borrowed, is_dense, library_of, no_bfloat16, on_gpu, returned
from .errors import BackendError, InputShapeError, InputTypeError, wrong_dtype
from .schemes.plan import Plan


def encrypt(images: Any, plan: Plan, out: Any, layout: str, backend: str, return_bounds: bool) -> Any:
    """See `functional.encrypt`; the images are on a GPU."""
    library = library_of(images)
    if library is None:
        lent, target = borrowed(images), _borrowed_out(out, images)
        given = encrypt(lent, plan, target, layout, backend, return_bounds)
        y, bounds = given if return_bounds else (given, None)
        y = returned(y, images) if out is None else out
        return (y, returned(bounds, images)) if return_bounds else y
    source = adopt(library, images, "images", "uint8", plan, layout)
    target = _target(out, source, plan.dtype, plan)
    module = _module(backend, source)
    shape = caller_shape(plan, source.count, source.batched)
    bounds = None
    if is_minmax(plan):
        bounds = library.empty(shape, tuple(range(len(shape))), "int32", images)
    elif return_bounds:
        bounds = library.pairs(shape, plan.lo, plan.hi, images)
    if source.count:
        order, dense = _dense(source, target)
        k = plan.coefficients(order)
        pointer = library.pointer(bounds) if is_minmax(plan) else 0
        read = source.staged(order)
        module.affine(k, read.pointer, dense.pointer, pointer, source.count, source.device, library.stream(images))
        if dense is not target:
            library.copy(target.array, dense.array)
    return (target.array, bounds) if return_bounds else target.array


def decrypt(images: Any, plan: Plan, bounds: Any, out: Any, layout: str, backend: str) -> Any:
    """See `functional.decrypt`; the images are on a GPU."""
    library = library_of(images)
    if library is None:
        lent, target = borrowed(images), _borrowed_out(out, images)
        pairs = borrowed(bounds) if bounds is not None and library_of(bounds) is None and on_gpu(bounds) else bounds
        y = decrypt(lent, plan, pairs, target, layout, backend)
        return returned(y, images) if out is None else out
    source = adopt(library, images, "images", plan.dtype, plan, layout)
    fallible = plan.dtype != "uint8" or plan.normalize == "none"
    if (fallible or bounds is not None) and library.capturing(images):
        raise BackendError(
            "decrypt waits for the device, to look at bounds and at values that no key gave, so it cannot be captured "
            "in a CUDA graph; call it outside the capture"
        )
    pairs = _given_bounds(bounds, plan, source)
    target = _target(out, source, "uint8", plan)
    module = _module(backend, source)
    if source.count == 0:
        return target.array
    order, dense = _dense(source, target)
    read, bad = source.staged(order), library.empty((1,), (0,), "int64", images)  # kept until the work is queued
    pointer = library.pointer(pairs) if pairs is not None else 0
    module.affine_inverse(
        plan.coefficients(order),
        read.pointer,
        pointer,
        dense.pointer,
        library.pointer(bad),
        source.count,
        source.device,
        library.stream(images),
    )
    found = int(library.to_host(bad)[0]) if fallible else -1
    if found >= 0:
        raise cannot_decrypt(found, 0, order, plan)
    if dense is not target:
        library.copy(target.array, dense.array)
    return target.array


def runs_on(images: Any) -> tuple[str, str]:
    """("cuda", the device's name and number)."""
    library = library_of(images)
    if library is None:
        images = borrowed(images)
        library = library_of(images)
        assert library is not None
    device = library.device(images)
    module: Any = backends.get("cuda")
    return "cuda", f"{module.devices()[device]['name']} (cuda:{device})"


def _module(backend: str, source: DeviceImages) -> Any:
    """The CUDA backend.

    Raises:
        ParameterError: there is no backend of that name.
        BackendError: another backend was named, or CUDA cannot run here.
    """
    place = f"cuda:{source.device}"
    if backend not in ("auto", "cuda"):
        backends.check_name(backend)
        raise BackendError(
            f'backend="{backend}" works in main memory, and the images are on {place}; nothing is copied behind your '
            'back: use backend="auto" or "cuda", or move the images to the CPU and the result back'
        )
    try:
        return backends.get("cuda")
    except BackendError as error:
        raise BackendError(
            f"the images are on {place}, and the CUDA backend cannot run here: {error}; nothing is copied behind your "
            "back: move the images to the CPU, and the result back"
        ) from None


def _borrowed_out(out: Any, images: Any) -> Any:
    if out is None or out is images:
        return None if out is None else borrowed(out, written=True)
    if not on_gpu(out) or library_of(out) is not None:
        raise _another_kind(out, images)
    return borrowed(out, written=True)


def _another_kind(out: Any, images: Any) -> InputTypeError:
    got, wanted = (f"{type(value).__module__}.{type(value).__qualname__}" for value in (out, images))
    return InputTypeError(
        f"out must be of the same kind as the images, and on a GPU as they are: got {got} for images of {wanted}"
    )


def _target(out: Any, source: DeviceImages, dtype: str, plan: Plan) -> DeviceImages:
    """Where the result goes: checked, or new memory that lies as the images do."""
    if out is None:
        if dtype == "bfloat16" and source.library.name != "torch":
            raise no_bfloat16(source.library.name)
        return source.fresh(dtype, source.nearest_order)
    if not on_gpu(out) or library_of(out) is not source.library:
        raise _another_kind(out, source.array)
    target = adopt(source.library, out, "out", dtype, plan, source.layout)
    if target.shape != source.shape:
        raise InputShapeError(f"out has shape {target.shape}, the images {source.shape}; they must be equal")
    if target.device != source.device:
        raise InputTypeError(f"out is on cuda:{target.device} and the images on cuda:{source.device}; use one device")
    _check_overlap(source, target)
    return target


def _check_overlap(source: DeviceImages, target: DeviceImages) -> None:
    if overlaps_itself(target.shape, target.strides, target.itemsize):
        raise InputTypeError("out cannot be written: it is a view whose elements share memory")
    (low, high), (start, end) = source.reach(), target.reach()
    if high <= start or end <= low:
        return
    same = source.pointer == target.pointer and source.dtype == target.dtype and source.strides == target.strides
    if not same and np.shares_memory(source.addresses(), target.addresses()):
        raise InputTypeError("out overlaps the images; pass the very same array (uint8 only) or separate memory")


def _dense(source: DeviceImages, target: DeviceImages) -> tuple[str, DeviceImages]:
    """The order in memory to work in, and dense memory for the result: the target itself where it will do."""
    order = target.order or source.nearest_order
    return order, target if target.order == order else target.fresh(target.dtype, order)


def _given_bounds(bounds: Any, plan: Plan, source: DeviceImages) -> Any:
    """The caller's bounds, dense, on the images' device; None where the plan needs none."""
    if bounds is None:
        check_missing(plan)
        return None
    library = source.library
    if not on_gpu(bounds) or library_of(bounds) is not library or library.device(bounds) != source.device:
        raise InputTypeError(
            f"bounds must be an int32 array of {library.name} on cuda:{source.device}, as encrypt(..., "
            f"return_bounds=True) gives; got {type(bounds).__module__}.{type(bounds).__qualname__}"
            f"{f' on {bounds.device}' if hasattr(bounds, 'device') else ''}"
        )
    if library.dtype(bounds) != "int32":
        raise wrong_dtype("bounds", "int32", library.dtype(bounds))
    sizes = tuple(int(size) for size in bounds.shape)
    check_shape(sizes, plan, source.count, source.batched)
    check_values(library.to_host(bounds), plan)
    if not is_minmax(plan):
        return None
    axes = tuple(range(len(sizes)))
    if is_dense(sizes, library.strides(bounds), 4):
        return bounds
    dense = library.empty(sizes, axes, "int32", bounds)
    library.copy(dense, bounds)
    return dense
