"""What is particular to the Numba backend: shares of threads, memory layouts, compilation."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.backends import reference
from dlmt_fast.backends.contract import STORAGE, Array

numba = pytest.importorskip("numba")
from dlmt_fast.backends import numba_cpu, numba_inverse, numba_kernels  # noqa: E402

OUTPUTS = [
    ("none", "int32"),
    ("none", "narrowest"),
    *((n, d) for n in ("range", "minmax", "minmax_channel") for d in ("uint8", "float32", "float16", "bfloat16")),
]


def bits(array: Array) -> Array:
    return array.view(f"u{array.itemsize}")


def make(key: dlmt.Key, shape: tuple[int, int, int], normalize: str, dtype: str, order: str, **kwargs: Any) -> Any:
    return (
        dlmt.DLMT("mat_mmt", max_v_add=300, max_v_mul=1000)
        .plan(key, shape, normalize, dtype, **kwargs)
        .coefficients(order)
    )


def space_for(images: Array, k: Any) -> tuple[Array, Array | None]:
    channels = k.M.shape[1] if k.normalize == "minmax_channel" else 1
    bounds = np.zeros((len(images), channels, 2), np.int32) if k.normalize.startswith("minmax") else None
    return np.zeros(images.shape, STORAGE[k.dtype]), bounds


def assert_as_reference(images: Array, k: Any, threads: int) -> None:
    (want, want_bounds), (got, got_bounds) = space_for(images, k), space_for(images, k)
    reference.affine(images, k, want, want_bounds)
    numba_cpu.affine(images, k, got, got_bounds, threads)
    np.testing.assert_array_equal(bits(got), bits(want))
    if want_bounds is not None:
        np.testing.assert_array_equal(got_bounds, want_bounds)
    want_back, got_back = np.zeros(images.shape, np.uint8), np.zeros(images.shape, np.uint8)
    assert reference.affine_inverse(want, k, want_bounds, want_back) == -1
    assert numba_cpu.affine_inverse(want, k, want_bounds, got_back, threads) == -1
    np.testing.assert_array_equal(got_back, want_back)


@pytest.fixture
def tiny_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads even for a handful of pixels, so that small images are cut as large ones are."""
    monkeypatch.setattr(numba_cpu, "LEAST_WORK", 64)


@pytest.mark.usefixtures("tiny_shares")
@pytest.mark.parametrize("order", ["CHW", "HWC"])
@pytest.mark.parametrize(("normalize", "dtype"), OUTPUTS)
def test_the_cuts_between_threads_do_not_show(
    key: dlmt.Key, rng: np.random.Generator, normalize: str, dtype: str, order: str
) -> None:
    statistics = {} if dtype in ("int32", "narrowest", "uint8") else {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 9.0]}
    for shape in [(3, 17, 13), (3, 1, 65), (3, 129, 64)]:
        k = make(key, shape, normalize, dtype, order, **statistics)
        for count in (1, 2, 7):
            images = rng.integers(0, 256, (count, *k.M.shape), dtype=np.uint8)
            for threads in (1, 2, 5):
                assert_as_reference(images, k, threads)


@pytest.mark.usefixtures("tiny_shares")
def test_constant_images(key: dlmt.Key) -> None:
    """hi == lo: a key of ones and constant channels."""
    ones = dlmt.DLMT("mmt", max_v_mul=1)
    for normalize, dtype in OUTPUTS:
        for order in ("CHW", "HWC"):
            k = ones.plan(key, (3, 9, 9), normalize, dtype).coefficients(order)
            assert_as_reference(np.full((3, *k.M.shape), 77, np.uint8), k, 2)


@pytest.mark.usefixtures("tiny_shares")
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("order", ["CHW", "HWC"])
def test_the_first_bad_value_is_named_whoever_finds_it(
    key: dlmt.Key, rng: np.random.Generator, order: str, threads: int
) -> None:
    for count, normalize, dtype in ((1, "none", "int32"), (9, "none", "int32"), (2, "range", "float32")):
        k = make(key, (3, 40, 41), normalize, dtype, order, **({"mean": [0, 0.5, 1]} if dtype == "float32" else {}))
        images = rng.integers(0, 256, (count, *k.M.shape), dtype=np.uint8)
        values, bounds = space_for(images, k)
        reference.affine(images, k, values, bounds)
        places = np.sort(rng.integers(0, values.size, 4))
        for first in range(len(places)):
            damaged = values.copy()
            damaged.reshape(-1)[places[first:]] = np.nan if dtype == "float32" else k.hi + 1
            assert numba_cpu.affine_inverse(damaged, k, bounds, np.zeros_like(images), threads) == places[first]


