"""The calls beside `affine`: `copy`, and `Prepared` with its way for plain NumPy arrays."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.backends import contract, reference
from dlmt_fast.errors import BackendError

try:
    from dlmt_fast.backends import native
except BackendError as error:
    pytest.skip(str(error), allow_module_level=True)

SHAPE = (3, 8, 6)
OUTPUTS = [
    ("none", "int32"),
    ("none", "narrowest"),
    *((n, d) for n in ("range", "minmax", "minmax_channel") for d in ("uint8", "float32", "float16", "bfloat16")),
]


@pytest.fixture(params=native.levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.level()
    native.set_level(request.param)
    yield request.param
    native.set_level(before)


def coefficients(normalize: str = "range", dtype: str | None = None, order: str = "CHW", shape: Any = SHAPE) -> Any:
    return dlmt.DLMT("mat_mmt").plan(dlmt.Key(bytes(range(32))), shape, normalize, dtype).coefficients(order)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(k: Any, images: np.ndarray) -> np.ndarray:
    """The reference's result for images in the memory order of `k`."""
    grouped = np.ascontiguousarray(images).reshape(-1, *k.M.shape)
    groups = {"minmax": 1, "minmax_channel": k.M.shape[1]}.get(k.normalize)
    bounds = np.zeros((len(grouped), groups, 2), np.int32) if groups else None
    out = np.empty(grouped.shape, contract.STORAGE[k.dtype])
    reference.affine(grouped, k, out, bounds)
    return out.reshape(images.shape)


# ---- copy


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("streaming", [False, True])
def test_copies_at_every_alignment_write_nothing_else(level: str, dtype: type, streaming: bool) -> None:
    memory = pixels(3000)
    for count in (0, 1, 63, 64, 65, 255, 256, 257, 1000, 2000):
        for offset in (0, 1, 15, 31, 32, 63):
            guarded = np.full(count + 256, 7, dtype)
            out = guarded[offset : offset + count]
            native.copy(memory[offset : offset + count], out, streaming)
            np.testing.assert_array_equal(out, memory[offset : offset + count])
            assert (guarded[:offset] == 7).all()
            assert (guarded[offset + count :] == 7).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_copies_by_several_threads(level: str, dtype: type) -> None:
    images = pixels(11, 3, 211, 97)
    for streaming in (False, True):
        for threads in (0, 1, 2, 7):
            out = np.zeros(images.shape, dtype)
            native.copy(images, out, streaming, threads)
            np.testing.assert_array_equal(out, images)


def test_copy_refuses_what_it_cannot_take() -> None:
    images, out = pixels(4, 6), np.zeros((4, 6), np.uint8)
    wrong: list[tuple[Any, Any]] = [
        (images.astype(np.int8), out),
        (images, out.astype(np.float64)),
        (images, out.astype(np.int32)),
        (images, out[:3]),
        (images, out.reshape(6, 4)),
        (images, out[0]),
        (images[:, ::2], out[:, :3]),
        (images[:, :3], out[:, ::2]),
        (images, np.broadcast_to(out[:1], (4, 6))),
        (images.reshape(-1)[:-1], images.reshape(-1)[1:]),
        (images.tolist(), out),
        (images, None),
    ]
    for source, target in wrong:
        with pytest.raises((TypeError, ValueError)):
            native.copy(source, target)
    readonly = out.copy()
    readonly.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        native.copy(images, readonly)
    before = images.copy()
    native.copy(images, images)
    np.testing.assert_array_equal(images, before)


