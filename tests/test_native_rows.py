"""Forms of the key and orders of the work that only the C++ backend has: rows of several images, keys that go on past
their end, stores past the caches. Always the reference's bits, and nothing written beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
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

STREAMED = 9 << 20  # bytes of results, which are then streamed
OUTPUTS = [("range", "uint8"), ("range", "float32"), ("minmax", "uint8")]


@pytest.fixture(params=native.levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.level()
    native.set_level(request.param)
    yield request.param
    native.set_level(before)


def coefficients(shape: tuple[int, int, int], normalize: str, dtype: str, scheme: Any = None, **options: Any) -> Any:
    plan = (scheme or dlmt.DLMT("mat_mmt")).plan(dlmt.Key(bytes(range(32))), shape, normalize, dtype, **options)
    return plan.coefficients("CHW")


def make_images(k: Any, n: int, seed: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (n, *k.M.shape), np.uint8)
    images[1::3] = 255
    images[2::5] = 0
    return images


def make_bounds(k: Any, n: int) -> np.ndarray | None:
    groups = {"minmax": 1, "minmax_channel": k.M.shape[1]}.get(k.normalize)
    return np.zeros((n, groups, 2), np.int32) if groups else None


def expected(images: np.ndarray, k: Any) -> np.ndarray:
    out = np.empty(images.shape, contract.STORAGE[k.dtype])
    for start in range(0, len(images), 64):
        part = slice(start, start + 64)
        reference.affine(images[part], k, out[part], make_bounds(k, len(images[part])))
    return out


def at(memory: np.ndarray, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    return memory[offset : offset + int(np.prod(shape))].reshape(shape)


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), want.view(f"u{want.itemsize}"))


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 3), (1, 2, 7), (3, 4, 4), (1, 14, 14), (1, 28, 28), (3, 5, 13), (3, 32, 32)], ids=str
)
def test_rows_of_several_images(level: str, normalize: str, dtype: str, shape: tuple[int, int, int]) -> None:
    """Whole rows, parts of rows, and places in memory where no row begins on a vector."""
    k = coefficients(shape, normalize, dtype)
    images = make_images(k, 300)
    want = expected(images, k)
    for n in (1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 257, 300):
        for offset in (0, 1, 17, 63):
            source = at(np.zeros(images.size + 64, np.uint8), offset, (n, *k.M.shape))
            source[...] = images[:n]
            guarded = np.full(want.size + 256, 77, want.dtype)
            out = at(guarded, offset + 64, source.shape)
            native.affine(source, k, out, make_bounds(k, n), 1 + n % 2)
            assert_same_bits(out, want[:n])
            assert (guarded[: offset + 64] == 77).all()
            assert (guarded[offset + 64 + out.size :] == 77).all()


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 37, 31), (3, 224, 224), (1, 1500, 1501)], ids=str)
def test_streamed_results(level: str, normalize: str, dtype: str, shape: tuple[int, int, int]) -> None:
    k = coefficients(shape, normalize, dtype)
    size = int(np.prod(shape)) * contract.STORAGE[dtype].itemsize
    images = make_images(k, STREAMED // size + 3)
    want = expected(images, k)
    memory, guarded = np.zeros(images.size + 64, np.uint8), np.empty(want.size + 256, want.dtype)
    for offset, threads in ((0, 1), (1, 3), (16, 2), (33, 1), (63, 1)):
        source = at(memory, (offset * 5) % 64, images.shape)
        source[...] = images
        guarded[...] = 77
        out = at(guarded, offset + 64, source.shape)
        native.affine(source, k, out, make_bounds(k, len(images)), threads)
        assert_same_bits(out, want)
        assert (guarded[: offset + 64] == 77).all()
        assert (guarded[offset + 64 + out.size :] == 77).all()


@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_images_apart_and_streamed(level: str, normalize: str, dtype: str) -> None:
    """Steps between images that are whole vectors, and that are not."""
    for shape, gap in (((3, 64, 64), 0), ((3, 64, 64), 64), ((3, 64, 64), 4), ((3, 61, 64), 64 * 3)):
        k = coefficients(shape, normalize, dtype)
        size = int(np.prod(shape))
        images = make_images(k, 2 * STREAMED // (size * contract.STORAGE[dtype].itemsize))
        want = expected(images, k)
        out = np.full((len(images), size + gap), 77, want.dtype)
        view = out[:, :size].reshape(images.shape)
        assert view.base is not None
        native.affine(images, k, view, make_bounds(k, len(images)), 2)
        assert_same_bits(np.ascontiguousarray(view), want)
        assert (out[:, size:] == 77).all()
        backwards = view[::-1]
        native.affine(images, k, backwards, make_bounds(k, len(images)), 1)
        assert_same_bits(np.ascontiguousarray(backwards), want)


@pytest.mark.parametrize("normalize", ["range", "minmax", "minmax_channel"])
def test_large_in_place(level: str, normalize: str) -> None:
    for shape in ((1, 28, 28), (3, 32, 32), (3, 150, 151)):
        k = coefficients(shape, normalize, "uint8")
        memory = make_images(k, STREAMED // int(np.prod(shape)))
        want = expected(memory, k)
        native.affine(memory, k, memory, make_bounds(k, len(memory)), 2)
        assert_same_bits(memory, want)


@pytest.mark.parametrize(
    "scheme",
    [
        dlmt.DLMT("mat_mmt", max_v_add=255, max_v_mul=32896),  # hi - lo is 16776959, just below 2**24
        dlmt.DLMT("mat_mmt", max_v_add=257, max_v_mul=32769),  # above
        dlmt.DLMT("mat_mmt", max_v_add=8388608, max_v_mul=255),
    ],
    ids=lambda scheme: f"hi={scheme.hi}",
)
def test_floats_where_values_pass_their_exact_integers(level: str, scheme: Any) -> None:
    for statistics in ({}, {"mean": [0.5, -0.25, 3], "std": [0.25, 1.5, 0.02]}):
        k = coefficients((3, 40, 41), "range", "float32", scheme, **statistics)
        images = make_images(k, 9)
        out = np.empty(images.shape, np.float32)
        native.affine(images, k, out, None, 1)
        assert_same_bits(out, expected(images, k))


@pytest.mark.parametrize(
    "scheme",
    [
        dlmt.DLMT("mat_mmt", max_v_add=257 * 255 - 255, max_v_mul=1),  # hi is 65535
        dlmt.DLMT("mat_mmt", max_v_add=257 * 255 - 254, max_v_mul=1),  # 65536
        dlmt.DLMT("mmt", max_v_mul=257),  # 65535
        dlmt.DLMT("mmt_mat", max_v_add=256, max_v_mul=256),  # 65536
        dlmt.DLMT("mat", max_v_add=65280),  # 65535
        dlmt.DLMT("mat", max_v_add=65281),  # 65536
        dlmt.DLMT("rise_mmt", rise_v=255, max_v_mul=128),
    ],
    ids=lambda scheme: f"{scheme.params['mode']}-hi={scheme.hi}",
)
@pytest.mark.parametrize("normalize", ["minmax", "minmax_channel"])
def test_values_at_the_border_of_16_bits(level: str, scheme: Any, normalize: str) -> None:
    """The key is made to reach both ends of its range at pixels that reach theirs."""
    for shape in ((3, 9, 9), (1, 28, 28), (3, 32, 32), (3, 150, 151)):
        k = coefficients(shape, normalize, "uint8", scheme)
        m, b = k.M.copy(), k.B.copy()
        m.reshape(-1)[-1], b.reshape(-1)[-1] = scheme_extreme(scheme)
        k = dataclasses.replace(k, M=m, B=b)
        images = make_images(k, 7)
        images[0], images[-1] = 255, 0
        bounds, found = make_bounds(k, 7), make_bounds(k, 7)
        want, out = np.empty_like(images), np.empty_like(images)
        reference.affine(images, k, want, bounds)
        native.affine(images, k, out, found, 2)
        assert_same_bits(out, want)
        assert np.array_equal(found, bounds)
        assert found.max() == scheme.hi


def scheme_extreme(scheme: Any) -> tuple[int, int]:
    """M and B of the position that gives `scheme.hi` for 255."""
    mode, add = scheme.params["mode"], scheme.params.get("max_v_add", 0)
    m = 1 if mode == "mat" else scheme.params["max_v_mul"]
    return m, scheme.hi - 255 * m if add or mode == "rise_mmt" else 0


#: Keys that large images pack, and some that they cannot: factors past 15 or 4095, sums that leave what 16 bits hold.
PACKED = [
    dlmt.DLMT("mat", max_v_add=5),
    dlmt.DLMT("mat", max_v_add=4095),
    dlmt.DLMT("mat", max_v_add=6000),
    dlmt.DLMT("mmt", max_v_mul=10),
    dlmt.DLMT("mmt", max_v_mul=15),
    dlmt.DLMT("mmt", max_v_mul=16),
    dlmt.DLMT("rise_mmt", max_v_mul=10, rise_v=400),
    dlmt.DLMT("rise_mmt", max_v_mul=10, rise_v=4096),
    dlmt.DLMT("mat_mmt", max_v_add=256, max_v_mul=10),
    dlmt.DLMT("mat_mmt", max_v_add=2048, max_v_mul=10),
    dlmt.DLMT("mat_mmt", max_v_add=4095, max_v_mul=15),
    dlmt.DLMT("mmt_mat", max_v_add=256, max_v_mul=10),
    dlmt.DLMT("mmt_mat", max_v_add=4095, max_v_mul=15),
    dlmt.DLMT("mmt_mat", max_v_add=256, max_v_mul=100),
]


@pytest.mark.parametrize("scheme", PACKED, ids=str)
@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_keys_of_large_images(level: str, scheme: Any, normalize: str, dtype: str) -> None:
    """The largest are always packed, the others where few images come together."""
    for shape, counts, threads in (((1, 1031, 1033), [1], 3), ((1, 263, 257), [1, 3, 6], 1)):
        k = coefficients(shape, normalize, dtype, scheme)
        for n in counts:
            images = make_images(k, n)
            out, found, bounds = np.empty(images.shape, k.dtype), make_bounds(k, n), make_bounds(k, n)
            want = np.empty_like(out)
            reference.affine(images, k, want, bounds)
            native.affine(images, k, out, found, threads)
            assert_same_bits(out, want)
            assert bounds is None or np.array_equal(found, bounds)


@pytest.mark.parametrize("name", ["M", "B", "M24", "B24"])
@pytest.mark.parametrize("position", [0, 777_777, -1])
def test_a_key_that_is_no_plans_is_taken_as_it_is(level: str, name: str, position: int) -> None:
    """One value differs from what its neighbours and the span would tell."""
    k = coefficients((1, 1031, 1033), "range", "uint8")
    changed = getattr(k, name).copy()
    changed.reshape(-1)[position] += 1 << 24 if name == "B24" else 1
    k = dataclasses.replace(k, **{name: changed}, cache={})
    images = make_images(k, 1)
    out = np.empty_like(images)
    native.affine(images, k, out, None, 1)
    assert_same_bits(out, expected(images, k))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_large_images_with_channels(level: str, dtype: str) -> None:
    """Statistics and bounds of each channel, through a packed key."""
    statistics = {"mean": [0.5, -0.25, 3], "std": [0.25, 1.5, 0.02]} if dtype == "float32" else {}
    for normalize in ("range", "minmax_channel"):
        k = coefficients((3, 601, 607), normalize, dtype, dlmt.DLMT("mat_mmt", 256, 10), **statistics)
        images = make_images(k, 4)
        for threads in (1, 3):
            out = np.empty(images.shape, k.dtype)
            native.affine(images, k, out, make_bounds(k, 4), threads)
            assert_same_bits(out, expected(images, k))
