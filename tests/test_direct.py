"""The short way for plain arrays gives what the general way gives, and takes nothing that it should not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dlmt_fast as dlmt
from dlmt_fast import direct, functional

SCHEME = dlmt.DLMT("mmt_mat", max_v_add=300, max_v_mul=20)
SHAPE = (3, 7, 5)
PAIRS = [
    ("none", "int32"),
    ("none", "narrowest"),
    *(
        (normalize, dtype)
        for normalize in ("range", "minmax", "minmax_channel")
        for dtype in ("uint8", "float32", "float16")
    ),
]

pytestmark = pytest.mark.skipif(dlmt.backends.available()["native"] != "ok", reason="the native module is not built")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the short way answered, call by call."""
    answers: list[bool] = []

    def watched(*arguments: Any) -> bool:
        answers.append(direct.try_direct(*arguments))
        return answers[-1]

    monkeypatch.setattr(functional, "try_direct", watched)
    return answers


def general(*arguments: Any, **options: Any) -> Any:
    """`encrypt` without the short way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "try_direct", lambda *_: False)
        return dlmt.encrypt(*arguments, **options)


@pytest.mark.parametrize(("normalize", "dtype"), PAIRS, ids=lambda value: str(value))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("count", [None, 0, 1, 2, 65])
def test_both_ways_give_the_same(
    normalize: str, dtype: str, layout: str, kind: str, count: int | None, key: dlmt.Key, taken: list[bool], rng: Any
) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize, dtype)
    axes = SHAPE if layout == "NCHW" else (*SHAPE[1:], SHAPE[0])
    images: Any = rng.integers(0, 256, axes if count is None else (count, *axes), dtype=np.uint8)
    images = torch.from_numpy(images) if kind == "torch" else images
    expected = general(images, plan, layout=layout)
    fresh = dlmt.encrypt(images, plan, layout=layout)
    out = torch.zeros_like(expected) if kind == "torch" else np.zeros_like(expected)
    assert dlmt.encrypt(images, plan, out=out, layout=layout, threads=2) is out
    assert taken == [True, True]
    assert type(fresh) is type(expected)
    assert fresh.dtype == expected.dtype == out.dtype
    for got in (fresh, out):
        assert np.array_equal(np.asarray(got), np.asarray(expected))


def test_bfloat16(key: dlmt.Key, taken: list[bool], rng: Any) -> None:
    plan = SCHEME.plan(key, SHAPE, "range", "bfloat16")
    images = torch.from_numpy(rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8))
    assert torch.equal(dlmt.encrypt(images, plan), general(images, plan))
    assert taken == [True]


def test_in_place(key: dlmt.Key, taken: list[bool], rng: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = rng.integers(0, 256, (9, *SHAPE), dtype=np.uint8)
    expected = general(images, plan)
    assert dlmt.encrypt(images, plan, out=images) is images
    assert (images == expected).all()
    assert taken == [True]


def not_plain(rng: Any) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """Images, out and options that only the general way may judge."""
    x = rng.integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    t = torch.from_numpy(x)
    readonly = np.empty_like(x)
    readonly.flags.writeable = False
    both = np.empty(2 * x.size, np.uint8)
    left = both[: x.size].reshape(x.shape)
    return {
        "strided": (x[::2], np.empty((2, *SHAPE), np.uint8), {}),
        "fortran": (np.asfortranarray(x), np.empty_like(x), {}),
        "out strided": (x, np.empty((8, *SHAPE), np.uint8)[::2], {}),
        "overlap": (left, both[5 : 5 + x.size].reshape(x.shape), {}),
        "read-only": (x, readonly, {}),
        "wrong dtype": (x.astype(np.int16), np.empty_like(x), {}),
        "wrong out dtype": (x, np.empty(x.shape, np.int8), {}),
        "wrong shape": (x[:, :, :6], np.empty((4, 3, 6, 5), np.uint8), {}),
        "wrong out shape": (x, np.empty((3, *SHAPE), np.uint8), {}),
        "five axes": (x[None], np.empty((1, *x.shape), np.uint8), {}),
        "two kinds": (x, torch.empty_like(t), {}),
        "two kinds, other way": (t, np.empty_like(x), {}),
        "subclass": (x.view(np.memmap), np.empty_like(x), {}),
        "masked": (np.ma.array(x), np.empty_like(x), {}),
        "list": ([1], np.empty_like(x), {}),
        "layout": (x, np.empty_like(x), {"layout": "CHW"}),
        "unknown layout": (x, np.empty_like(x), {"layout": ["NCHW"]}),
        "backend": (x, np.empty_like(x), {"backend": "numba"}),
        "threads 0": (x, np.empty_like(x), {"threads": 0}),
        "threads True": (x, np.empty_like(x), {"threads": True}),
        "torch threads": (t, torch.empty_like(t), {"threads": 1.5}),
        "torch strided": (t[::2], torch.empty_like(t[::2]), {}),
        "torch grad": (t, torch.empty(t.shape, requires_grad=True), {}),
        "torch meta": (t.to("meta"), torch.empty_like(t), {}),
        "torch parameter": (torch.nn.Parameter(t, requires_grad=False), torch.empty_like(t), {}),
    }


@pytest.mark.parametrize("case", not_plain(np.random.default_rng(0)))
def test_what_is_not_plain_goes_the_general_way(case: str, key: dlmt.Key, taken: list[bool], rng: Any) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images, out, options = not_plain(rng)[case]

    def outcome(call: Any) -> Any:
        try:
            return np.asarray(call(images, plan, out=out, **options)).copy()
        except (dlmt.errors.DlmtError, TypeError) as error:
            return type(error), str(error)

    got = outcome(dlmt.encrypt)
    assert taken == [False]
    expected = outcome(general)
    assert got == expected if isinstance(expected, tuple) else np.array_equal(got, expected)


@pytest.mark.parametrize("count", [2, 100_000])
def test_another_default_device_changes_nothing(count: int, key: dlmt.Key, taken: list[bool]) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = torch.zeros((count, *SHAPE), dtype=torch.uint8)
    expected = general(images, plan)
    with torch.device("meta"):
        assert torch.equal(dlmt.encrypt(images, plan), expected)
        assert torch.equal(general(images, plan), expected)
        assert dlmt.encrypt(images, plan, return_bounds=True)[1].device.type == "cpu"
    assert taken == [True]


def test_large_fresh_tensors_are_ordinary_tensors(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE, "range", "float32")
    images = torch.zeros((20_000, *SHAPE), dtype=torch.uint8)
    y = dlmt.encrypt(images, plan)
    assert y.dtype == torch.float32
    assert y.is_contiguous()
    assert torch.equal(y, general(images, plan))
    assert (y * 2).sum() == y.sum() * 2


def test_plans_pickle_without_what_was_prepared(key: dlmt.Key) -> None:
    import pickle

    plan = SCHEME.plan(key, SHAPE)
    dlmt.encrypt(np.zeros(SHAPE, np.uint8), plan)
    assert plan.direct
    with dlmt.keys.allow_export():
        copy = pickle.loads(pickle.dumps(plan))
    assert not copy.direct
    assert (dlmt.encrypt(np.ones(SHAPE, np.uint8), copy) == dlmt.encrypt(np.ones(SHAPE, np.uint8), plan)).all()
