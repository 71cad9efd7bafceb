"""A GPU that is not there: the seam of dlmt_fast._cuda done by the reference in main memory, and arrays that pretend.

What it proves is all that lies above the kernels: which pointer, order, stream and device a call gets, what is staged,
cached and refused. Pointers are checked against the memory that was handed out as a device's, so that main memory
never reaches a kernel.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from dlmt_fast.backends import reference
from dlmt_fast.backends.contract import STORAGE


class Call(NamedTuple):
    """What reached the module."""

    name: str
    images: int
    out: int
    n: int
    device: int
    stream: int


class StandIn(ModuleType):
    """`dlmt_fast._cuda` for two devices that do not exist."""

    def __init__(self) -> None:
        super().__init__("dlmt_fast._cuda")
        self.state = "ok"
        self.capturing = False
        self.failure = ""
        self.calls: list[Call] = []
        self.uploads: list[int] = []
        self.memory: dict[int, tuple[int, int]] = {}  # from an address to (bytes, device)
        self.keep: list[Any] = []
        module = self

        class OnDevice:
            def __init__(self, k: Any, device: int) -> None:
                self.k, self.device, self.bytes = k, device, 8 * k.M.size

            def affine(self, images: int, out: int, bounds: int, n: int, stream: int) -> None:
                k = self.k
                x = module.at(images, np.dtype(np.uint8), (n, *k.M.shape), self.device).copy()
                y = module.at(out, STORAGE[k.dtype], (n, *k.M.shape), self.device)
                pairs = self._bounds(bounds, n)
                module._begin("affine", images, out, n, self.device, stream)
                if n:
                    reference.affine(x, k, y, pairs)

            def affine_inverse(self, images: int, bounds: int, out: int, bad: int, n: int, stream: int) -> None:
                k = self.k
                y = module.at(images, STORAGE[k.dtype], (n, *k.M.shape), self.device).copy()
                x = module.at(out, np.dtype(np.uint8), (n, *k.M.shape), self.device)
                found = module.at(bad, np.dtype(np.int64), (1,), self.device)
                module._begin("affine_inverse", images, out, n, self.device, stream)
                found[0] = reference.affine_inverse(y, k, self._bounds(bounds, n), x) if n else -1

            def _bounds(self, pointer: int, n: int) -> Any:
                per_image = self.k.normalize.startswith("minmax")
                assert bool(pointer) == per_image, "bounds are given for min-max, and only then"
                groups = self.k.M.shape[1] if self.k.normalize == "minmax_channel" else 1
                return module.at(pointer, np.dtype(np.int32), (n, groups, 2), self.device) if per_image else None

        class Prepared:
            def __init__(self, *fields: Any) -> None:
                names = ("normalize", "dtype", "lo", "hi", "M", "B", "M24", "B24", "std", "g", "b")
                self.k = SimpleNamespace(**dict(zip(names, fields, strict=True)))

            def on(self, device: int) -> OnDevice:
                if module.capturing:
                    raise RuntimeError("dlmt_fast._cuda: run the plan once on this device before capturing")
                threading.Event().wait(0.01)  # so that threads meet here
                module.uploads.append(device)
                return OnDevice(self.k, device)

        self.Prepared = Prepared

    def status(self) -> str:
        return self.state

    def architectures(self) -> list[str]:
        return ["sm_80", "sm_90", "sm_100", "compute_100"]

    def devices(self) -> list[dict[str, Any]]:
        return [
            {"name": f"Pretended {i}", "capability": "9.0", "memory": 1 << 30, "multiprocessors": 132} for i in range(2)
        ]

    def copy(self, images: int, out: int, elements: int, dtype: str, device: int, stream: int) -> None:
        y = self.at(out, STORAGE[dtype], (elements,), device)
        y[...] = self.at(images, np.dtype(np.uint8), (elements,), device)

    def owns(self, address: int, size: int, device: int) -> None:
        """`size` bytes are the device's from now on."""
        self.memory[address] = (size, device)

    def at(self, address: int, dtype: np.dtype[Any], shape: tuple[int, ...], device: int) -> np.ndarray:
        """The device's memory as an array."""
        size = int(np.prod(shape)) * dtype.itemsize
        assert address % dtype.itemsize == 0, "not aligned to its elements"
        if size == 0:
            return np.empty(shape, dtype)
        fits = [d for start, (n, d) in self.memory.items() if start <= address and address + size <= start + n]
        assert fits == [device], f"{size} bytes at {address:#x} are not memory of cuda:{device}"
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def _begin(self, name: str, images: int, out: int, n: int, device: int, stream: int) -> None:
        if self.failure:
            raise RuntimeError(f"dlmt_fast._cuda: {name}: {self.failure}")
        self.calls.append(Call(name, images, out, n, device, stream))


