"""Arrays on a GPU as the CUDA backend sees them: a pointer, an order in memory, a device and a stream.

Three libraries are known by themselves: torch, CuPy and Numba. Arrays of any other that speak DLPack or
`__cuda_array_interface__` (JAX among them) are looked at as torch tensors, without a copy. Used by `on_device` alone.
Only torch is ever imported here: whoever owns an array of CuPy, Numba or JAX has loaded the library already.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import LAYOUTS, check_shape, is_tensor
from .errors import BackendError, InputTypeError, ParameterError, missing, wrong_dtype
from .schemes.plan import Plan

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_ITEMSIZE = {"uint8": 1, "uint16": 2, "float16": 2, "bfloat16": 2, "int32": 4, "float32": 4, "int64": 8}


class Library(Protocol):
    """What a library does for us with its own arrays. Sizes and axes are those of the caller's shape."""

    name: str

    def check(self, array: Any, role: str) -> None:
        """Raise InputTypeError where the array's memory is not simply its values."""

    def dtype(self, array: Any) -> str: ...

    def strides(self, array: Any) -> tuple[int, ...]:
        """In bytes."""

    def pointer(self, array: Any) -> int: ...

    def device(self, array: Any) -> int: ...

    def stream(self, array: Any) -> int:
        """The stream that work with this array belongs on, as CUDA's handle."""

    def capturing(self, array: Any) -> bool:
        """Whether that stream is being captured in a CUDA graph."""

    def empty(self, sizes: tuple[int, ...], axes: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Uninitialised, dense, on the device of `like`; `axes` are its axes in memory, the outermost first."""

    def copy(self, target: Any, source: Any) -> None:
        """On the device and its stream."""

    def pairs(self, sizes: tuple[int, ...], lo: int, hi: int, like: Any) -> Any:
        """int32 of shape (..., 2), filled with (lo, hi)."""

    def to_host(self, array: Any) -> NDArray[Any]:
        """Waits for the stream."""


class Torch:
    """Tensors, on torch's current stream of their device."""

    name = "torch"

    def check(self, array: Any, role: str) -> None:
        torch = sys.modules["torch"]
        if array.layout != torch.strided:
            raise InputTypeError(f"{role} must be a dense tensor, got layout {array.layout}; pass tensor.to_dense()")
        if array.requires_grad:
            raise InputTypeError(
                f"{role} requires grad, and this transform is not differentiable; pass tensor.detach()"
            )
        if array.is_neg():
            raise InputTypeError(f"{role} is a negated view of another tensor; pass tensor.resolve_neg()")

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def strides(self, array: Any) -> tuple[int, ...]:
        return tuple(stride * array.element_size() for stride in array.stride())

    def pointer(self, array: Any) -> int:
        return int(array.data_ptr())

    def device(self, array: Any) -> int:
        return int(array.get_device())

    def stream(self, array: Any) -> int:
        return int(sys.modules["torch"]._C._cuda_getCurrentRawStream(array.get_device()))

    def capturing(self, array: Any) -> bool:
        torch = sys.modules["torch"]
        with torch.cuda.device(array.get_device()):
            return bool(torch.cuda.is_current_stream_capturing())

    def empty(self, sizes: tuple[int, ...], axes: tuple[int, ...], dtype: str, like: Any) -> Any:
        torch = sys.modules["torch"]
        memory = torch.empty([sizes[axis] for axis in axes], dtype=getattr(torch, dtype), device=like.device)
        return memory.permute(_inverse(axes))

    def copy(self, target: Any, source: Any) -> None:
        target.copy_(source)

    def pairs(self, sizes: tuple[int, ...], lo: int, hi: int, like: Any) -> Any:
        array = self.empty(sizes, tuple(range(len(sizes))), "int32", like)
        array[..., 0] = lo
        array[..., 1] = hi
        return array

    def to_host(self, array: Any) -> NDArray[Any]:
        host: NDArray[Any] = array.cpu().numpy()
        return host


class Cupy:
    """CuPy arrays, on CuPy's current stream of their device."""

    name = "cupy"

    def check(self, array: Any, role: str) -> None:
        return

    def dtype(self, array: Any) -> str:
        return str(array.dtype)

    def strides(self, array: Any) -> tuple[int, ...]:
        return tuple(array.strides)

    def pointer(self, array: Any) -> int:
        return int(array.data.ptr)

    def device(self, array: Any) -> int:
        return int(array.device.id)

    def stream(self, array: Any) -> int:
        return int(self._stream(array).ptr)

    def capturing(self, array: Any) -> bool:
        return bool(self._stream(array).is_capturing())

    def empty(self, sizes: tuple[int, ...], axes: tuple[int, ...], dtype: str, like: Any) -> Any:
        if dtype == "bfloat16":
            raise no_bfloat16("CuPy")
        with like.device:
            return sys.modules["cupy"].empty([sizes[axis] for axis in axes], dtype).transpose(_inverse(axes))

    def copy(self, target: Any, source: Any) -> None:
        with target.device:
            target[...] = source

    def pairs(self, sizes: tuple[int, ...], lo: int, hi: int, like: Any) -> Any:
        array = self.empty(sizes, tuple(range(len(sizes))), "int32", like)
        with like.device:
            array[..., 0] = lo
            array[..., 1] = hi
        return array

    def to_host(self, array: Any) -> NDArray[Any]:
        host: NDArray[Any] = array.get()
        return host

    def _stream(self, array: Any) -> Any:
        return sys.modules["cupy"].cuda.get_current_stream(array.device.id)


class Numba:
    """Numba's device arrays, on the stream that they are bound to, else the default stream."""

    name = "numba"

    def check(self, array: Any, role: str) -> None:
        return

    def dtype(self, array: Any) -> str:
        return str(array.dtype)

    def strides(self, array: Any) -> tuple[int, ...]:
        return tuple(array.strides)

    def pointer(self, array: Any) -> int:
        return int(array.__cuda_array_interface__["data"][0])

    def device(self, array: Any) -> int:
        return int(array.gpu_data.context.device.id)

    def stream(self, array: Any) -> int:
        return int(array.stream)

    def capturing(self, array: Any) -> bool:
        return False  # Numba captures no graphs

    def empty(self, sizes: tuple[int, ...], axes: tuple[int, ...], dtype: str, like: Any) -> Any:
        if dtype == "bfloat16":
            raise no_bfloat16("Numba")
        strides, step = [0] * len(sizes), _ITEMSIZE[dtype]
        for axis in reversed(axes):
            strides[axis] = step
            step *= max(1, sizes[axis])
        cuda = self._cuda()
        with cuda.gpus[self.device(like)]:
            return cuda.device_array(sizes, np.dtype(dtype), strides=tuple(strides), stream=like.stream)

    def copy(self, target: Any, source: Any) -> None:
        raise InputTypeError(
            "Numba's device arrays are taken only where the images lie one after the other, dense as NCHW or NHWC; "
            "copy the images to such an array first, or pass cupy.asarray(array)"
        )

    def pairs(self, sizes: tuple[int, ...], lo: int, hi: int, like: Any) -> Any:
        host = np.empty(sizes, np.int32)
        host[...] = (lo, hi)
        cuda = self._cuda()
        with cuda.gpus[self.device(like)]:
            return cuda.to_device(host, stream=like.stream)

    def to_host(self, array: Any) -> NDArray[Any]:
        host: NDArray[Any] = array.copy_to_host()
        if array.stream:
            array.stream.synchronize()
        return host

    def _cuda(self) -> Any:
        return sys.modules["numba"].cuda


_TORCH, _CUPY, _NUMBA = Torch(), Cupy(), Numba()


def on_gpu(value: Any) -> bool:
    """Whether `value` is an array on a CUDA device, of whatever library."""
    if isinstance(value, np.ndarray):
        return False
    if is_tensor(value):
        return bool(value.is_cuda)
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in _DLPACK_CUDA


def library_of(value: Any) -> Library | None:
    """The library whose own array `value` is, or None."""
    if is_tensor(value):
        return _TORCH
    root = type(value).__module__.partition(".")[0]
    if root == "cupy":
        return _CUPY
    return _NUMBA if root == "numba" else None


def borrowed(value: Any, written: bool = False) -> Any:
    """An array of any library as a torch tensor over the same memory, ordered after the producer's work.

    DLPack makes torch's current stream wait for the producer's. For `__cuda_array_interface__` alone the host waits
    for the stream that the interface names, as version 3 asks of consumers.

    Raises:
        BackendError: torch is not installed, or would copy the array to its current device.
        InputTypeError: `written` is set, and the array is read-only.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise missing("torch", f"an array of {type(value).__module__} on a GPU", "torch") from None
    interface = getattr(value, "__cuda_array_interface__", None)
    if written and (_is_jax(value) or (interface is not None and interface["data"][1])):
        raise InputTypeError(f"out cannot be written: a {type(value).__module__}.{type(value).__name__} is read-only")
    if hasattr(value, "__dlpack__"):
        return torch.utils.dlpack.from_dlpack(value)
    tensor = torch.as_tensor(value, device="cuda")
    if tensor.numel() and interface is not None and tensor.data_ptr() != interface["data"][0]:
        raise BackendError(
            f"a {type(value).__module__}.{type(value).__qualname__} on another device than torch's current one, "
            f"{tensor.device}, would be copied; select its device with torch.cuda.set_device"
        )
    stream = interface["stream"] if interface is not None and "stream" in interface else None
    if stream in (1, 2):  # the two default streams, for which torch has no name
        torch.cuda.synchronize(tensor.device)
    elif stream is not None:
        torch.cuda.ExternalStream(stream, tensor.device).synchronize()  # type: ignore[no-untyped-call]
    return tensor


def returned(tensor: Any, like: Any) -> Any:
    """A torch tensor as the kind of `like`: JAX arrays for JAX; others stay torch tensors."""
    return sys.modules["jax"].dlpack.from_dlpack(tensor) if _is_jax(like) else tensor


def no_bfloat16(name: str) -> InputTypeError:
    """The error for a plan with bfloat16 and arrays that do not have it."""
    return InputTypeError(f"{name} arrays of bfloat16 are not supported; use torch tensors, or float32 or float16")


@dataclass(frozen=True, eq=False)
class DeviceImages:
    """A checked batch in the caller's own axes.

    `order` is "CHW" or "HWC" where the whole batch lies in memory without gaps, each image in that order, else "".
    """

    library: Library
    array: Any
    dtype: str
    layout: str
    batched: bool
    order: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.array.shape)

    @property
    def count(self) -> int:
        return self.shape[0] if self.batched else 1

    @property
    def pointer(self) -> int:
        return self.library.pointer(self.array)

    @property
    def device(self) -> int:
        return self.library.device(self.array)

    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes."""
        return self.library.strides(self.array)

    @property
    def itemsize(self) -> int:
        return _ITEMSIZE[self.dtype]

    @property
    def nearest_order(self) -> str:
        """`order`, or the one that needs the smaller detours in memory."""
        if self.order:
            return self.order
        names, strides = _names(self.layout, self.batched), self.strides
        return "HWC" if abs(strides[names.index("C")]) < abs(strides[names.index("W")]) else "CHW"

    def fresh(self, dtype: str, order: str) -> DeviceImages:
        """Uninitialised memory for as many images, dense in `order`."""
        array = self.library.empty(self.shape, _memory_axes(self.layout, self.batched, order), dtype, self.array)
        return DeviceImages(self.library, array, dtype, self.layout, self.batched, order)

    def staged(self, order: str) -> DeviceImages:
        """The same images, dense in `order`, copied on the device where they do not lie so already."""
        if self.order == order:
            return self
        buffer = self.fresh(self.dtype, order)
        self.library.copy(buffer.array, self.array)
        return buffer

    def reach(self) -> tuple[int, int]:
        """The first byte's address, and one past the last one's."""
        low = high = self.pointer
        for size, stride in zip(self.shape, self.strides, strict=True):
            if size == 0:
                return low, low
            low, high = low + min(0, stride * (size - 1)), high + max(0, stride * (size - 1))
        return low, high + self.itemsize

    def addresses(self) -> NDArray[Any]:
        """A NumPy array over the same addresses, for arithmetic on them alone: nobody may touch its memory."""
        return np.asarray(_Addresses(self))


class _Addresses:
    def __init__(self, images: DeviceImages) -> None:
        self.__array_interface__ = {
            "shape": images.shape,
            "strides": images.strides,
            "typestr": f"|V{images.itemsize}",
            "data": (images.pointer, True),
            "version": 3,
        }


def adopt(library: Library, array: Any, role: str, dtype: str, plan: Plan, layout: str) -> DeviceImages:
    """Check the caller's images (or `out`) and look at how they lie in memory.

    Raises:
        InputTypeError, InputShapeError, ParameterError: see `functional.encrypt`.
    """
    if layout not in LAYOUTS:
        raise ParameterError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    library.check(array, role)
    if library.dtype(array) != dtype:
        raise wrong_dtype(role, dtype, library.dtype(array))
    sizes = tuple(int(size) for size in array.shape)
    batched = check_shape(role, sizes, plan.shape, layout)
    order = _dense_order(_names(layout, batched), sizes, library.strides(array), _ITEMSIZE[dtype])
    return DeviceImages(library, array, dtype, layout, batched, order)


def _names(layout: str, batched: bool) -> str:
    return ("N" if batched else "") + layout[-3:]


def _memory_axes(layout: str, batched: bool, order: str) -> tuple[int, ...]:
    names = _names(layout, batched)
    return tuple(names.index(axis) for axis in ("N" if batched else "") + order)


def _dense_order(names: str, sizes: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> str:
    for order in ("CHW", "HWC"):
        axes = [names.index(axis) for axis in ("N" if "N" in names else "") + order]
        if is_dense(tuple(sizes[axis] for axis in axes), tuple(strides[axis] for axis in axes), itemsize):
            return order
    return ""


def is_dense(sizes: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether elements follow each other without gaps, the last axis fastest; where there are none, too."""
    expected = itemsize
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected and math.prod(sizes) != 0:
            return False
        expected *= size
    return True


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes.index(i) for i in range(len(axes)))


def _is_jax(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] in ("jax", "jaxlib")
