"""The short way from a call to the kernel, for plain contiguous arrays: below a microsecond for NumPy, a few for a GPU.

It takes only what it fully recognises and does nothing otherwise; then `functional` goes the general way, which checks
everything and words the errors. Both ways give the same bits (a test shows it). Used by `functional` alone.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import backends, bounds
from .schemes.plan import Plan

#: Calls of fewer elements run on one thread whatever is asked: a second one would only cost.
SMALL = 32 * 1024


class Direct:
    """A plan's prepared kernels for one layout and backend."""

    def __init__(self, plan: Plan, layout: str) -> None:
        from .backends import native

        c, h, w = plan.shape
        self.shape3 = (c, h, w) if layout == "NCHW" else (h, w, c)
        self.size = c * h * w
        self.dtype = plan.dtype
        self._itemsize = {"uint8": 1, "uint16": 2, "float16": 2, "bfloat16": 2}.get(plan.dtype, 4)
        self.prepared = native.prepared(plan.coefficients(layout[1:]), self.shape3)
        self.numpy = self.prepared.direct

    def torch(self, torch: Any, images: Any, out: Any, threads: int) -> bool:
        """Whether two plain CPU tensors were taken."""
        if not (images.is_cpu and out.is_cpu and is_plain_pair(torch, images, out, self.shape3, self.dtype)):
            return False
        count = 1 if len(images.shape) == 3 else images.shape[0]
        source, target = images.data_ptr(), out.data_ptr()
        if not are_apart(source, target, count * self.size, self._itemsize):
            return False
        self.prepared.direct_pointers(source, target, count, threads)
        return True

    def torch_fresh(self, torch: Any, images: Any, out: Any) -> bool:
        """The same for an `out` that torch.empty_like made of the images: nothing about it is left to ask."""
        shape = images.shape
        if len(shape) not in (3, 4) or shape[-3:] != self.shape3 or images.dtype is not torch.uint8:
            return False
        if not (images.is_cpu and images.is_contiguous()):
            return False
        count = 1 if len(shape) == 3 else shape[0]
        self.prepared.direct_pointers(images.data_ptr(), out.data_ptr(), count, torch.get_num_threads())
        return True


class DirectCuda:
    """A plan's coefficients on one device, for one layout."""

    def __init__(self, plan: Plan, layout: str, device: int) -> None:
        c, h, w = plan.shape
        self.shape3 = (c, h, w) if layout == "NCHW" else (h, w, c)
        self.dtype = plan.dtype
        self._length = c * h * w
        self._device = device
        self._groups = bounds.kernel_shape(plan, 0)[1] if bounds.is_minmax(plan) else 0
        self._k = plan.coefficients(layout[1:])
        self._backend: Any = backends.get("cuda")

    def __call__(self, torch: Any, images: Any, out: Any) -> bool:
        """Whether two plain CUDA tensors were taken: put on the current stream, that is, not waited for."""
        if not is_plain_pair(torch, images, out, self.shape3, self.dtype) or out.get_device() != self._device:
            return False
        count = 1 if len(images.shape) == 3 else images.shape[0]
        if count == 0:
            return True
        source, target = images.data_ptr(), out.data_ptr()
        length = count * self._length
        if not are_apart(source, target, length, out.element_size()):
            return False
        pointer = 0
        if self._groups:  # the kernel leaves them there; freed memory is used again in the stream's order only
            pointer = torch.empty((count, self._groups, 2), dtype=torch.int32, device=images.device).data_ptr()
        stream = torch._C._cuda_getCurrentRawStream(self._device)
        self._backend.affine(self._k, source, target, pointer, count, self._device, stream)
        return True


def is_plain_pair(torch: Any, images: Any, out: Any, shape3: tuple[int, ...], dtype: str) -> bool:
    """Whether both are contiguous tensors of the right shapes and dtypes whose memory is simply their values."""
    shape = images.shape
    if len(shape) not in (3, 4) or shape[-3:] != shape3 or out.shape != shape:
        return False
    if images.dtype is not torch.uint8 or out.dtype is not getattr(torch, dtype):
        return False
    if not (images.is_contiguous() and out.is_contiguous()):
        return False
    return not (out.requires_grad or out.is_neg())


def are_apart(source: int, target: int, length: int, itemsize: int) -> bool:
    """Whether the result's memory is aligned, and apart from the images' or the very same."""
    apart = source + length <= target or target + length * itemsize <= source
    return (apart or (source == target and itemsize == 1)) and (length == 0 or target % itemsize == 0)


def try_direct(images: Any, plan: Any, out: Any, layout: str, backend: str, threads: int | None) -> bool:
    """Transform `images` into `out` if both are as plain as can be; False means that nothing was done."""
    if type(plan) is not Plan:
        return False
    if getattr(images, "is_cuda", False):
        return _try_cuda(images, plan, out, layout, backend, threads)
    try:
        found = plan.direct[layout, backend]
    except (KeyError, TypeError):
        found = _prepare(plan, layout, backend)
    if found is None:
        return False
    if type(images) is np.ndarray:
        if threads is None:
            threads = 1 if images.size < SMALL else default_threads()
        return bool(found.numpy(images, out, threads))
    torch = sys.modules.get("torch")
    if torch is None or type(images) is not torch.Tensor or type(out) is not torch.Tensor:
        return False
    if threads is None:
        threads = torch.get_num_threads()
    elif type(threads) is not int or threads < 1:
        return False
    return bool(found.torch(torch, images, out, threads))


def _try_cuda(images: Any, plan: Plan, out: Any, layout: str, backend: str, threads: int | None) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or type(images) is not torch.Tensor or type(out) is not torch.Tensor or threads is not None:
        return False
    if layout not in ("NCHW", "NHWC") or backend not in ("auto", "cuda") or not out.is_cuda:
        return False
    device = images.get_device()
    found = plan.direct.get((layout, device))
    if found is None:
        if backends.available()["cuda"] != "ok":
            return False
        found = plan.direct[layout, device] = DirectCuda(plan, layout, device)
    return bool(found(torch, images, out))


def torch_looks_on(images: Any) -> bool:
    """Whether `images` is a tensor and torch wants to see what happens to it: tracing, fake tensors, vmap, dispatch
    modes. Its memory is then off limits."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(images, torch.Tensor):
        return False
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    return bool(
        type(images).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.maybe_current_level() is not None
    )


def default_threads() -> int:
    """torch's setting where torch is loaded (1 in its loader's workers), else the CPUs of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(plan: Plan, layout: Any, backend: Any) -> Direct | None:
    """The plan's `Direct` for a layout and backend, kept in the plan; None where the general way must do it."""
    if layout not in ("NCHW", "NHWC") or backend not in ("auto", "native"):
        return None
    found = None
    if backends.available()["native"] == "ok" and (backend == "native" or backends.auto().name == "native"):
        found = Direct(plan, layout)
    plan.direct[layout, backend] = found
    return found
