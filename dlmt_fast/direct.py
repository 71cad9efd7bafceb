"""The short way from a call to the kernel, for plain contiguous arrays: below a microsecond for NumPy.

It takes only what it fully recognises and does nothing otherwise; then `functional` goes the general way, which checks
everything and words the errors. Both ways give the same bits (a test shows it). Used by `functional` alone.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import backends
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
        shape = images.shape
        axes = len(shape)
        if axes not in (3, 4) or shape[-3:] != self.shape3 or out.shape != shape:
            return False
        if images.dtype is not torch.uint8 or out.dtype is not getattr(torch, self.dtype):
            return False
        if not (images.is_cpu and out.is_cpu and images.is_contiguous() and out.is_contiguous()):
            return False
        if out.requires_grad or out.is_neg():
            return False
        count = 1 if axes == 3 else shape[0]
        source, target = images.data_ptr(), out.data_ptr()
        length = count * self.size
        apart = source + length <= target or target + length * self._itemsize <= source
        if (not apart and not (source == target and self._itemsize == 1)) or (count and target % self._itemsize):
            return False
        self.prepared.direct_pointers(source, target, count, threads)
        return True


def try_direct(images: Any, plan: Any, out: Any, layout: str, backend: str, threads: int | None) -> bool:
    """Transform `images` into `out` if both are as plain as can be; False means that nothing was done."""
    if type(plan) is not Plan:
        return False
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


def torch_looks_on(images: Any) -> bool:
    """Whether `images` is a tensor and torch wants to see what happens to it: tracing, fake tensors, vmap, dispatch
    modes. Its memory is then off limits."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(images, torch.Tensor):
        return False
    if torch.compiler.is_compiling():
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