def test_boxes_cover_everything_once(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(500):
        images, size = int(rng.integers(0, 20)), int(rng.integers(1, 3000))
        threads, align, whole = int(rng.integers(1, 9)), int(rng.integers(1, 5)), bool(rng.integers(0, 2))
        monkeypatch.setattr(numba_cpu, "LEAST_WORK", int(rng.integers(1, 5000)))
        seen = np.zeros((images, size * align), int)
        boxes = numba_cpu._split(images, size * align, threads, align, whole)
        for box in boxes:
            seen[box.first : box.last, box.begin : box.end] += 1
            assert box.begin % align == 0
            assert box.end % align == 0
        assert len(boxes) <= threads
        assert (seen == 1).all()


def test_any_distance_between_images(key: dlmt.Key, rng: np.random.Generator) -> None:
    memory = rng.integers(0, 256, (9, 1, 3, 35), dtype=np.uint8)
    for normalize, dtype in OUTPUTS:
        k = make(key, (3, 5, 7), normalize, dtype, "CHW")
        for images in (
            memory[::2],
            memory[::-1],
            memory[6:1:-3],
            np.broadcast_to(memory[3], (4, 1, 3, 35)),
            memory[:0],
        ):
            assert_as_reference(images, k, 2)
            wide, bounds = space_for(np.zeros((20, 1, 3, 35)), k)
            want, want_bounds = space_for(images, k)
            reference.affine(images, k, want, want_bounds)
            for out in (wide[: 2 * len(images) : 2], wide[len(images) :][: len(images)][::-1]):
                wide[...] = 0
                numba_cpu.affine(images, k, out, None if bounds is None else bounds[: len(images)], 2)
                np.testing.assert_array_equal(bits(out), bits(want))
                assert np.count_nonzero(bits(wide)) == np.count_nonzero(bits(want))


def test_fields_of_a_packed_record(key: dlmt.Key, rng: np.random.Generator) -> None:
    k = make(key, (3, 5, 7), "range", "float32", "CHW")
    images = rng.integers(0, 256, (4, *k.M.shape), dtype=np.uint8)
    records = np.zeros(4, np.dtype([("label", "u1"), ("image", "f4", k.M.shape)]))
    want, _ = space_for(images, k)
    reference.affine(images, k, want, None)
    numba_cpu.affine(images, k, records["image"], None, 2)
    np.testing.assert_array_equal(records["image"], want)
    back = np.zeros_like(images)
    assert numba_cpu.affine_inverse(records["image"], k, None, back, 2) == -1
    np.testing.assert_array_equal(back, images)


@pytest.mark.parametrize("normalize", ["range", "minmax", "minmax_channel"])
def test_in_place(key: dlmt.Key, rng: np.random.Generator, normalize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    k = make(key, (3, 16, 16), normalize, "uint8", "HWC")
    monkeypatch.setattr(numba_cpu, "STAGE_BYTES", 3000)
    for count in (0, 1, 8):
        images = rng.integers(0, 256, (count, *k.M.shape), dtype=np.uint8)
        want, bounds = space_for(images, k)
        numba_cpu.affine(images, k, want, bounds, 2)
        memory = images.copy()
        again = None if bounds is None else np.zeros_like(bounds)
        numba_cpu.affine(memory, k, memory, again, 2)
        np.testing.assert_array_equal(memory, want)
        back = np.zeros_like(images)
        numba_cpu.affine_inverse(want, k, bounds, back, 2)
        assert numba_cpu.affine_inverse(memory, k, again, memory, 2) == -1
        np.testing.assert_array_equal(memory, back)


def test_a_bad_value_in_place(key: dlmt.Key) -> None:
    """The value that names the position may be overwritten meanwhile; a later part counts from the first image."""
    k = dlmt.DLMT("mat", max_v_add=1).plan(key, (1, 64, 64), "none", "int32").coefficients("CHW")
    k = k.__class__(**{**{f: getattr(k, f) for f in k.__dataclass_fields__}, "dtype": "uint8", "hi": 255})
    memory = np.full((600, 1, 1, 4096), 9, np.uint8)
    memory.reshape(-1)[2_000_003:2_000_009] = 0
    assert numba_cpu.affine_inverse(memory, k, None, memory, 2) == 2_000_003


def test_kernels_release_the_gil(key: dlmt.Key) -> None:
    k = make(key, (3, 64, 64), "minmax", "float32", "CHW")
    images = np.zeros((2000, *k.M.shape), np.uint8)
    out, bounds = space_for(images, k)
    numba_cpu.affine(images[:1], k, out[:1], bounds[:1] if bounds is not None else None, 1)
    began = threading.Event()

    def work() -> None:
        began.set()
        numba_cpu.affine(images, k, out, bounds, 1)

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    turns = 0
    while thread.is_alive():
        time.sleep(0.0002)
        turns += 1
    assert turns > 5  # one or two if the kernel kept the GIL


def triple(x: int) -> int:
    return 3 * x


def test_a_kernel_that_cannot_be_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.Cache.save_overload", full)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert numba_kernels.kernel(triple)(14) == 42


def test_one_compilation_serves_writable_and_frozen_images(key: dlmt.Key) -> None:
    k = make(key, (3, 5, 7), "range", "uint8", "CHW")
    images = np.zeros((4, *k.M.shape), np.uint8)
    frozen = images.copy()
    frozen.flags.writeable = False
    assert_as_reference(images, k, 1)
    compiled = [len(dispatcher.signatures) for dispatcher in _dispatchers()]
    for other in (frozen, images[::2], images[::-1]):
        assert_as_reference(other, k, 1)
    assert [len(dispatcher.signatures) for dispatcher in _dispatchers()] == compiled


def _dispatchers() -> list[Any]:
    kernels = [numba_kernels.fixed, numba_inverse.scaled]
    return [
        next(c.cell_contents for c in kernel.__closure__ if hasattr(c.cell_contents, "signatures"))
        for kernel in kernels
    ]