class Gpu(TorchFunctionMode):
    """torch tensors that say they are on cuda:0 or cuda:1. Their memory is main memory that the stand-in owns."""

    def __init__(self, module: StandIn) -> None:
        super().__init__()
        self.module = module
        self.streams = {0: 1000, 1: 2000}
        self.pinned: list[int] = []  # addresses of main memory that is pinned

    def put(self, tensor: torch.Tensor, device: int = 0) -> torch.Tensor:
        """A copy on the device, with the same strides."""
        with torch._C.DisableTorchFunction():
            memory = torch.empty(0, dtype=tensor.dtype)
            memory.set_(tensor.untyped_storage().clone(), tensor.storage_offset(), tensor.size(), tensor.stride())
            return self._adopt(memory, device)

    def off(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in main memory."""
        with torch._C.DisableTorchFunction():
            return tensor.clone()

    def _adopt(self, tensor: torch.Tensor, device: int) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in self.module.memory:
            self.module.keep.append(storage)  # so that its address is never main memory's again
            self.module.owns(storage.data_ptr(), storage.nbytes(), device)
        if not storage.nbytes():
            tensor.pretended = device
        return tensor

    def _device(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            return None
        found = self.module.memory.get(value.untyped_storage().data_ptr())
        return getattr(value, "pretended", None) if found is None else found[1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = func.__self__.__name__
        device = self._device(args[0]) if args else None
        if device is not None:
            answers = {"is_cuda": True, "is_cpu": False, "device": torch.device("cuda", device), "get_device": device}
            if name in answers:
                return answers[name]
            if name == "cpu":
                return args[0].clone()
            assert name != "numpy", "device memory was read as main memory"
        if name == "is_pinned":
            return args[0].data_ptr() in self.pinned
        if name == "pin_memory":
            copy = args[0].clone()
            self.module.keep.append(copy)
            self.pinned.append(copy.data_ptr())
            return copy
        if name == "to" and len(args) == 2 and isinstance(args[1], torch.device) and args[1].type == "cuda":
            assert not args[0].numel() or args[0].data_ptr() in self.pinned, "copied to the device from pageable memory"
            return self._adopt(args[0].clone(), args[1].index or 0)
        wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if wanted is not None and wanted.type == "cuda":
            kwargs["device"] = "cpu"
            device = wanted.index or 0
        result = func(*args, **kwargs)
        if device is not None and isinstance(result, torch.Tensor):
            self._adopt(result, device)
        return result


def install(patch: Any) -> StandIn:
    """Make the stand-in the package's CUDA module; `patch` (pytest's monkeypatch) undoes it."""
    module = StandIn()
    replace(patch, module)
    return module


def replace(patch: Any, module: ModuleType | None) -> None:
    """Let the backend load another module, or none, until `patch` is undone."""
    from dlmt_fast import backends

    patch.setitem(sys.modules, "dlmt_fast._cuda", module)
    patch.setitem(sys.modules, "dlmt_fast.backends.cuda", None)  # so that what is loaded now goes again
    del sys.modules["dlmt_fast.backends.cuda"]
    patch.setattr(backends, "cuda", None, raising=False)
    patch.delattr(backends, "cuda")
    patch.setattr(backends, "_load", backends._load.__wrapped__)  # nothing of this is kept


def install_torch(patch: Any, module: StandIn) -> Gpu:
    """Let torch's few calls without a tensor know the pretended devices."""
    gpu = Gpu(module)
    patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: gpu.streams[device], raising=False)
    patch.setattr(torch.cuda, "device", lambda device: nullcontext())
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: module.capturing)

    def record_stream(tensor: torch.Tensor, stream: Any) -> None:
        module.calls.append(Call("record_stream", tensor.data_ptr(), 0, 0, tensor.get_device(), stream.cuda_stream))

    patch.setattr(torch.Tensor, "record_stream", record_stream)
    return gpu


