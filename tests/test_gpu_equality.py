"""The equality walk on a GPU: the bits of the reference, at every mode, output and layout, and at awkward sizes.

The covering arrays are those of test_equality.py. Results are poisoned before each call.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlmt_fast as dlmt

STATE = dlmt.backends.available()["cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(STATE != "ok", reason=STATE)]
POISON = 0xA5


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"shared_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cpu = _load("test_equality")
VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
SHAPES = [(1, 1, 1), (1, 1, 4095), (1, 1, 4097), (3, 1, 1365), (3, 37, 37), (2, 5, 3), (17, 3, 4), (1, 640, 480)]


def bits(tensor: torch.Tensor) -> np.ndarray:
    """Values in main memory as integers: the IEEE bits of floats."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.view(width).cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()


def poisoned(like: torch.Tensor) -> torch.Tensor:
    """Memory for a result that no right result equals: NaN, or 0xA5 in every byte."""
    value = float("nan") if like.is_floating_point() else {1: 0xA5, 2: 0xA5A5, 4: -0x5A5A5A5B}[like.element_size()]
    return torch.empty_like(like).fill_(value)


def differing(what: str, got: torch.Tensor, want: torch.Tensor) -> list[str]:
    """Empty, or a line about the first difference."""
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, not {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    a, b = bits(got), bits(want)
    if np.array_equal(a, b):
        return []
    wrong = np.argwhere(a != b)
    first = tuple(int(i) for i in wrong[0])
    return [f"{what}: {len(wrong)} of {a.size} values differ, first at {first}: got {a[first]}, reference {b[first]}"]


def compare(plan: dlmt.Plan, host: torch.Tensor, walk: Any, layout: str = "NCHW", offset: int = 0) -> None:
    """Both directions, into poisoned and into fresh memory, against the reference.

    Args:
        offset: bytes by which the images, and elements by which the result, lie off the allocation's alignment.
    """
    wanted, pairs = dlmt.encrypt(host, plan, layout=layout, backend="reference", return_bounds=True)
    back = dlmt.decrypt(wanted, plan, pairs, layout=layout, backend="reference")
    images = shifted(host, offset)
    out = shifted(poisoned(wanted), offset)
    assert dlmt.encrypt(images, plan, out=out, layout=layout, backend="cuda") is out
    failures = differing("encrypt into out", out, wanted)
    y, bounds = dlmt.encrypt(images, plan, layout=layout, return_bounds=True)
    failures += differing("encrypt", y, wanted) + differing("bounds", bounds, pairs)
    received = shifted(wanted, offset)
    failures += differing("decrypt", dlmt.decrypt(received, plan, bounds, layout=layout), back)
    walk.values += 2 * wanted.numel() + pairs.numel() + back.numel()
    walk.differ += len(failures)
    assert not failures, "\n" + "\n".join(failures)


def shifted(host: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy on the GPU with the same strides, `offset` elements into an allocation."""
    reach = 1 + sum(stride * (size - 1) for stride, size in zip(host.stride(), host.shape, strict=True) if size)
    memory = torch.empty(offset + max(1, reach), dtype=host.dtype, device="cuda")
    copy = memory.as_strided(host.size(), host.stride(), offset)
    if host.numel():
        copy.copy_(host)
    return copy


@pytest.mark.parametrize("row", cpu.ROWS, ids=lambda row: row.id)
def test_the_walk(row: Any, key: dlmt.Key, walk: Any) -> None:
    images = cpu.make_images(row.batch, row.shape, cpu.SEED + cpu.ROWS.index(row))
    host = torch.from_numpy(cpu.arrange(images, row.layout))
    compare(cpu.plan_for(row, key), host, walk, "NHWC" if row.layout == "NHWC" else "NCHW")


@pytest.mark.parametrize("setting", cpu.paper_rows(), ids=lambda setting: "-".join(map(str, setting)))
def test_every_setting_of_the_paper(setting: tuple[Any, ...], key: dlmt.Key, walk: Any) -> None:
    images = torch.from_numpy(cpu.make_images(5, (3, 6, 11), 5))
    for normalize, dtype, statistics in cpu.OUTPUTS:
        options = {"mean": cpu.MEANS[:3], "std": cpu.STDS[:3]} if statistics else {}
        plan = dlmt.DLMT(*setting).plan(key, (3, 6, 11), normalize, dtype, **options)
        compare(plan, images, walk)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("output", cpu.OUTPUTS, ids=lambda output: "-".join(map(str, output)))
def test_awkward_sizes_and_addresses(output: Any, shape: tuple[int, int, int], key: dlmt.Key, walk: Any) -> None:
    normalize, dtype, statistics = output
    c = shape[0]
    options = {"mean": np.resize(cpu.MEANS, c), "std": np.resize(cpu.STDS, c)} if statistics else {}
    plan = dlmt.DLMT("mmt_mat", 300, 50).plan(key, shape, normalize, dtype, **options)
    for count, offset in ((1, 0), (3, 1), (8, 3), (9, 15)):
        host = torch.from_numpy(cpu.make_images(count, shape, count))
        compare(plan, host, walk, "NCHW", offset)
        compare(plan, host.permute(0, 2, 3, 1).contiguous(), walk, "NHWC", offset)


@pytest.mark.parametrize("output", cpu.OUTPUTS, ids=lambda output: "-".join(map(str, output)))
def test_every_width(output: Any, key: dlmt.Key, walk: Any) -> None:
    """The ends of rows that no 16-byte access fills, and rows that begin anywhere."""
    for width in (*range(1, 67), 127, 129, 255, 257, 3071, 3073):
        mode = list(cpu.SETTINGS)[width % 5]
        row = cpu.Row(mode, width % 3, output, (1 + width % 3, 1, width), 7, "NCHW", 1)
        compare(cpu.plan_for(row, key), torch.from_numpy(cpu.make_images(7, row.shape, width)), walk)


@pytest.mark.parametrize("normalize", ["range", "minmax", "minmax_channel"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_large_images(normalize: str, dtype: str, key: dlmt.Key, walk: Any) -> None:
    """One read of the image is kept on chip up to some size; every way beyond it gives the same."""
    for side in (96, 224, 257, 512, 1024):
        plan = dlmt.DLMT("mat_mmt").plan(key, (3, side, side), normalize, dtype)
        compare(plan, torch.from_numpy(cpu.make_images(5, plan.shape, side)), walk)


@pytest.mark.parametrize(("normalize", "dtype"), cpu.LO_IS_HI)
def test_where_lo_is_hi(normalize: str, dtype: str, key: dlmt.Key, walk: Any) -> None:
    statistics: dict[str, Any] = {"mean": cpu.MEANS[:3], "std": cpu.STDS[:3]} if dtype == "float32" else {}
    plan = dlmt.DLMT("mat_mmt", 1, 1).plan(key, (3, 9, 13), normalize, dtype, **statistics)
    images = np.full((6, 3, 9, 13), 7, np.uint8)
    images[1], images[2], images[3, 1], images[4, 2, 8, 12] = 0, 255, 8, 8
    compare(plan, torch.from_numpy(images), walk)


@pytest.mark.parametrize("memory", ["sliced", "channels_last", "expanded", "transposed"])
@pytest.mark.parametrize("normalize", ["range", "minmax_channel"])
def test_memory_of_every_kind(normalize: str, memory: str, key: dlmt.Key) -> None:
    plan = dlmt.DLMT("mat_mmt").plan(key, (3, 33, 33), normalize)
    x = torch.from_numpy(cpu.make_images(7, plan.shape, 3))
    host = {
        "sliced": x.repeat_interleave(2, 3)[..., ::2],
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "expanded": x[:1].expand(7, -1, -1, -1),
        "transposed": x.transpose(2, 3),
    }[memory]
    images = host.contiguous().cuda()
    images = torch.empty_like(host, device="cuda").copy_(host) if memory != "expanded" else images[:1].expand_as(images)
    images = images if memory != "sliced" else host.repeat_interleave(2, 3).cuda()[..., ::2]
    wanted, pairs = dlmt.encrypt(host, plan, backend="reference", return_bounds=True)
    y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
    assert not differing("encrypt", y, wanted) + differing("bounds", bounds, pairs)
    back = dlmt.decrypt(y, plan, bounds)
    assert not differing("decrypt", back, dlmt.decrypt(wanted, plan, pairs, backend="reference"))


def test_in_place(key: dlmt.Key) -> None:
    for normalize, offset in itertools.product(("range", "minmax", "minmax_channel"), (0, 5)):
        plan = dlmt.DLMT("mmt_mat", 256, 100).plan(key, (3, 33, 47), normalize)
        host = torch.from_numpy(cpu.make_images(9, plan.shape, 1))
        images = shifted(host, offset)
        dlmt.encrypt(images, plan, out=images)
        assert not differing(normalize, images, dlmt.encrypt(host, plan, backend="reference"))


def test_nothing_is_written_beside_the_result(key: dlmt.Key) -> None:
    """The bytes before and after, which a wider access than the data would touch."""
    for (normalize, dtype, _), width in itertools.product(cpu.OUTPUTS, (1, 5, 31, 100)):
        plan = dlmt.DLMT("mat_mmt").plan(key, (1, 1, width), normalize, dtype)
        host = torch.from_numpy(cpu.make_images(3, plan.shape, width))
        kind = getattr(torch, plan.dtype)
        memory = torch.full((64 + 3 * width * kind.itemsize + 64,), POISON, dtype=torch.uint8, device="cuda")
        inner = memory[64:-64].view(kind).view(3, 1, 1, width)
        dlmt.encrypt(host.cuda(), plan, out=inner)
        assert not differing("inner", inner, dlmt.encrypt(host, plan, backend="reference"))
        assert bool((memory[:64] == POISON).all())
        assert bool((memory[-64:] == POISON).all())


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['mode']}-{case['shape']}")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_known_answers(case: dict[str, Any], layout: str) -> None:
    """vectors.json: `none`, uint8 and float32, there and back."""

    def placed(values: Any, dtype: str) -> torch.Tensor:
        tensor = torch.from_numpy(np.asarray(values, dtype))
        return (tensor.permute(0, 2, 3, 1) if layout == "NHWC" else tensor).contiguous().cuda()

    def nchw(tensor: torch.Tensor) -> np.ndarray:
        return bits(tensor.permute(0, 3, 1, 2) if layout == "NHWC" else tensor)

    scheme = dlmt.DLMT(case["mode"], case["max_v_add"], case["max_v_mul"], case["rise_v"])
    secret = dlmt.Key(bytes.fromhex(case["secret_hex"]))
    images = placed(case["images"], "uint8")
    plan = scheme.plan(secret, case["shape"], "none")
    y = dlmt.encrypt(images, plan, layout=layout)
    np.testing.assert_array_equal(nchw(y), case["none"])
    np.testing.assert_array_equal(nchw(dlmt.decrypt(y, plan, layout=layout)), case["images"])
    for normalize in cpu.NORMALIZED:
        known = case[normalize]
        plan = scheme.plan(secret, case["shape"], normalize)
        y, bounds = dlmt.encrypt(images, plan, layout=layout, return_bounds=True)
        np.testing.assert_array_equal(nchw(y), known["uint8"])
        expected = known.get("bounds", [[case["lo"], case["hi"]]] * len(case["images"]))
        np.testing.assert_array_equal(bounds.cpu().numpy(), expected)
        back = dlmt.decrypt(placed(known["uint8"], "uint8"), plan, bounds, layout=layout)
        np.testing.assert_array_equal(nchw(back), known["decrypted_from_uint8"])
        floats = dlmt.encrypt(images, scheme.plan(secret, case["shape"], normalize, "float32"), layout=layout)
        words = np.array([int(word, 16) for word in known["float32_bits"]], np.uint32)
        np.testing.assert_array_equal(nchw(floats).view(np.uint32).ravel(), words)


@pytest.mark.parametrize("normalize", ["range", "minmax"])
def test_more_than_two_to_the_31_elements(normalize: str, key: dlmt.Key, walk: Any) -> None:
    """Indices of 32 bits would wrap; the images repeat, so the reference needs a few of them only."""
    shape, few = (3, 128, 128), 7
    count = (2**31 // (3 * 128 * 128) // few + 2) * few
    total = count * 3 * 128 * 128
    free = torch.cuda.mem_get_info()[0]
    if free < 4 * total:
        pytest.skip(f"{free / 2**30:.1f} GiB are free on the device, {4 * total / 2**30:.1f} GiB are needed")
    plan = dlmt.DLMT("mat_mmt").plan(key, shape, normalize)
    host = torch.from_numpy(cpu.make_images(few, shape, 31))
    wanted = dlmt.encrypt(host, plan, backend="reference").cuda()
    images = host.cuda().repeat(count // few, 1, 1, 1)
    y = torch.full_like(images, POISON)
    dlmt.encrypt(images, plan, out=y)
    assert total > 2**31
    wrong = int((y.view(-1, few, *shape) != wanted).sum())
    walk.values += total
    walk.differ += wrong
    assert wrong == 0
    del y
    one = dlmt.DLMT("mat_mmt").plan(key, shape, "none")
    small = dlmt.encrypt(host.cuda(), one)
    assert not differing("back", dlmt.decrypt(small, one), host)
