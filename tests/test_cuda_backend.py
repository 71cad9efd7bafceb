"""The backend cuda above its kernels, on pretended devices: which pointers, orders and streams reach the module.

The kernels themselves are tested in test_gpu_*.py, where there is a GPU.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stand_in_cuda as stand_in
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import dlmt_fast as dlmt
from dlmt_fast import functional, info
from dlmt_fast.checking import Checker, CheckError, checked
from dlmt_fast.device_arrays import DeviceImages
from dlmt_fast.errors import BackendError, DecryptError, InputShapeError, InputTypeError, ParameterError

SHAPE = (3, 6, 5)
OUTPUTS = [
    ("none", "int32"),
    ("none", "narrowest"),
    *itertools.product(("range", "minmax", "minmax_channel"), ("uint8", "float32", "float16", "bfloat16")),
]
MEMORY = ["NCHW", "NHWC", "channels_last", "strided", "expanded"]
SCHEME = dlmt.DLMT("mat_mmt", 100, 9)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    return stand_in.install(monkeypatch)


@pytest.fixture
def gpu(module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    mode = stand_in.install_torch(monkeypatch, module)
    with mode:
        yield mode


def pixels(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8))


def arranged(memory: str, count: int = 4) -> tuple[torch.Tensor, str]:
    """A batch in main memory, and its layout."""
    x = pixels(count)
    if memory == "NHWC":
        return x.permute(0, 2, 3, 1).contiguous(), "NHWC"
    if memory == "channels_last":
        return x.contiguous(memory_format=torch.channels_last), "NCHW"
    if memory == "strided":
        return x.repeat_interleave(2, 3)[..., ::2], "NCHW"
    if memory == "expanded":
        return x[:1].expand(count, *SHAPE), "NCHW"
    return x, "NCHW"


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


# --- the same results, wherever the images lie -----------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_tensors_there_and_back(normalize: str, dtype: str, memory: str, key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    host, layout = arranged(memory)
    wanted, pairs = dlmt.encrypt(host, plan, layout=layout, backend="reference", return_bounds=True)
    images = gpu.put(host)
    y, bounds = dlmt.encrypt(images, plan, layout=layout, return_bounds=True)
    assert y.is_cuda
    assert bounds.is_cuda
    assert same(gpu.off(y), wanted)
    assert same(gpu.off(bounds), pairs)
    assert same(gpu.off(dlmt.encrypt(images, plan, layout=layout)), wanted)
    back = dlmt.decrypt(y, plan, bounds, layout=layout)
    assert back.is_cuda
    assert same(gpu.off(back), dlmt.decrypt(wanted, plan, pairs, layout=layout, backend="reference"))
    staged = memory in ("strided", "expanded")
    assert (gpu.module.calls[0].images == images.data_ptr()) is not staged
    assert y.stride() == torch.empty_like(host if not staged else host.contiguous()).stride()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW", "HWC"])
def test_one_image(layout: str, key: dlmt.Key, gpu: Any) -> None:
    for normalize, dtype in OUTPUTS:
        plan = SCHEME.plan(key, SHAPE, normalize, dtype)
        host = pixels()[0] if layout.endswith("CHW") else pixels()[0].permute(1, 2, 0)
        wanted, pairs = dlmt.encrypt(host, plan, layout=layout, backend="reference", return_bounds=True)
        y, bounds = dlmt.encrypt(gpu.put(host), plan, layout=layout, return_bounds=True)
        assert same(gpu.off(y), wanted)
        assert same(gpu.off(bounds), pairs)
        back = dlmt.decrypt(y, plan, bounds, layout=layout)
        assert same(gpu.off(back), dlmt.decrypt(wanted, plan, pairs, layout=layout, backend="reference"))


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_no_images(normalize: str, dtype: str, key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    images = gpu.put(torch.empty((0, *SHAPE), dtype=torch.uint8))
    y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
    assert tuple(y.shape) == (0, *SHAPE)
    assert tuple(bounds.shape) == ((0, 3, 2) if normalize == "minmax_channel" else (0, 2))
    assert tuple(dlmt.encrypt(images, plan).shape) == (0, *SHAPE)
    assert tuple(dlmt.decrypt(y, plan, bounds).shape) == (0, *SHAPE)
    assert not gpu.module.calls


@pytest.mark.parametrize("given", MEMORY[:4])
@pytest.mark.parametrize("memory", MEMORY)
def test_out(memory: str, given: str, key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, "range", "float32")
    host, layout = arranged(memory)
    shape = arranged(given)[0]
    if (layout == "NHWC") != (given == "NHWC"):
        shape = shape.permute(0, 2, 3, 1) if layout == "NHWC" else shape.permute(0, 3, 1, 2)
    out = gpu.put(torch.empty_strided(shape.size(), shape.stride(), dtype=torch.float32).fill_(7))
    assert dlmt.encrypt(gpu.put(host), plan, out=out, layout=layout) is out
    assert same(gpu.off(out), dlmt.encrypt(host, plan, layout=layout, backend="reference"))
    assert (gpu.module.calls[-1].out == out.data_ptr()) is (given != "strided")
    images = gpu.put(torch.zeros(shape.size(), dtype=torch.uint8))
    assert dlmt.decrypt(out, plan, out=images, layout=layout) is images
    assert same(gpu.off(images), host)


def test_in_place(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    for host in (pixels(), arranged("channels_last")[0], arranged("strided")[0]):
        images = gpu.put(host)
        assert dlmt.encrypt(images, plan, out=images) is images
        assert same(gpu.off(images), dlmt.encrypt(host, plan, backend="reference"))


# --- streams, devices, plans -----------------------------------------------------------------------------------------


def test_the_current_stream_and_device_are_used(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    for device, stream in ((0, 1000), (1, 2000), (1, 2001), (0, 1000)):
        gpu.streams[device] = stream
        images = gpu.put(pixels(), device)
        for y in (dlmt.encrypt(images, plan), dlmt.encrypt(images, plan, return_bounds=True)[0]):
            assert gpu.module.calls[-1][-2:] == (device, stream)
            dlmt.decrypt(y, plan)
            assert gpu.module.calls[-1][-2:] == (device, stream)
    assert sorted(gpu.module.uploads) == [0, 1]


def test_a_plan_is_uploaded_once_whoever_comes(key: dlmt.Key, module: Any) -> None:
    from dlmt_fast.backends import cuda

    k = SCHEME.plan(key, SHAPE).coefficients("CHW")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda i=i: found.append((i % 2, cuda.on(k, i % 2)))) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(module.uploads) == [0, 1]
    assert len({id(on) for _, on in found}) == 2
    assert all(on.device == device for device, on in found)


def test_what_a_device_holds_goes_with_the_plan(key: dlmt.Key, module: Any) -> None:
    import copy
    import gc

    from dlmt_fast.backends import cuda

    plan = SCHEME.plan(key, SHAPE)
    held = weakref.ref(cuda.on(plan.coefficients("CHW"), 0))
    with dlmt.keys.allow_export():
        other = copy.copy(plan.coefficients("CHW"))
    del plan, other
    gc.collect()
    assert held() is None


def test_the_first_call_belongs_before_a_capture(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, "range", "float32")
    images = gpu.put(pixels())
    gpu.module.capturing = True
    with pytest.raises(BackendError, match="run the plan once on this device before capturing"):
        dlmt.encrypt(images, plan)
    gpu.module.capturing = False
    y = dlmt.encrypt(images, plan)
    gpu.module.capturing = True
    assert same(gpu.off(dlmt.encrypt(images, plan)), gpu.off(y))
    with pytest.raises(BackendError, match="cannot be captured"):
        dlmt.decrypt(y, plan)


def test_decrypting_uint8_range_can_be_captured(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    y = dlmt.encrypt(gpu.put(pixels()), plan)
    gpu.module.capturing = True
    assert dlmt.decrypt(y, plan).is_cuda


def test_what_cuda_says_is_told(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = gpu.put(pixels())
    y = dlmt.encrypt(images, plan)
    gpu.module.failure = "an illegal memory access was encountered"
    for call in (lambda: dlmt.encrypt(images, plan), lambda: dlmt.encrypt(images, plan, return_bounds=True)):
        with pytest.raises(BackendError, match="affine: an illegal memory access"):
            call()
    with pytest.raises(BackendError, match="affine_inverse: an illegal memory access"):
        dlmt.decrypt(y, plan)


# --- the short way ---------------------------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the short way answered, call by call."""
    from dlmt_fast import direct

    answers: list[bool] = []

    def watched(*arguments: Any) -> bool:
        answers.append(direct.try_direct(*arguments))
        return answers[-1]

    monkeypatch.setattr(functional, "try_direct", watched)
    return answers


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_plain_tensors_go_the_short_way(
    normalize: str, dtype: str, layout: str, key: dlmt.Key, gpu: Any, taken: list[bool]
) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    for count in (None, 0, 1, 5):
        host = pixels(count or 1) if count != 0 else pixels(1)[:0]
        host = host if count is not None else host[0]
        host = host if layout == "NCHW" else host.movedim(-3, -1).contiguous()
        wanted = dlmt.encrypt(host, plan, layout=layout, backend="reference")
        taken.clear()
        images = gpu.put(host, 1)
        out = gpu.put(torch.empty_like(wanted), 1)
        for backend in ("auto", "cuda"):
            assert same(gpu.off(dlmt.encrypt(images, plan, layout=layout, backend=backend)), wanted)
            assert dlmt.encrypt(images, plan, out=out, layout=layout, backend=backend) is out
            assert same(gpu.off(out), wanted)
        assert taken == [True] * 4