# --- other libraries -------------------------------------------------------------------------------------------------


class _Device:
    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> None:
        _Device.current.append(self.id)

    def __exit__(self, *_: Any) -> None:
        _Device.current.pop()

    current: list[int] = [0]  # noqa: RUF012 - one for all, as the driver has


class CupyArray:
    """As much of cupy.ndarray as is used."""

    __module__ = "cupy"
    library: StandIn

    def __init__(self, values: np.ndarray, device: int) -> None:
        self.values, self.device = values, _Device(device)
        base = values
        while isinstance(base.base, np.ndarray):
            base = base.base
        if base.nbytes and base.ctypes.data not in self.library.memory:
            self.library.keep.append(base)
            self.library.owns(base.ctypes.data, base.nbytes, device)

    dtype = property(lambda self: self.values.dtype)
    shape = property(lambda self: self.values.shape)
    strides = property(lambda self: self.values.strides)
    data = property(lambda self: SimpleNamespace(ptr=self.values.ctypes.data))
    __cuda_array_interface__ = property(lambda self: {"data": (self.values.ctypes.data, False), "version": 3})

    def get(self) -> np.ndarray:
        return self.values.copy()

    def transpose(self, axes: Any) -> CupyArray:
        return type(self)(self.values.transpose(axes), self.device.id)

    def __setitem__(self, place: Any, value: Any) -> None:
        assert _Device.current[-1] == self.device.id, "CuPy works on the current device"
        self.values[place] = value.values if isinstance(value, CupyArray) else value


def cupy(module: StandIn) -> ModuleType:
    """The module `cupy`; its streams are 3000 and 3001."""
    made: Any = ModuleType("cupy")
    made.ndarray = type("ndarray", (CupyArray,), {"library": module, "__module__": "cupy"})
    CupyArray.library = module
    made.empty = lambda sizes, dtype: made.ndarray(np.empty(sizes, dtype), _Device.current[-1])
    stream = lambda device: SimpleNamespace(ptr=3000 + device, is_capturing=lambda: module.capturing)  # noqa: E731
    made.cuda = SimpleNamespace(get_current_stream=stream)
    return made


class NumbaArray:
    """As much of Numba's DeviceNDArray as is used."""

    __module__ = "numba.cuda.cudadrv.devicearray"
    library: StandIn

    def __init__(self, values: np.ndarray, device: int, stream: Any = 0) -> None:
        self.values, self.stream = values, stream
        self.gpu_data = SimpleNamespace(context=SimpleNamespace(device=SimpleNamespace(id=device)))
        base = values
        while isinstance(base.base, np.ndarray):
            base = base.base
        if base.nbytes and base.ctypes.data not in self.library.memory:
            self.library.keep.append(base)
            self.library.owns(base.ctypes.data, base.nbytes, device)

    dtype = property(lambda self: self.values.dtype)
    shape = property(lambda self: self.values.shape)
    strides = property(lambda self: self.values.strides)
    __cuda_array_interface__ = property(lambda self: {"data": (self.values.ctypes.data, False), "version": 3})

    def copy_to_host(self) -> np.ndarray:
        return self.values.copy()


class NumbaStream(int):
    """A stream that can be waited for."""

    def synchronize(self) -> None:
        return


def numba_cuda(module: StandIn) -> Any:
    """What `numba.cuda` offers."""
    NumbaArray.library = module

    def device_array(sizes: Any, dtype: Any, strides: Any, stream: Any) -> NumbaArray:
        memory = np.empty(int(np.prod(sizes)), dtype)
        return NumbaArray(np.lib.stride_tricks.as_strided(memory, sizes, strides), _Device.current[-1], stream)

    return SimpleNamespace(
        gpus=[_Device(0), _Device(1)],
        device_array=device_array,
        to_device=lambda values, stream: NumbaArray(values.copy(), _Device.current[-1], stream),
    )
