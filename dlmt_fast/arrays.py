"""NumPy arrays and torch tensors as the kernels see them: checked views, in logical order NCHW, without copies.

Used by `functional` alone. torch is never imported here unless a tensor came in.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .backends.contract import STORAGE, Array
from .errors import BackendError, InputTypeError, ParameterError, wrong_dtype, wrong_kind, wrong_shape
from .schemes.plan import Plan

_HUGE_BYTES = 4 << 20
LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC")
Shape = tuple[int, int, int]
_AXES = {"CHW": (0, 1, 2, 3), "HWC": (0, 2, 3, 1)}  # from NCHW to N + order
_BACK = {"CHW": (0, 1, 2, 3), "HWC": (0, 3, 1, 2)}  # from N + order to NCHW


@dataclass(frozen=True, eq=False)
class Images:
    """A checked batch. `array` is a view of the caller's memory with axes (N, C, H, W) and any strides.

    `order` is "CHW" or "HWC" where every image lies in memory without gaps in that order, aligned, else "".
    """

    array: Array
    order: str
    dtype: str
    kind: str
    layout: str
    batched: bool
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return int(self.array.shape[0])

    @property
    def grouped(self) -> Array:
        """The view (N, outer, C, inner) that backends take; needs an `order`."""
        n, c, h, w = self.array.shape
        if self.order == "CHW":
            return self.array.reshape(n, 1, c, h * w)
        return self.array.transpose(_AXES["HWC"]).reshape(n, h * w, c, 1)

    def take(self, part: slice) -> Images:
        """Some of the images."""
        array = self.array[part]
        return replace(self, array=array, order=memory_order(array))

    def staged(self, order: str, copy: bool) -> Images:
        """The same images in a buffer of their own that lies in `order`."""
        buffer = _empty(self.array.shape, order, self.array.dtype)
        if copy:
            buffer[...] = self.array
        return replace(self, array=buffer, order=order)


def adopt(images: Any, role: str, dtype: str, plan_shape: Shape, layout: str) -> Images:
    """Check the caller's `images` (or `out`) and look at their memory.

    Raises:
        InputTypeError, InputShapeError, BackendError, ParameterError: see `functional.encrypt`.
    """
    if layout not in LAYOUTS:
        raise ParameterError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if isinstance(images, np.ndarray):
        kind, array = "numpy", _from_numpy(images, role, dtype)
    elif is_tensor(images):
        kind, array = "torch", _from_torch(images, role, dtype)
    else:
        raise wrong_kind(images)
    shape = tuple(images.shape)
    batched, array = _logical(array, shape, plan_shape, layout, role)
    return Images(array, memory_order(array), dtype, kind, layout, batched, shape)


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def memory_order(array: Array) -> str:
    """ "CHW" or "HWC" where each image of (N, C, H, W) is dense in that order and its values are aligned, else ""."""
    if not array.flags.aligned:
        return ""
    sizes = array.shape[1:]
    for order in ("CHW", "HWC"):
        expected = array.itemsize
        for axis in reversed(order):
            i = "CHW".index(axis)
            if sizes[i] != 1 and array.strides[i + 1] != expected:
                break
            expected *= sizes[i]
        else:
            return order
    return ""


def overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether elements share memory, as in expanded and sliding-window views. Slices of an array never do: each of
    their strides (in bytes) passes over all that the smaller ones reach."""
    reach = itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def allocate(like: Images, dtype: str, plan_shape: Shape) -> Images:
    """Uninitialised memory for the result, lying in memory as `like` does."""
    if like.kind == "numpy" and dtype == "bfloat16":
        raise _no_bfloat16("images")
    order = like.order or ("HWC" if abs(like.array.strides[1]) < abs(like.array.strides[3]) else "CHW")
    if like.kind == "torch":
        array = _tensor_memory(_new_tensor([like.array.shape[axis] for axis in _AXES[order]], dtype), dtype)
        array = array.transpose(_BACK[order])
    else:
        array = _empty(like.array.shape, order, STORAGE[dtype])
    return replace(like, array=array, order=order, dtype=dtype)


