"""`--device cuda`: the same store by way of a pretended GPU, and what is said where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import stand_in_cuda as stand_in
import torch

import dlmt_fast as dlmt
from dlmt_fast import backends
from dlmt_fast.errors import BackendError, ParameterError
from dlmt_fast.gpu_batches import GpuBatches
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, verify_store

SCHEME = dlmt.DLMT("mat_mmt")


class Gpu(stand_in.Gpu):  # type: ignore[misc]
    """Main memory can be made pinned as well, and everything is waited for before it is read."""

    waited: list[int]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", False)
        result = super().__torch_function__(func, types, args, kwargs)
        if pinned:
            self.module.keep.append(result)
            self.pinned.append(result.data_ptr())
        if getattr(func, "__name__", "") == "copy_":
            assert args[0].data_ptr() in self.pinned, "copied from the device to pageable memory"
        return result


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    module = stand_in.install(monkeypatch)
    stand_in.install_torch(monkeypatch, module)
    mode = Gpu(module)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: mode.streams[device], raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    mode.waited = []
    wait = lambda device: SimpleNamespace(synchronize=lambda: mode.waited.append(device.index or 0))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_stream", wait)
    with mode:
        yield mode


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("normalize", ["range", "minmax", "minmax_channel", "none"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "read-only"])
def test_the_bits_of_the_cpu(
    layout: str, normalize: str, device: str, key: dlmt.Key, gpu: Gpu, rng: np.random.Generator
) -> None:
    plan = SCHEME.plan(key, (3, 6, 5), normalize)
    images = rng.integers(0, 256, (4, 3, 6, 5), np.uint8)
    if layout == "NHWC":
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    images.flags.writeable = layout != "read-only"
    before = images.copy()
    result, bounds = GpuBatches(device).encrypt(images, plan)
    expected, limits = dlmt.encrypt(images, plan, backend="reference", return_bounds=True)
    assert result.dtype == expected.dtype
    assert np.array_equal(result, expected)
    assert np.array_equal(bounds, limits)
    assert bounds.dtype == np.int32
    assert result.strides == expected.strides
    assert np.array_equal(images, before)
    assert {call.device for call in gpu.module.calls} == set(gpu.waited) == {int(device == "cuda:1")}


class Place:
    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source = root, key, root / "source"
        rng = np.random.default_rng(0)
        for number in range(7):
            path = self.source / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(path)

    def encrypt(self, store: str, **options: Any) -> Summary:
        chosen = JobOptions(shard_size=4, **options)
        return encrypt_store(self.source, self.root / store, self.key, SCHEME, self._owner(store), chosen)

    def verify(self, store: str) -> None:
        verify_store(self.root / store, self.key, self._owner(store))

    def files(self, store: str) -> dict[str, bytes]:
        """All but the manifest, whose sealed part has a nonce."""
        paths = [path for path in (self.root / store).rglob("*") if path.is_file() and path.suffix != ".json"]
        return {path.relative_to(self.root / store).as_posix(): path.read_bytes() for path in paths}

    def _owner(self, store: str) -> Any:
        return lambda store_id: self.root / f"owner-{store}" / store_id


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


@pytest.mark.parametrize("options", [{}, {"normalize": "minmax"}, {"dtype": "float32"}], ids=str)
def test_the_store_is_the_same(options: dict[str, Any], place: Place, gpu: Gpu) -> None:
    one = place.encrypt("cpu", **options)
    assert not gpu.module.calls
    two = place.encrypt("gpu", device="cuda", **options)
    assert sum(call.n for call in gpu.module.calls if call.name == "affine") == 7
    assert place.files("cpu") == place.files("gpu")
    assert one.store_id == two.store_id  # the device is in no record
    assert "device" not in JobOptions(device="cuda").recorded()
    place.verify("gpu")


def test_a_job_is_resumed_on_another_device(place: Place, gpu: Gpu) -> None:
    place.encrypt("one", device="cuda")
    assert "2 of 2 shards were done already" in place.encrypt("one", resume=True).notes[0]


def test_without_a_gpu_nothing_is_begun(place: Place) -> None:
    reason = backends.available()["cuda"]
    if reason == "ok":
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError) as refused:
        place.encrypt("store", device="cuda")
    assert str(refused.value)
    assert not (place.root / "store").exists()
    assert not (place.root / "owner-store").exists()


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"device cuda: torch \S+ finds no CUDA device .* or use the device cpu"):
        GpuBatches("cuda")


def test_a_missing_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendError, match=r'device cuda needs the package .torch.*pip install "dlmt-fast\[torch\]"'):
        GpuBatches("cuda")


def test_a_device_that_is_not_there(gpu: Gpu) -> None:
    with pytest.raises(BackendError, match="device cuda:2: there are 2 CUDA devices here, counted from 0"):
        GpuBatches("cuda:2")


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "CUDA", "cuda:1 "])
def test_other_words_are_refused(device: str) -> None:
    with pytest.raises(ParameterError, match="device must be cpu, cuda, or cuda:N"):
        JobOptions(device=device)


def test_ray_gives_no_gpu() -> None:
    with pytest.raises(ParameterError, match="device cuda goes with the engine local"):
        JobOptions(device="cuda", engine="ray", workers=None)