# ---- direct


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
@pytest.mark.parametrize("order", ["CHW", "HWC"])
def test_direct_gives_the_reference(level: str, normalize: str, dtype: str, order: str) -> None:
    shape = SHAPE if order == "CHW" else (8, 6, 3)
    k = coefficients(normalize, dtype, order)
    taker = native.prepared(k, shape)
    for batch in ((), (0,), (1,), (5,), (700,)):  # 700: with other threads, and without the lock
        images = pixels(*batch, *shape)
        out = np.zeros(images.shape, contract.STORAGE[k.dtype])
        took = taker.direct(images, out, 3)
        assert took is (dtype != "bfloat16")  # NumPy has none: the caller says so in words
        if took:
            assert out.tobytes() == expected(k, images).tobytes()
        out[...] = 0
        taker.direct_pointers(images.ctypes.data, out.ctypes.data, images.size // np.prod(shape), 2)
        assert out.tobytes() == expected(k, images).tobytes()


def test_direct_in_place() -> None:
    for normalize in ("range", "minmax", "minmax_channel"):
        k = coefficients(normalize)
        memory = pixels(5, *SHAPE)
        want = expected(k, memory)
        assert native.prepared(k, SHAPE).direct(memory, memory, 1)
        np.testing.assert_array_equal(memory, want)


class Subclass(np.ndarray):
    pass


def readonly(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


Change = Callable[[np.ndarray], Any]
ODD: list[Change] = [
    lambda a: None,
    lambda a: a.tolist(),
    lambda a: memoryview(a),
    lambda a: a.view(Subclass),
    lambda a: np.ma.MaskedArray(a),
    lambda a: a.astype(np.int64),
    lambda a: a.astype(a.dtype.newbyteorder()) if a.itemsize > 1 else a.view(np.int8),
    lambda a: a.view(bool) if a.itemsize == 1 else a.view(np.int32),
    lambda a: a[:-1],
    lambda a: a[0],
    lambda a: a[None],
    lambda a: a.reshape(-1),
    lambda a: a.reshape(len(a), -1),
    lambda a: a.transpose(0, 2, 3, 1),
    lambda a: np.asfortranarray(a),
    lambda a: a[..., ::-1],
    lambda a: np.repeat(a, 2, axis=0)[::2],
    lambda a: a.swapaxes(2, 3),
    lambda a: np.array(3, a.dtype),
]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("change", ODD, ids=lambda change: f"{ODD.index(change)}")
def test_direct_refuses_the_odd_and_does_nothing(dtype: str, change: Change) -> None:
    taker = native.prepared(coefficients("range", dtype), SHAPE)
    images, out = pixels(4, *SHAPE), np.full((4, *SHAPE), 7, dtype)
    assert taker.direct(change(images), out, 1) is False
    assert taker.direct(images, change(out), 1) is False
    assert (out == 7).all()


def test_direct_refuses_more() -> None:
    k = coefficients()
    taker = native.prepared(k, SHAPE)
    images, out = pixels(4, *SHAPE), np.full((4, *SHAPE), 7, np.uint8)
    memory = pixels(4 * images.size)
    size = images[0].size
    floats = np.frombuffer(memory.data, np.float32)[: images.size].reshape(images.shape)
    cases: list[tuple[Any, Any, Any]] = [
        (images, readonly(out), 1),
        *((images, out, threads) for threads in (0, -1, True, 1.0, "1", None, 1 << 80, np.int64(1))),
        (memory[:-size].reshape(-1, *SHAPE)[:4], memory[size:].reshape(-1, *SHAPE)[:4], 1),
        (memory[: images.size].reshape(images.shape), memory[1 : images.size + 1].reshape(images.shape), 1),
    ]
    before = memory.copy()
    for case in cases:
        assert taker.direct(*case) is False
    to_float = native.prepared(coefficients(dtype="float32"), SHAPE)
    assert to_float.direct(memory[: images.size].reshape(images.shape), floats, 1) is False
    unaligned = np.zeros(images.size * 4 + 1, np.uint8)[1:].view(np.float32).reshape(images.shape)
    assert to_float.direct(images, unaligned, 1) is False
    assert native.prepared(k).direct(images, out, 1) is False  # knows no shape
    assert (out == 7).all()
    np.testing.assert_array_equal(memory, before)
    assert taker.direct(images, out, 1) is True


def test_a_shape_that_does_not_fit_is_refused() -> None:
    k = coefficients()
    for shape in ((3, 8), (3, 8, 7), (3, 8, 6, 1), (-3, -8, 6), (0, 8, 6), (3, 8, 3), (1 << 62, 1 << 62, 1)):
        with pytest.raises(ValueError, match="shape3"):
            native.prepared(k, shape)


# ---- what is kept


def test_prepared_is_kept_and_not_pickled() -> None:
    k = coefficients()
    assert native.prepared(k) is native.prepared(k)
    assert native.prepared(k, SHAPE) is native.prepared(k, SHAPE)
    assert native.prepared(k, SHAPE) is not native.prepared(k)
    with dlmt.keys.allow_export():
        again = pickle.loads(pickle.dumps(k))
    assert again.cache == {}
    assert k.cache
    images = pixels(2, *SHAPE).reshape(2, *k.M.shape)
    out = np.empty_like(images)
    native.affine(images, again, out, None)
    np.testing.assert_array_equal(out, expected(k, images))


def test_prepared_by_many_threads_at_once() -> None:
    for seed in range(20):
        k = coefficients("range", shape=(3, 16, 16))
        images = pixels(3, 3, 16, 16, seed=seed)
        want = expected(k, images)

        def work(k: Any = k, images: np.ndarray = images) -> np.ndarray:
            out = np.empty_like(images)
            assert native.prepared(k, (3, 16, 16)).direct(images, out, 2)
            return out

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work) for _ in range(8)]:
                np.testing.assert_array_equal(done.result(), want)


def test_the_arrays_outlive_the_plan() -> None:
    k = coefficients("minmax", "float32", shape=(3, 50, 50))
    images = pixels(3, 3, 50, 50)
    want, taker = expected(k, images), native.prepared(k, (3, 50, 50))
    del k
    out = np.zeros(images.shape, np.float32)
    assert taker.direct(images, out, 1)
    assert out.tobytes() == want.tobytes()
