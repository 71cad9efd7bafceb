"""`encrypt` and `decrypt`: the only place where inputs are checked. Everything is refused before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backends
from .arrays import Images, adopt, allocate, fresh_like, is_tensor, overlaps_itself, to_caller
from .backends.contract import Backend, Bounds
from .bounds import cannot_decrypt, check_missing, check_shape, check_values, is_minmax, kernel_shape
from .device_arrays import on_gpu
from .direct import default_threads, torch_looks_on, try_direct
from .errors import BackendError, InputShapeError, InputTypeError, ParameterError
from .schemes.plan import Plan

#: Images that do not lie in memory as the kernels read them pass through a buffer of about this size, slice by slice.
STAGE_BYTES = 1 << 20

#: Who looks on while images are transformed (see `checking`): each is called with (images, plan, out, layout,
#: backend, threads) before the work, and gives None, or what to call with (result, bounds or None) after it.
observers: list[Callable[..., Callable[[Any, Any], None] | None]] = []
unobserved: ContextVar[bool] = ContextVar("dlmt_fast_unobserved", default=False)


def encrypt(
    images: Any,
    plan: Plan,
    out: Any = None,
    layout: str = "NCHW",
    backend: str = "auto",
    threads: int | None = None,
    return_bounds: bool = False,
) -> Any:
    """Transform uint8 images with a plan (contract sections 1 and 3).

    Args:
        images: uint8 numpy.ndarray or torch.Tensor, or an array on a GPU (below); a batch, or one image without the
            axis N. Any strides.
        plan: from `scheme.plan(key, shape, ...)`.
        out: receives the result: the same kind, shape and layout as `images`, dtype `plan.dtype`; may be `images`
            itself for uint8. None allocates one that lies in memory as the images do.
        layout: the order of the axes: "NCHW", "NHWC", "CHW" or "HWC". "NCHW" and "NHWC" take one image as well.
        backend: "auto", "native", "numba", "reference" or "cuda"; all give the same bits. A named one never falls
            back. "auto" is "cuda" for what lies on a GPU, which no other backend takes.
        threads: upper limit on the CPU. None: torch's setting where torch is loaded, else the CPUs of this process.
        return_bounds: also return each image's (lo, hi) as int32 (N, 2), or (N, C, 2) for "minmax_channel"; without
            N for one image. `decrypt` needs them for min-max.

    Returns:
        The transformed images, or (images, bounds).

    On a GPU: images are CUDA tensors of torch, or arrays of CuPy, Numba or JAX, or of any library that speaks DLPack
    or `__cuda_array_interface__` (by way of torch, without a copy). The result and the bounds are on the same device
    and of the same kind; for libraries not named here they are torch tensors. The work is put on the library's current
    stream (for Numba, the array's), and the call does not wait for it. Where the images do not lie dense as NCHW or
    NHWC (channels-last tensors do), they are copied on the device first, which takes as much memory again; Numba's
    must be dense. The first call for a plan and device uploads the key, so make it before a graph capture; a captured
    graph needs its plan to stay alive.

    Raises:
        InputTypeError: wrong kind, dtype, or a read-only or overlapping `out`.
        InputShapeError: the shape does not fit the plan and layout.
        BackendError: the backend cannot run here or cannot take this input.
    """
    if type(images) is not np.ndarray and torch_looks_on(images):
        from . import traced

        return traced.encrypt(images, _plan(plan), out, layout, backend, threads, return_bounds)
    return encrypt_now(images, plan, out, layout, backend, threads, return_bounds)


def encrypt_now(
    images: Any, plan: Plan, out: Any, layout: str, backend: str, threads: int | None, return_bounds: bool
) -> Any:
    """`encrypt` on memory that is there: a backend is called, torch sees nothing of it."""
    if observers and not unobserved.get():
        return _observed(images, plan, out, layout, backend, threads, return_bounds)
    if not return_bounds:
        result = fresh_like(images, plan) if out is None else out
        if result is not None and try_direct(images, plan, result, layout, backend, threads):
            return result
    if on_gpu(images):
        from . import on_device

        _threads(threads)
        return on_device.encrypt(images, _plan(plan), out, layout, backend, return_bounds)
    checked = adopt(images, "images", "uint8", _plan(plan).shape, layout)
    target = _target(out, checked, plan.dtype, plan)
    module, limit = _module(backend), _threads(threads)
    bounds = _empty_bounds(plan, checked.count)
    kernel_bounds = bounds if is_minmax(plan) else None
    for source, result, part in _slices(checked, target):
        k = plan.coefficients(result.order)
        module.affine(
            source.grouped, k, result.grouped, kernel_bounds[part] if kernel_bounds is not None else None, limit
        )
    y = out if out is not None else to_caller(target, checked)
    return (y, _bounds_to_caller(bounds, plan, checked)) if return_bounds else y


def _observed(images: Any, plan: Plan, out: Any, layout: str, *options: Any) -> Any:
    """`encrypt_now` while somebody looks on: the input is shown before, since `out` may be the images themselves."""
    *shown, return_bounds = options
    if on_gpu(images) and not is_tensor(images):
        raise BackendError(
            f"the check while training compares NumPy arrays and torch tensors, not {type(images).__module__}."
            f"{type(images).__qualname__}; pass torch.from_dlpack(images)"
        )
    token = unobserved.set(True)
    try:
        after = [begin(images, plan, out, layout, *shown) for begin in tuple(observers)]
        given = encrypt_now(images, plan, out, layout, *options)
        for end in after:
            if end is not None:
                end(*(given if return_bounds else (given, None)))
    finally:
        unobserved.reset(token)
    return given


def runs_on(images: Any, backend: str = "auto") -> tuple[str, str]:
    """(backend, place): what `encrypt` uses for such images, as ("native", "CPU level avx2") or ("cuda", a device).

    Raises:
        ParameterError, BackendError: as for `encrypt`.
    """
    if on_gpu(images):
        from . import on_device

        return on_device.runs_on(images)
    name = backends.auto().name if backend == "auto" else backend
    level = getattr(backends.get(name), "level", None)
    return name, "CPU" if level is None else f"CPU level {level()}"


def decrypt(
    images: Any,
    plan: Plan,
    bounds: Any = None,
    out: Any = None,
    layout: str = "NCHW",
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """Recover uint8 images from `encrypt`'s output (contract section 4).

    Exact where `plan.exact`; else every pixel is within `plan.worst_error` gray levels.

    Args:
        images: what `encrypt` gave: dtype `plan.dtype`.
        plan: the plan that encrypted them.
        bounds: for min-max, what `encrypt(..., return_bounds=True)` gave.
        out, layout, backend, threads: as for `encrypt`.

    Returns:
        uint8 images of the same kind and layout.

    On a GPU the call waits for the device, to read one number back that says whether a value was impossible, and the
    bounds, to check them; only uint8 "range" does not wait. Bounds are on the images' device there.

    Raises:
        DecryptError: a value that this key and these parameters cannot give ("none" and float outputs), or bounds
            outside the plan's. That proves a wrong key or damage; its absence proves neither.
        InputTypeError, InputShapeError, BackendError: as for `encrypt`.
    """
    if type(images) is not np.ndarray and torch_looks_on(images):
        from . import traced

        return traced.decrypt(images, _plan(plan), bounds, out, layout, backend, threads)
    return decrypt_now(images, plan, bounds, out, layout, backend, threads)


def decrypt_now(images: Any, plan: Plan, bounds: Any, out: Any, layout: str, backend: str, threads: int | None) -> Any:
    """`decrypt` on memory that is there."""
    if on_gpu(images):
        from . import on_device

        _threads(threads)
        return on_device.decrypt(images, _plan(plan), bounds, out, layout, backend)
    checked = adopt(images, "images", _plan(plan).dtype, plan.shape, layout)
    given = _given_bounds(bounds, plan, checked)
    target = _target(out, checked, "uint8", plan)
    module, limit = _module(backend), _threads(threads)
    for source, result, part in _slices(checked, target):
        k = plan.coefficients(result.order)
        bad = module.affine_inverse(
            source.grouped, k, given[part] if given is not None else None, result.grouped, limit
        )
        if bad >= 0:
            raise cannot_decrypt(bad, part.start or 0, result.order, plan)
    return out if out is not None else to_caller(target, checked)


def _module(backend: str) -> Backend:
    """The backend for images in main memory."""
    if backend == "cuda":
        backends.get("cuda")  # its own reason, where it cannot run here at all
        raise BackendError(
            'backend="cuda" transforms what lies on a GPU, and these images are in main memory; nothing is copied '
            'behind your back: move them there (images.cuda()), or use backend="auto"'
        )
    return backends.get(backend)


def _plan(plan: Plan) -> Plan:
    if not isinstance(plan, Plan):
        raise InputTypeError(
            f"expected a plan from scheme.plan(key, shape=(C, H, W)), got {type(plan).__module__}.{type(plan).__name__}"
        )
    return plan


def _target(out: Any, images: Images, dtype: str, plan: Plan) -> Images:
    if out is None:
        return allocate(images, dtype, plan.shape)
    if on_gpu(out):
        raise InputTypeError("out is on a GPU, and the images are in main memory; both must be on one device")
    target = adopt(out, "out", dtype, plan.shape, images.layout)
    if target.kind != images.kind:
        raise InputTypeError(f"out must be of the same kind as the images, got {target.kind} for {images.kind}")
    if target.shape != images.shape:
        raise InputShapeError(f"out has shape {target.shape}, the images {images.shape}; they must be equal")
    if not target.array.flags.writeable or overlaps_itself(
        target.array.shape, target.array.strides, target.array.itemsize
    ):
        raise InputTypeError("out cannot be written: it is read-only, or a view whose elements share memory")
    a, b = target.array, images.array
    same = a.dtype == b.dtype and a.strides == b.strides and a.ctypes.data == b.ctypes.data
    if not same and np.may_share_memory(a, b) and np.shares_memory(a, b):
        raise InputTypeError("out overlaps the images; pass the very same array (uint8 only) or separate memory")
    return target


def _threads(threads: int | None) -> int:
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ParameterError(f"threads must be an integer of at least 1, or None; got {threads!r}")
    return threads


def _slices(images: Images, target: Images) -> Iterator[tuple[Images, Images, slice]]:
    """Pairs that the kernels can take: directly where both lie alike, else staged through small buffers."""
    if images.count == 0:
        return
    if images.order and images.order == target.order:
        yield images, target, slice(None)
        return
    order = target.order or images.order or "CHW"
    size = max(images.array.itemsize, target.array.itemsize) * images.array[0].size
    step = max(1, STAGE_BYTES // size)
    for start in range(0, images.count, step):
        part = slice(start, min(start + step, images.count))
        source, result = images.take(part), target.take(part)
        staged_source = source if source.order == order else source.staged(order, copy=True)
        staged_result = result if result.order == order else result.staged(order, copy=False)
        yield staged_source, staged_result, part
        if staged_result is not result:
            result.array[...] = staged_result.array


def _empty_bounds(plan: Plan, count: int) -> Bounds:
    bounds: Bounds = np.empty(kernel_shape(plan, count), np.int32)
    if not is_minmax(plan):
        bounds[...] = (plan.lo, plan.hi)
    return bounds


def _bounds_to_caller(bounds: Bounds, plan: Plan, images: Images) -> Any:
    array: NDArray[np.int32] = bounds if plan.normalize == "minmax_channel" else bounds[:, 0]
    array = array if images.batched else array[0]
    if images.kind == "torch":
        import torch

        return torch.from_numpy(array)
    return array


def _given_bounds(bounds: Any, plan: Plan, images: Images) -> Bounds | None:
    """The caller's bounds as int32 (N, 1 or C, 2), checked; None where the plan needs none."""
    if bounds is None:
        check_missing(plan)
        return None
    array = bounds
    if is_tensor(bounds):
        import torch

        array = bounds.numpy() if bounds.device.type == "cpu" and bounds.dtype == torch.int32 else None
    if not isinstance(array, np.ndarray) or array.dtype != np.int32:
        raise InputTypeError("bounds must be an int32 array in main memory, as encrypt(..., return_bounds=True) gives")
    check_shape(array.shape, plan, images.count, images.batched)
    check_values(array, plan)
    return np.ascontiguousarray(array.reshape(kernel_shape(plan, images.count))) if is_minmax(plan) else None