def test_what_is_not_plain_goes_the_general_way(key: dlmt.Key, gpu: Any, taken: list[bool]) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = gpu.put(pixels())
    parameter = torch.nn.Parameter(pixels(), requires_grad=False)
    gpu._adopt(parameter, 0)
    for given, options in (
        (gpu.put(arranged("channels_last")[0]), {}),
        (gpu.put(arranged("strided")[0]), {}),
        (parameter, {}),
        (images, {"threads": 2}),
        (images[0], {"layout": "CHW"}),
        (images, {"out": gpu.put(arranged("strided")[0])}),
    ):
        dlmt.encrypt(given, plan, **options)
    assert not any(taken)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "numba", "reference"])
def test_another_backend_does_not_take_what_lies_on_a_gpu(backend: str, key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    for call in (dlmt.encrypt, dlmt.decrypt):
        with pytest.raises(
            BackendError, match=f'backend="{backend}" works in main memory, and the images are on cuda:1'
        ):
            call(gpu.put(pixels(), 1), plan, backend=backend)
    with pytest.raises(ParameterError, match="unknown backend 'fast'"):
        dlmt.encrypt(gpu.put(pixels()), plan, backend="fast")
    assert not gpu.module.calls


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_cuda_does_not_take_what_lies_in_main_memory(kind: str, key: dlmt.Key, gpu: Any) -> None:
    images: Any = pixels() if kind == "torch" else pixels().numpy()
    for call in (dlmt.encrypt, dlmt.decrypt):
        with pytest.raises(BackendError, match="these images are in main memory"):
            call(images, SCHEME.plan(key, SHAPE), backend="cuda")


def test_a_gpu_that_cannot_be_used_is_an_error_with_the_reason(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = gpu.put(pixels())
    gpu.module.state = "no NVIDIA driver on this machine"
    for call in (dlmt.encrypt, dlmt.decrypt):
        with pytest.raises(BackendError, match="on cuda:0, and the CUDA backend cannot run here: no NVIDIA driver"):
            call(images, plan)
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            call(pixels(), plan, backend="cuda")
    assert dlmt.backends.available()["cuda"] == "no NVIDIA driver on this machine"


def test_out_that_will_not_do(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = gpu.put(pixels())
    both = gpu.put(torch.zeros(2 * images.numel(), dtype=torch.uint8))
    left, right = both[: images.numel()].view(4, *SHAPE), both[7 : 7 + images.numel()].view(4, *SHAPE)
    columns = gpu.put(torch.zeros((4, 3, 6, 10), dtype=torch.uint8))
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (images, pixels(), InputTypeError, "same kind as the images"),
        (images, pixels().numpy(), InputTypeError, "same kind as the images"),
        (images, gpu.put(pixels(), 1), InputTypeError, "out is on cuda:1 and the images on cuda:0"),
        (images, gpu.put(pixels().float()), InputTypeError, "out must have dtype uint8, got float32"),
        (images, gpu.put(pixels(3)), InputShapeError, r"out has shape \(3, 3, 6, 5\)"),
        (images, gpu.put(pixels(1)).expand(4, *SHAPE), InputTypeError, "elements share memory"),
        (left, right, InputTypeError, "out overlaps the images"),
        (columns[..., :5], columns[..., 2:7], InputTypeError, "out overlaps the images"),
    ]
    for given, out, error, text in cases:
        with pytest.raises(error, match=text):
            dlmt.encrypt(given, plan, out=out)
    assert not gpu.module.calls
    dlmt.encrypt(columns[..., ::2], plan, out=columns[..., 1::2])  # between the images is no overlap
    with pytest.raises(InputTypeError, match="out is on a GPU, and the images are in main memory"):
        dlmt.encrypt(pixels(), plan, out=images)


def test_inputs_that_will_not_do(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, "range", "float32")
    images = gpu.put(pixels())
    with pytest.raises(InputTypeError, match="images must have dtype uint8, got float32; nothing is cast silently"):
        dlmt.encrypt(gpu.put(pixels().float()), plan)
    with pytest.raises(InputShapeError, match='did you mean layout="NHWC"'):
        dlmt.encrypt(images.permute(0, 2, 3, 1), plan)
    with pytest.raises(ParameterError, match="unknown layout"):
        dlmt.encrypt(images, plan, layout="NHCW")
    with pytest.raises(ParameterError, match="threads must be"):
        dlmt.encrypt(images, plan, threads=0)
    with pytest.raises(InputTypeError, match="expected a plan"):
        dlmt.encrypt(images, "plan")  # type: ignore[arg-type]
    y = dlmt.encrypt(images, plan)
    with pytest.raises(InputTypeError, match="not differentiable"):
        dlmt.decrypt(gpu._adopt(gpu.off(y).requires_grad_(), 0), plan)
    with pytest.raises(InputTypeError, match="resolve_neg"):
        dlmt.decrypt(gpu._adopt(torch._neg_view(y), 0), plan)


def test_staged_copies_live_until_the_work_is_queued(key: dlmt.Key, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another thread could be given their memory before the kernel reads it."""
    plan = SCHEME.plan(key, SHAPE, "range", "float32")
    images = gpu.put(arranged("strided")[0])
    y = gpu.put(gpu.off(dlmt.encrypt(images, plan)).repeat_interleave(2, 3))[..., ::2]
    made: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    staged, begin = DeviceImages.staged, type(gpu.module)._begin

    def watched(self: Any, order: str) -> Any:
        copy = staged(self, order)
        made.append(weakref.ref(copy))
        return copy

    def looked_at(self: Any, *arguments: Any) -> None:
        alive.append(made[-1]() is not None)
        begin(self, *arguments)

    monkeypatch.setattr(DeviceImages, "staged", watched)
    monkeypatch.setattr(type(gpu.module), "_begin", looked_at)
    dlmt.encrypt(images, plan)
    dlmt.decrypt(y, plan)
    assert alive == [True, True]


def test_values_that_no_key_gave(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, "none")
    for memory in MEMORY[:4]:
        host, layout = arranged(memory)
        y = dlmt.encrypt(gpu.put(host), plan, layout=layout)
        at = (2, 1, 3, 4) if layout == "NCHW" else (2, 3, 4, 1)
        with torch._C.DisableTorchFunction():
            y[at] = -5
        with pytest.raises(DecryptError, match="first at image 2, channel 1, row 3, column 4"):
            dlmt.decrypt(y, plan, layout=layout)


def test_bounds_that_will_not_do(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, "minmax")
    y, bounds = dlmt.encrypt(gpu.put(pixels()), plan, return_bounds=True)
    host = gpu.off(bounds)
    calls = len(gpu.module.calls)
    cases: list[tuple[Any, type[Exception], str]] = [
        (None, ParameterError, "needs each image's bounds"),
        (host, InputTypeError, "bounds must be an int32 array of torch on cuda:0"),
        (host.numpy(), InputTypeError, "bounds must be an int32 array of torch on cuda:0"),
        (gpu.put(host, 1), InputTypeError, "on cuda:1"),
        (gpu.put(host.long()), InputTypeError, "bounds must have dtype int32, got int64"),
        (gpu.put(host[:3]), InputShapeError, r"bounds must have shape \(4, 2\)"),
        (gpu.put(host + 100000), DecryptError, "bounds must satisfy"),
        (gpu.put(host.flip(1)), DecryptError, "bounds must satisfy"),
    ]
    for given, error, text in cases:
        with pytest.raises(error, match=text):
            dlmt.decrypt(y, plan, given)
    assert len(gpu.module.calls) == calls
    strided = gpu.put(host.repeat_interleave(2, 0))[::2]
    assert same(gpu.off(dlmt.decrypt(y, plan, strided)), gpu.off(dlmt.decrypt(y, plan, bounds)))


# --- other libraries -------------------------------------------------------------------------------------------------


@pytest.fixture
def cupy(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = stand_in.cupy(module)
    monkeypatch.setitem(sys.modules, "cupy", made)
    return made


@pytest.fixture
def numba_cuda(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    import numba

    made = stand_in.numba_cuda(module)
    monkeypatch.setattr(numba, "cuda", made, raising=False)
    return made


WITHOUT_BFLOAT16 = [pair for pair in OUTPUTS if pair[1] != "bfloat16"]


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("memory", MEMORY[:4])
@pytest.mark.parametrize(("normalize", "dtype"), WITHOUT_BFLOAT16)
def test_cupy(normalize: str, dtype: str, memory: str, device: int, key: dlmt.Key, cupy: Any, module: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    tensor, layout = arranged(memory)
    host = tensor.numpy()
    wanted, pairs = dlmt.encrypt(host, plan, layout=layout, backend="reference", return_bounds=True)
    images = cupy.ndarray(host.copy("K") if memory != "strided" else np.repeat(host, 2, 3)[..., ::2], device)
    y, bounds = dlmt.encrypt(images, plan, layout=layout, return_bounds=True)
    for given, expected in ((y, wanted), (bounds, pairs)):
        assert isinstance(given, cupy.ndarray)
        assert given.device.id == device
        np.testing.assert_array_equal(given.get(), expected)
    out = cupy.ndarray(np.zeros_like(wanted), device)
    assert dlmt.encrypt(images, plan, out=out, layout=layout) is out
    np.testing.assert_array_equal(out.get(), wanted)
    back = dlmt.decrypt(y, plan, bounds, layout=layout)
    np.testing.assert_array_equal(back.get(), dlmt.decrypt(wanted, plan, pairs, layout=layout, backend="reference"))
    assert {call[-2:] for call in module.calls} == {(device, 3000 + device)}


@pytest.mark.parametrize("memory", MEMORY[:3])
@pytest.mark.parametrize(("normalize", "dtype"), WITHOUT_BFLOAT16)
def test_numba(normalize: str, dtype: str, memory: str, key: dlmt.Key, numba_cuda: Any, module: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    tensor, layout = arranged(memory)
    host = tensor.numpy()
    wanted, pairs = dlmt.encrypt(host, plan, layout=layout, backend="reference", return_bounds=True)
    for stream in (0, stand_in.NumbaStream(77)):
        images = stand_in.NumbaArray(host.copy("K"), 1, stream)
        y, bounds = dlmt.encrypt(images, plan, layout=layout, return_bounds=True)
        for given, expected in ((y, wanted), (bounds, pairs)):
            assert isinstance(given, stand_in.NumbaArray)
            np.testing.assert_array_equal(given.copy_to_host(), expected)
        back = dlmt.decrypt(y, plan, bounds, layout=layout)
        np.testing.assert_array_equal(
            back.copy_to_host(), dlmt.decrypt(wanted, plan, pairs, layout=layout, backend="reference")
        )
        assert {call[-2:] for call in module.calls[-2:]} == {(1, int(stream))}


def test_what_other_libraries_cannot_do(key: dlmt.Key, cupy: Any, numba_cuda: Any, gpu: Any) -> None:
    host = pixels().numpy()
    bfloat16 = SCHEME.plan(key, SHAPE, "range", "bfloat16")
    for images in (cupy.ndarray(host.copy(), 0), stand_in.NumbaArray(host.copy(), 0)):
        with pytest.raises(InputTypeError, match="bfloat16 are not supported; use torch tensors"):
            dlmt.encrypt(images, bfloat16)
    plan = SCHEME.plan(key, SHAPE)
    strided = stand_in.NumbaArray(np.repeat(host, 2, 3)[..., ::2], 0)
    with pytest.raises(InputTypeError, match="dense as NCHW or NHWC"):
        dlmt.encrypt(strided, plan)
    with pytest.raises(InputTypeError, match=r"got torch\.Tensor for images of cupy"):
        dlmt.encrypt(cupy.ndarray(host.copy(), 0), plan, out=gpu.put(pixels()))
    minmax = SCHEME.plan(key, SHAPE, "minmax")
    with pytest.raises(InputTypeError, match="array of cupy on cuda:0"):
        dlmt.decrypt(cupy.ndarray(host.copy(), 0), minmax, gpu.put(torch.zeros((4, 2), dtype=torch.int32)))


class Exporter:
    """An array of a library that only speaks DLPack."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape = tensor, tensor.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: Any = None) -> Any:
        raise AssertionError("the pretended torch takes the tensor itself")


class JaxArray(Exporter):
    __module__ = "jaxlib._jax"


@pytest.fixture
def exchange(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.dlpack, "from_dlpack", lambda value: value.tensor)
    jax = SimpleNamespace(dlpack=SimpleNamespace(from_dlpack=JaxArray))
    monkeypatch.setitem(sys.modules, "jax", jax)


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
@pytest.mark.usefixtures("exchange")
def test_jax_arrays_give_jax_arrays(normalize: str, dtype: str, key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    wanted, pairs = dlmt.encrypt(pixels(), plan, backend="reference", return_bounds=True)
    images = JaxArray(gpu.put(pixels()))
    y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
    assert type(y) is type(bounds) is type(dlmt.encrypt(images, plan)) is JaxArray
    assert same(gpu.off(y.tensor), wanted)
    assert same(gpu.off(bounds.tensor), pairs)
    back = dlmt.decrypt(y, plan, bounds)
    assert type(back) is JaxArray
    assert same(gpu.off(back.tensor), dlmt.decrypt(wanted, plan, pairs, backend="reference"))


@pytest.mark.usefixtures("exchange")
def test_dlpack_gives_tensors(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    wanted = dlmt.encrypt(pixels(), plan, backend="reference")
    images, out = Exporter(gpu.put(pixels())), Exporter(gpu.put(torch.zeros_like(pixels())))
    y = dlmt.encrypt(images, plan)
    assert type(y) is torch.Tensor
    assert same(gpu.off(y), wanted)
    assert dlmt.encrypt(images, plan, out=out) is out
    assert same(gpu.off(out.tensor), wanted)
    with pytest.raises(InputTypeError, match="read-only"):
        dlmt.encrypt(images, plan, out=JaxArray(gpu.put(pixels())))
    with pytest.raises(InputTypeError, match="same kind"):
        dlmt.encrypt(images, plan, out=gpu.put(pixels()))


@pytest.mark.parametrize(("stream", "waited"), [(None, []), (1, ["device"]), (2, ["device"]), (4711, [4711])])
def test_the_stream_of_an_array_interface_is_waited_for(
    stream: int | None, waited: list[Any], key: dlmt.Key, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    tensor = gpu.put(pixels())
    foreign = type("Foreign", (), {"__cuda_array_interface__": {"data": (tensor.data_ptr(), False), "stream": stream}})
    monkeypatch.setattr(torch, "as_tensor", lambda value, device: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append("device"))
    outer = lambda handle, device: SimpleNamespace(synchronize=lambda: seen.append(handle))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "ExternalStream", outer)
    y = dlmt.encrypt(foreign(), SCHEME.plan(key, SHAPE))
    assert same(gpu.off(y), dlmt.encrypt(pixels(), SCHEME.plan(key, SHAPE), backend="reference"))
    assert seen == waited
    elsewhere = type("Foreign", (), {"__cuda_array_interface__": {"data": (tensor.data_ptr() + 1, False)}})
    with pytest.raises(BackendError, match="would be copied; select its device"):
        dlmt.encrypt(elsewhere(), SCHEME.plan(key, SHAPE))


# --- the check while training ----------------------------------------------------------------------------------------


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch's streams and events by name, and what was done with them."""
    done: list[str] = []

    class Event:
        def record(self, stream: str) -> None:
            done.append(f"record on {stream}")

        def synchronize(self) -> None:
            done.append("wait for the event")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"current of {device}")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"side of {device}")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(done.append(f"work on {stream}")))
    return done


def test_the_check_copies_on_a_stream_of_its_own(key: dlmt.Key, gpu: Any, streams: list[str]) -> None:
    plan = SCHEME.plan(key, SHAPE, "minmax", "float32")
    images = gpu.put(pixels(), 1)
    with checked("all") as checker:
        dlmt.encrypt(images, plan)
    assert checker.report().values == images.numel()
    assert streams == ["record on current of cuda:1", "work on side of cuda:1", "wait for the event"]
    wrong = gpu.put(pixels(seed=1), 1)
    checker = Checker("all")
    end = checker.begin(images, plan)
    assert end is not None
    end(dlmt.encrypt(wrong, plan), None)
    with pytest.raises(CheckError, match=r"backend cuda, Pretended 1 \(cuda:1\)"):
        checker.close()


@pytest.mark.usefixtures("streams")
def test_what_is_captured_is_not_checked(key: dlmt.Key, gpu: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = gpu.put(pixels())
    dlmt.encrypt(images, plan)
    with checked("all") as checker:
        gpu.module.capturing = True
        dlmt.encrypt(images, plan)
        gpu.module.capturing = False
    assert (checker.report().calls, checker.report().checked) == (1, 0)


@pytest.mark.usefixtures("gpu")
def test_the_check_refuses_what_it_cannot_compare(key: dlmt.Key, cupy: Any) -> None:
    images = cupy.ndarray(pixels().numpy(), 0)
    with checked("all"), pytest.raises(BackendError, match=r"pass torch\.from_dlpack"):
        dlmt.encrypt(images, SCHEME.plan(key, SHAPE))


# --- what it says of itself ------------------------------------------------------------------------------------------


def test_a_module_that_was_not_built_says_what_the_build_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlmt_fast.backends import built

    stand_in.replace(monkeypatch, None)
    state = dlmt.backends.available()["cuda"]
    assert state == f"the CUDA module dlmt_fast._cuda is missing: {built.why_missing('cuda')}"


def test_why_a_module_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlmt_fast.backends import built

    monkeypatch.setattr(built, "__file__", str(tmp_path / "dlmt_fast" / "backends" / "built.py"))
    assert built.why_missing("cuda") == "dlmt_fast is used without having been installed"
    (tmp_path / "dlmt_fast").mkdir()
    record = tmp_path / "dlmt_fast" / "_build.json"
    record.write_text(json.dumps({"cuda": {"built": False, "reason": "no nvcc on PATH"}}))
    assert built.why_missing("cuda") == "no nvcc on PATH"
    record.write_text(json.dumps({"cuda": {"built": True, "reason": "compiled by nvcc 13.0"}}))
    assert built.why_missing("cuda") == "it was built but is gone"


def test_info_shows_the_devices(module: Any) -> None:
    facts = info.collect()
    assert facts["backends"]["cuda"] == "ok"
    assert facts["cuda"] == {"architectures": module.architectures(), "devices": module.devices()}
    text = info.describe(facts)
    assert "cuda:1 Pretended 1, compute capability 9.0, 132 multiprocessors, 1.0 GiB" in text
    assert "sm_80, sm_90, sm_100, compute_100" in text
    module.state = "no device visible"
    facts = info.collect()
    assert facts["cuda"] == {"architectures": module.architectures(), "devices": []}
    assert "no device visible" in info.describe(facts)


def test_runs_on(key: dlmt.Key, gpu: Any) -> None:
    assert functional.runs_on(gpu.put(pixels(), 1)) == ("cuda", "Pretended 1 (cuda:1)")


# --- where torch looks on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_fake_cuda_tensors(normalize: str, dtype: str, key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    with FakeTensorMode():
        images = torch.empty((4, *SHAPE), dtype=torch.uint8, device="cuda")
        y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
        assert y.device == bounds.device == images.device
        assert y.dtype == getattr(torch, plan.dtype)
        assert dlmt.decrypt(y, plan, bounds, backend="cuda").shape == images.shape
        with pytest.raises(BackendError, match='backend="native" does not take images on the device cuda'):
            dlmt.encrypt(images, plan, backend="native")
        with pytest.raises(BackendError, match='backend="cuda" does not take images on the device cpu'):
            dlmt.encrypt(torch.empty((4, *SHAPE), dtype=torch.uint8), plan, backend="cuda")
        with pytest.raises(BackendError, match="on the device meta"):
            dlmt.encrypt(torch.empty((4, *SHAPE), dtype=torch.uint8, device="meta"), plan)
