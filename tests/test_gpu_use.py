"""On a GPU: streams, graphs, threads, other libraries, torch.compile, the check, batches through pinned memory."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlmt_fast as dlmt
from dlmt_fast.backends.contract import STORAGE
from dlmt_fast.checking import checked
from dlmt_fast.errors import BackendError, DecryptError
from dlmt_fast.gpu_batches import GpuBatches
from dlmt_fast.pinned import encrypt_batches

STATE = dlmt.backends.available()["cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(STATE != "ok", reason=STATE)]

SHAPE = (3, 32, 32)
SCHEME = dlmt.DLMT("mat_mmt")
OUTPUTS = [
    ("none", "int32"),
    ("range", "uint8"),
    ("range", "float32"),
    ("minmax", "uint8"),
    ("minmax_channel", "float16"),
]


def pixels(count: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8))


def busy(seconds: float = 0.05) -> None:
    """Keep the current stream busy, so that work on another one that does not wait comes too early."""
    torch.cuda._sleep(int(seconds * 1.5e9))


def test_work_is_on_the_current_stream(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE, "minmax")
    host = pixels()
    wanted = dlmt.encrypt(host, plan, backend="reference")
    images = torch.zeros_like(host, device="cuda")
    pinned = host.pin_memory()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        dlmt.encrypt(images, plan)  # uploads the key, and fills the stream's pool of memory
        torch.cuda.synchronize()
        busy()
        images.copy_(pinned, non_blocking=True)
        y = dlmt.encrypt(images, plan)
        assert not stream.query(), "the call waited for the device"
    stream.synchronize()
    assert torch.equal(y.cpu(), wanted)


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_graphs(normalize: str, dtype: str, key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    images = pixels().cuda()
    dlmt.encrypt(images, plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
    for seed in (1, 2):
        images.copy_(pixels(seed=seed))
        y.zero_()
        graph.replay()
        wanted, pairs = dlmt.encrypt(pixels(seed=seed), plan, backend="reference", return_bounds=True)
        assert torch.equal(y.cpu(), wanted)
        assert torch.equal(bounds.cpu(), pairs)


def test_the_first_call_inside_a_capture_is_refused(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = pixels().cuda()
    refused = torch.zeros(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        refused += 1
        with pytest.raises(BackendError, match="before capturing"):
            dlmt.encrypt(images, plan)
    graph.replay()
    assert refused.item() == 1  # the capture itself went on


def test_several_threads(key: dlmt.Key) -> None:
    plans = [SCHEME.plan(key, SHAPE, normalize, dtype) for normalize, dtype in OUTPUTS]
    wanted = [dlmt.encrypt(pixels(seed=i), plan, backend="reference") for i, plan in enumerate(plans)]
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for turn in range(30):
                    i = (number + turn) % len(plans)
                    y = dlmt.encrypt(pixels(seed=i).cuda(), plans[i])
                    if not torch.equal(y.cpu(), wanted[i]):
                        wrong.append((number, turn))
        except Exception as error:  # noqa: BLE001 - told below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_second_device(key: dlmt.Key) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one CUDA device")
    plan = SCHEME.plan(key, SHAPE, "minmax")
    wanted = dlmt.encrypt(pixels(), plan, backend="reference")
    for device in ("cuda:1", "cuda:0"):
        y = dlmt.encrypt(pixels().to(device), plan)
        assert str(y.device) == device
        assert torch.equal(y.cpu(), wanted)
        assert torch.cuda.current_device() == 0


def test_a_wrong_value_is_named(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE, "none")
    y = dlmt.encrypt(pixels().cuda(), plan)
    y[63, 2, 31, 30] = y[40, 1, 7, 5] = -9
    with pytest.raises(DecryptError, match="first at image 40, channel 1, row 7, column 5"):
        dlmt.decrypt(y, plan)
    floats = SCHEME.plan(key, SHAPE, "range", "float32")
    y = dlmt.encrypt(pixels().cuda(), floats)
    y[5, 0, 0, 1] = float("nan")
    with pytest.raises(DecryptError, match="first at image 5, channel 0, row 0, column 1"):
        dlmt.decrypt(y, floats)


def test_what_plans_hold_on_the_device_goes_with_them(key: dlmt.Key) -> None:
    """By what the device says is free before and after; 20 such plans hold over 300 MB."""
    dlmt.encrypt(pixels().cuda(), SCHEME.plan(key, SHAPE))
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(20):
        plan = SCHEME.plan(key, (3, 1024, 1024))
        dlmt.encrypt(torch.zeros((1, 3, 1024, 1024), dtype=torch.uint8, device="cuda"), plan)
        del plan
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert before - torch.cuda.mem_get_info()[0] < 200 << 20


@pytest.mark.filterwarnings("ignore")
def test_the_readme_example(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```py\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text("utf-8"), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "cuda:0 cuda:0\n" * 3


# --- torch looks on --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_compiled_and_checked(normalize: str, dtype: str, key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    images = pixels().cuda()
    y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: dlmt.encrypt(x, plan, return_bounds=True), fullgraph=True)
    got = compiled(images)
    assert torch.equal(got[0], y)
    assert torch.equal(got[1], bounds)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.dlmt.affine_bounds.default, (images, plan.handle), test_utils=checks)
    torch.library.opcheck(torch.ops.dlmt.affine_inverse.default, (y, bounds, plan.handle), test_utils=checks)
    mapped = torch.vmap(lambda x: dlmt.encrypt(x, plan))(images)
    assert torch.equal(mapped, y)


@pytest.mark.filterwarnings("ignore")
def test_compiled_with_graphs(key: dlmt.Key) -> None:
    torch._dynamo.reset()
    plan = SCHEME.plan(key, SHAPE, "range", "float32")
    compiled = torch.compile(lambda x: dlmt.encrypt(x, plan) * 2, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):
        images = pixels(seed=seed).cuda()
        torch.compiler.cudagraph_mark_step_begin()
        assert torch.equal(compiled(images).cpu(), dlmt.encrypt(pixels(seed=seed), plan, backend="reference") * 2)


@pytest.mark.filterwarnings("ignore")
def test_the_transform_and_its_check(key: dlmt.Key) -> None:
    pytest.importorskip("torchvision")
    from dlmt_fast.transforms import Encrypt

    transform = Encrypt(key, SCHEME, check="all")
    for seed in range(3):
        y = transform(pixels(seed=seed).cuda())
        assert y.is_cuda
        assert torch.equal(y.cpu(), Encrypt(key, SCHEME)(pixels(seed=seed)))
    assert transform.close_check().differ == 0
    with checked("all") as checker:
        dlmt.encrypt(pixels().cuda(), SCHEME.plan(key, SHAPE, "minmax"))
    assert checker.report().values == pixels().numel()


def test_batches_through_pinned_memory(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE, "minmax", "float32")
    given = [(pixels(200, seed), torch.arange(200) + seed) for seed in range(12)]
    sums = []
    for (y, target), (host, labels) in zip(encrypt_batches(given, plan, ahead=2), given, strict=True):
        busy(0.005)
        sums.append(y.sum(dtype=torch.float64))
        assert torch.equal(y.cpu(), dlmt.encrypt(host, plan, backend="reference"))
        assert torch.equal(target.cpu(), labels)
    assert len(sums) == 12


# --- other libraries -------------------------------------------------------------------------------------------------

FOREIGN = [pair for pair in OUTPUTS if pair[1] in STORAGE]


@pytest.mark.parametrize(("normalize", "dtype"), FOREIGN)
@pytest.mark.filterwarnings("ignore")
def test_cupy(normalize: str, dtype: str, key: dlmt.Key) -> None:
    cupy = pytest.importorskip("cupy")
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    host = pixels().numpy()
    wanted, pairs = dlmt.encrypt(host, plan, backend="reference", return_bounds=True)
    with cupy.cuda.Stream(non_blocking=True):
        images = cupy.asarray(host)
        for given in (images, cupy.asarray(np.repeat(host, 2, 3))[..., ::2]):
            y, bounds = dlmt.encrypt(given, plan, return_bounds=True)
            assert isinstance(y, cupy.ndarray)
            np.testing.assert_array_equal(y.get(), wanted)
            np.testing.assert_array_equal(bounds.get(), pairs)
            back = dlmt.decrypt(y, plan, bounds)
            np.testing.assert_array_equal(back.get(), dlmt.decrypt(wanted, plan, pairs, backend="reference"))


@pytest.mark.parametrize(("normalize", "dtype"), FOREIGN)
@pytest.mark.filterwarnings("ignore")
def test_numba(normalize: str, dtype: str, key: dlmt.Key) -> None:
    cuda = pytest.importorskip("numba.cuda")
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    host = pixels().numpy()
    wanted, pairs = dlmt.encrypt(host, plan, backend="reference", return_bounds=True)
    for stream in (0, cuda.stream()):
        images = cuda.to_device(host, stream=stream)
        y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
        assert type(y) is type(images)
        cuda.synchronize()
        np.testing.assert_array_equal(y.copy_to_host(), wanted)
        np.testing.assert_array_equal(bounds.copy_to_host(), pairs)
        back = dlmt.decrypt(y, plan, bounds)
        cuda.synchronize()
        np.testing.assert_array_equal(back.copy_to_host(), dlmt.decrypt(wanted, plan, pairs, backend="reference"))


@pytest.mark.parametrize(("normalize", "dtype"), FOREIGN)
@pytest.mark.filterwarnings("ignore")
def test_jax(normalize: str, dtype: str, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the memory is torch's too
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip(f"JAX runs on {jax.default_backend()} here")
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    host = pixels().numpy()
    wanted, pairs = dlmt.encrypt(host, plan, backend="reference", return_bounds=True)
    images = jax.numpy.asarray(host) + 0
    y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(np.asarray(y), wanted)
    np.testing.assert_array_equal(np.asarray(bounds), pairs)
    back = dlmt.decrypt(y, plan, bounds)
    np.testing.assert_array_equal(np.asarray(back), dlmt.decrypt(wanted, plan, pairs, backend="reference"))


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_batches_of_a_job(normalize: str, dtype: str, key: dlmt.Key) -> None:
    """What `encrypt --device cuda` does with each batch, as images lie in memory there: pixel by pixel."""
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    gpu = GpuBatches("cuda")
    for seed in range(3):
        images = np.ascontiguousarray(pixels(seed=seed).numpy().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        y, bounds = gpu.encrypt(images, plan)
        wanted, limits = dlmt.encrypt(images, plan, backend="reference", return_bounds=True)
        assert y.dtype == wanted.dtype
        assert np.array_equal(y, wanted)
        assert np.array_equal(bounds, limits)