def fresh_like(images: Any, plan: Plan) -> Any:
    """Uninitialised memory for the result of plain, contiguous images; None for all others."""
    if type(plan) is not Plan:
        return None
    if type(images) is np.ndarray:
        plain = plan.dtype != "bfloat16" and images.flags.c_contiguous
        return np.empty(images.shape, STORAGE[plan.dtype]) if plain else None
    torch = sys.modules.get("torch")
    if torch is None or type(images) is not torch.Tensor or not images.is_contiguous():
        return None
    small = images.numel() * STORAGE[plan.dtype].itemsize < _HUGE_BYTES
    if images.is_cuda or (images.is_cpu and small):
        return torch.empty_like(images, dtype=getattr(torch, plan.dtype))  # a third of torch.empty's time
    return _new_tensor(images.shape, plan.dtype) if images.is_cpu else None


def _new_tensor(sizes: Any, dtype: str) -> Any:
    """An uninitialised tensor. Large ones come from NumPy, which asks for huge pages: first touch is several times
    cheaper."""
    import torch

    storage = STORAGE[dtype]
    if math.prod(sizes) * storage.itemsize < _HUGE_BYTES:
        return torch.empty(sizes, dtype=getattr(torch, dtype), device="cpu")  # whatever the default device
    if dtype == "bfloat16":
        return torch.from_numpy(np.empty(tuple(sizes), np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.empty(tuple(sizes), storage))


def to_caller(result: Images, like: Images) -> Any:
    """The result in the caller's kind, layout and number of axes."""
    array = result.array if like.layout.endswith("CHW") else result.array.transpose(_AXES["HWC"])
    array = array if like.batched else array[0]
    if like.kind == "numpy":
        return array
    import torch

    if result.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _empty(shape: tuple[int, ...], order: str, dtype: np.dtype[Any]) -> Array:
    return np.empty([shape[axis] for axis in _AXES[order]], dtype).transpose(_BACK[order])


def _from_numpy(array: Array, role: str, dtype: str) -> Array:
    if isinstance(array, np.ma.MaskedArray):
        raise InputTypeError(f"{role} is a masked array, whose mask would be ignored; pass array.filled(value)")
    if dtype == "bfloat16":
        raise _no_bfloat16(role)
    if array.dtype != STORAGE[dtype]:
        raise wrong_dtype(role, dtype, str(array.dtype))
    return array.view(np.ndarray)


def _no_bfloat16(role: str) -> InputTypeError:
    return InputTypeError(f"{role}: NumPy has no bfloat16; use torch tensors, or a plan with float32 or float16")


def _from_torch(tensor: Any, role: str, dtype: str) -> Array:
    import torch

    if tensor.device.type != "cpu":
        raise BackendError(
            f"{role} is on the device {tensor.device}, and this version transforms on the CPU and on CUDA devices, all "
            "on one; nothing is copied behind your back: pass tensor.cpu() and move the result"
        )
    if tensor.layout != torch.strided:
        raise InputTypeError(f"{role} must be a dense tensor, got layout {tensor.layout}; pass tensor.to_dense()")
    if tensor.dtype != getattr(torch, dtype):
        raise wrong_dtype(role, dtype, str(tensor.dtype).removeprefix("torch."))
    if tensor.requires_grad:
        raise InputTypeError(f"{role} requires grad, and this transform is not differentiable; pass tensor.detach()")
    return _tensor_memory(tensor, dtype)


def _tensor_memory(tensor: Any, dtype: str) -> Array:
    import torch

    if dtype == "bfloat16":
        array: Array = tensor.view(torch.int16).numpy().view(np.uint16)
    else:
        array = tensor.numpy()
    return array


def _logical(array: Array, shape: tuple[int, ...], plan_shape: Shape, layout: str, role: str) -> tuple[bool, Array]:
    """(whether it is a batch, the view with axes NCHW)."""
    order = layout[-3:]
    batched = check_shape(role, shape, plan_shape, layout)
    return batched, (array if batched else array[None]).transpose(_BACK[order])


def check_shape(role: str, shape: tuple[int, ...], plan_shape: Shape, layout: str) -> bool:
    """Whether a shape is a batch.

    Raises:
        InputShapeError: it is neither a batch nor an image of the plan in this layout.
    """
    expected = plan_shape if layout[-3:] == "CHW" else (plan_shape[1], plan_shape[2], plan_shape[0])
    batched = layout.startswith("N") and len(shape) == 4
    if shape[1 if batched else 0 :] != expected:
        raise wrong_shape(role, shape, plan_shape, layout)
    return batched
