"""The CUDA kernels on a machine emulated by csrc/tests/emulated_machine.cpp: built with the C++ compiler, called with
NumPy arrays through ctypes. What runs is the kernels' own source, with the launch arithmetic and the layout of the key
that a GPU gets. Every access to memory is checked there: none outside of the arrays, none misaligned, every byte of the
results written once. What comes out is compared with the reference, bit for bit.

DLMT_EMULATE_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer, whose libraries are then preloaded
by the caller.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.backends import contract, reference

CSRC = Path(__file__).resolve().parents[1] / "csrc"
NORMALIZE = ("none", "range", "minmax", "minmax_channel")  # in the order of the C++ enumerations
DTYPE = ("uint8", "uint16", "int32", "float32", "float16", "bfloat16")
SOURCES = ("tests/emulate_cuda.cpp", "tests/emulated_machine.cpp", "cuda/schedule.cpp", "cuda/key.cpp")
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
#: Lanes without work carry words that nobody reads, which the compiler cannot know.
QUIET = ["-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
EDGE = 64  # bytes before and after every array


class Request(ctypes.Structure):
    """`Request` of csrc/tests/emulate_cuda.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("normalize", "dtype", "lo", "hi")),
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner", "images")),
        *((name, ctypes.c_void_p) for name in ("m", "b", "m24", "b24", "deviation", "gain", "bias")),
        *((name, ctypes.c_void_p) for name in ("input", "out", "bounds", "bad")),
        *((name, ctypes.c_int32) for name in ("capability", "multiprocessors")),
        ("seed", ctypes.c_uint32),
        ("last_blocks", ctypes.c_int32),
        ("withheld", ctypes.c_int64),
    ]


def build(folder: Path) -> Path:
    """The library; skips where the sources or a compiler are not at hand."""
    if not CSRC.is_dir():
        pytest.skip("the C++ sources are not beside the tests")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    library = folder / "libemulated_cuda.so"
    sources = [str(CSRC / source) for source in SOURCES]
    more = SANITIZE if os.environ.get("DLMT_EMULATE_SANITIZE") == "1" else []
    command = [compiler, *FLAGS, *QUIET, *more, "-x", "c++", *sources, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return library


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


class Placed:
    """An array in memory of its own, `offset` bytes past a multiple of 256, with marked bytes before and after."""

    def __init__(self, like: np.ndarray, offset: int) -> None:
        self.memory = np.full(like.nbytes + offset + 2 * EDGE + 256, 0xEE, np.uint8)
        start = -(self.memory.ctypes.data + EDGE) % 256 + EDGE + offset
        self.start, self.stop = start, start + like.nbytes
        self.array = self.memory[start : start + like.nbytes].view(like.dtype).reshape(like.shape)
        self.array[...] = like

    def edges_are_whole(self) -> bool:
        return bool((self.memory[: self.start] == 0xEE).all() and (self.memory[self.stop :] == 0xEE).all())


class Machine:
    """Calls of the kernels. Everything that the machine complains of fails the test."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.seed = 0

    def affine(self, images: np.ndarray, k: Any, offsets: tuple[int, int] = (0, 0), **device: int) -> tuple[Any, ...]:
        """`images` (N, outer, C, inner) at offsets[0] and results at offsets[1]: (results, bounds, kernels)."""
        source = Placed(images, offsets[0])
        out = Placed(np.full(images.shape, 0xC3, np.uint8).astype(contract.STORAGE[k.dtype]), offsets[1])
        bounds = bounds_of(k, len(images))
        kernels = self._run(k, source.array, out.array, bounds, None, device)
        assert source.edges_are_whole()
        assert out.edges_are_whole()
        np.testing.assert_array_equal(source.array, images)
        return out.array, bounds, kernels

    def affine_in_place(self, images: np.ndarray, k: Any, offset: int = 0) -> tuple[Any, ...]:
        both = Placed(images, offset)
        bounds = bounds_of(k, len(images))
        kernels = self._run(k, both.array, both.array, bounds, None, {})
        assert both.edges_are_whole()
        return both.array, bounds, kernels

    def affine_inverse(
        self, stored: np.ndarray, k: Any, bounds: np.ndarray | None, offsets: tuple[int, int] = (0, 0)
    ) -> tuple[np.ndarray, int]:
        source, out = Placed(stored, offsets[0]), Placed(np.full(stored.shape, 0xC3, np.uint8), offsets[1])
        bad = np.array([12345], np.int64)
        self._run(k, source.array, out.array, bounds, bad, {})
        assert out.edges_are_whole()
        return out.array, int(bad[0])

    def copy(self, images: np.ndarray, dtype: str, seed: int = 0) -> np.ndarray:
        source, out = Placed(images, 0), Placed(np.full(images.shape, 7, contract.STORAGE[dtype]), 0)
        wrong = self.library.dlmt_emulate_copy(
            ctypes.c_void_p(address(source.array)),
            ctypes.c_void_p(address(out.array)),
            ctypes.c_int64(images.size),
            DTYPE.index(dtype),
            seed,
        )
        assert wrong == 0
        assert out.edges_are_whole()
        return out.array

    def _run(
        self,
        k: Any,
        source: np.ndarray,
        out: np.ndarray,
        bounds: np.ndarray | None,
        bad: np.ndarray | None,
        device: dict[str, int],
    ) -> str:
        self.seed += 1
        request = Request(
            NORMALIZE.index(k.normalize), DTYPE.index(k.dtype), k.lo, k.hi, *k.M.shape, len(source),
            *(address(array) for array in (k.M, k.B, k.M24, k.B24, k.std, k.g, k.b, source, out, bounds, bad)),
            device.get("capability", 90), device.get("multiprocessors", 6), self.seed,
            device.get("last_blocks", 0), device.get("withheld", 0),
        )  # fmt: skip
        words = ctypes.create_string_buffer(8192)
        wrong = self.library.dlmt_emulate(ctypes.byref(request), words, ctypes.c_size_t(len(words)))
        said = words.value.decode()
        assert wrong == 0, said
        return said


def bounds_of(k: Any, n: int) -> np.ndarray | None:
    groups = {"minmax": 1, "minmax_channel": k.M.shape[1]}.get(k.normalize)
    return np.full((n, groups, 2), -77, np.int32) if groups else None


# ---- what is compared


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(build(tmp_path_factory.mktemp("emulated")))


EVERY_OUTPUT = [
    ("none", "int32"),
    ("none", "narrowest"),
    *((n, d) for n in ("range", "minmax", "minmax_channel") for d in ("uint8", "float32", "float16", "bfloat16")),
]
every_output = pytest.mark.parametrize(("normalize", "dtype"), EVERY_OUTPUT)
MIXED = dlmt.DLMT("mat_mmt", max_v_add=100, max_v_mul=50)
#: v beyond 2**24, where float32 no longer holds every integer.
LARGE = dlmt.DLMT("mat_mmt", max_v_add=8388608, max_v_mul=255)
SMALL = dlmt.DLMT("mat", max_v_add=5)


def coefficients(
    shape: tuple[int, int, int], order: str, normalize: str, dtype: str, scheme: Any = MIXED, varied: bool = False
) -> Any:
    """`varied`: a mean and std of its own for each channel."""
    options: dict[str, Any] = {"normalize": normalize, "dtype": dtype}
    if varied:
        options |= {"mean": np.linspace(-0.25, 3, shape[0]), "std": np.linspace(0.02, 1.5, shape[0])}
    return scheme.plan(dlmt.Key(bytes(range(32))), shape, **options).coefficients(order)


def make_images(k: Any, n: int, seed: int = 0) -> np.ndarray:
    """Random ones; the last is the same everywhere, which `mmt` and min-max care for."""
    images = np.random.default_rng(seed).integers(0, 256, (n, *k.M.shape), np.uint8)
    images[-1:] = 9
    return images


def expected(k: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    out, bounds = np.empty(images.shape, contract.STORAGE[k.dtype]), bounds_of(k, len(images))
    reference.affine(images, k, out, bounds)
    return out, bounds


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype
    unsigned = np.dtype(f"u{got.itemsize}")
    np.testing.assert_array_equal(got.view(unsigned), want.view(unsigned))


def compare(machine: Machine, k: Any, n: int, offsets: tuple[int, int] = (0, 0), **device: int) -> str:
    """The transform at these offsets (the second in elements); the kernels that ran."""
    images = make_images(k, n, seed=n)
    want, bounds = expected(k, images)
    size = contract.STORAGE[k.dtype].itemsize
    got, found, kernels = machine.affine(images, k, (offsets[0], offsets[1] * size), **device)
    assert_same_bits(got, want)
    if bounds is not None:
        np.testing.assert_array_equal(found, bounds)
    return str(kernels)


OFFSETS = ((0, 0), (1, 1), (3, 0), (0, 2), (7, 3))
SHAPES = [
    ((3, 32, 32), 5),
    ((1, 28, 28), 9),
    ((3, 37, 31), 3),
    ((3, 5, 7), 50),
    ((2, 1, 1), 70),
    ((4, 16, 16), 6),
    ((3, 64, 64), 3),
    ((3, 65, 65), 2),
    ((1, 1, 17), 12),
]


@every_output
@pytest.mark.parametrize("order", ["CHW", "HWC"])
def test_equal(machine: Machine, normalize: str, dtype: str, order: str) -> None:
    seen = set()
    floats = dtype not in ("uint8", "int32", "narrowest")
    for (shape, n), varied in itertools.product(SHAPES, (False, True) if floats else (False,)):
        k = coefficients(shape, order, normalize, dtype, varied=varied)
        for offsets in OFFSETS:
            seen.add(compare(machine, k, n, offsets))
        seen.add(compare(machine, k, 1))
    forms = {form for kernels in seen for form in kernels.split()}
    if not any(form.startswith("minmax_general") for form in forms):
        assert {form.partition("/")[2] for form in forms} >= {"aligned", "anywhere"}


@every_output
def test_every_small_size(machine: Machine, normalize: str, dtype: str) -> None:
    """One pixel, and every way in which a row can end within a chunk or a warp."""
    for width in (*range(1, 36), 63, 64, 65, 511, 512, 513, 527):
        k = coefficients((1, 1, width), "CHW", normalize, dtype)
        compare(machine, k, 3, (width % 5, width % 3))


@every_output
@pytest.mark.parametrize("scheme", [LARGE, SMALL], ids=["large", "small"])
def test_values_of_other_sizes(machine: Machine, normalize: str, dtype: str, scheme: Any) -> None:
    for shape, offsets in (((3, 16, 16), (0, 0)), ((3, 11, 13), (1, 0))):
        compare(machine, coefficients(shape, "CHW", normalize, dtype, scheme), 7, offsets)


@pytest.mark.parametrize("mode", ["mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat"])
def test_every_mode(machine: Machine, mode: str) -> None:
    scheme = dlmt.DLMT(mode, max_v_add=50, max_v_mul=20, rise_v=100 if mode == "rise_mmt" else 0)
    for normalize, dtype in EVERY_OUTPUT:
        compare(machine, coefficients((3, 9, 16), "CHW", normalize, dtype, scheme), 4)


@pytest.mark.parametrize("multiprocessors", [1, 6, 132])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 131, 1300])
def test_every_number_of_images(machine: Machine, n: int, multiprocessors: int) -> None:
    """Rows that are left over after those that are under way at once, groups of rows, and full tables of them."""
    for normalize, dtype, shape in (
        ("range", "uint8", (3, 16, 16)),
        ("range", "float32", (1, 5, 7)),
        ("none", "int32", (1, 64, 80)),
        ("minmax", "uint8", (1, 8, 8)),
        ("minmax", "uint8", (1, 24, 24)),
        ("minmax_channel", "float16", (3, 4, 4)),
        ("minmax", "bfloat16", (1, 3, 5)),
    ):
        if n * np.prod(shape) < 2_000_000:
            k = coefficients(shape, "CHW", normalize, dtype)
            compare(machine, k, n, (0, n % 2), multiprocessors=multiprocessors)


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 96, 96), (1, 127, 129)])
@pytest.mark.parametrize("normalize", ["minmax", "minmax_channel"])
def test_larger_images(machine: Machine, shape: tuple[int, int, int], normalize: str) -> None:
    for dtype, offsets, capability in itertools.product(("uint8", "float32"), ((0, 0), (5, 2)), (80, 90)):
        k = coefficients(shape, "CHW", normalize, dtype)
        compare(machine, k, 5, offsets, capability=capability)


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ((1, 96, 129), 40),
        ((3, 96, 96), 30),
        ((1, 112, 112), 1),
        ((2, 128, 128), 9),
        ((3, 224, 224), 11),
        ((1, 8, 16640), 5),
    ],
)
def test_clusters(machine: Machine, shape: tuple[int, int, int], n: int) -> None:
    """Images shared by eight blocks, up to the largest that fits and rows that fill none of the blocks evenly; enough
    of them for every place of the ring to be used several times over. Warps hesitate in two runs of three."""
    for multiprocessors, scheme in ((8, MIXED), (8, LARGE), (17, MIXED), (40, MIXED)):
        k = coefficients(shape, "CHW", "minmax", "uint8", scheme)
        assert "minmax_cluster" in compare(machine, k, n, multiprocessors=multiprocessors)
    k = coefficients((2, *shape[1:]), "CHW", "minmax_channel", "uint8")
    kernels = compare(machine, k, n, multiprocessors=24)
    assert ("minmax_cluster" in kernels) == (shape[1] * shape[2] > 12288)


@pytest.mark.parametrize("normalize", ["range", "minmax", "minmax_channel", "none"])
def test_in_place(machine: Machine, normalize: str) -> None:
    scheme = dlmt.DLMT("mat", max_v_add=1) if normalize == "none" else MIXED
    for shape, order, offset in itertools.product(((3, 32, 32), (3, 7, 9), (3, 130, 65)), ("CHW", "HWC"), (0, 1, 6)):
        k = coefficients(shape, order, normalize, "narrowest" if normalize == "none" else "uint8", scheme)
        if k.dtype != "uint8":  # 255 + 1 needs 16 bits
            continue
        images = make_images(k, 5)
        want, bounds = expected(k, images)
        got, found, _ = machine.affine_in_place(images, k, offset)
        assert_same_bits(got, want)
        if bounds is not None:
            np.testing.assert_array_equal(found, bounds)


# ---- the other direction, and the copy


@every_output
@pytest.mark.parametrize("order", ["CHW", "HWC"])
def test_inverse(machine: Machine, normalize: str, dtype: str, order: str) -> None:
    for shape, n, varied in (((3, 32, 32), 3, False), ((3, 5, 7), 40, True), ((1, 1, 1), 300, False)):
        varied = varied and dtype in ("float32", "float16", "bfloat16")
        k = coefficients(shape, order, normalize, dtype, varied=varied)
        stored, bounds = expected(k, make_images(k, n))
        want = np.empty(stored.shape, np.uint8)
        assert reference.affine_inverse(stored, k, bounds, want) == -1
        for offsets in ((0, 0), (stored.itemsize, 3)):
            got, bad = machine.affine_inverse(stored, k, bounds, offsets)
            assert bad == -1
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("normalize", "dtype"), [("none", "int32"), ("range", "float32"), ("minmax", "float16")])
def test_the_smallest_bad_index(machine: Machine, normalize: str, dtype: str) -> None:
    k = coefficients((3, 5, 7), "CHW", normalize, dtype)
    stored, bounds = expected(k, make_images(k, 90))
    wrong = np.array(k.hi + 1 if normalize == "none" else np.nan).astype(stored.dtype)
    for places in ([stored.size - 1], [4000, 17, 8000], [0], range(5000, 9000)):
        damaged = stored.copy()
        damaged.reshape(-1)[list(places)] = wrong
        assert machine.affine_inverse(damaged, k, bounds)[1] == min(places)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "bfloat16"])
def test_copy(machine: Machine, dtype: str) -> None:
    for count in (1, 15, 16, 17, 4096, 100_003, 1_300_001):
        images = np.random.default_rng(count).integers(0, 256, count, np.uint8)
        got = machine.copy(images, dtype, seed=count)
        bits = (images.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        assert_same_bits(got, bits if dtype == "bfloat16" else images.astype(dtype))


# ---- more than 2**31 elements: the last blocks alone, over memory of which little is ever touched


@pytest.mark.parametrize(
    ("normalize", "dtype", "offsets"),
    [
        ("range", "uint8", (0, 0)),
        ("range", "uint8", (1, 0)),
        ("range", "float16", (0, 0)),
        ("minmax", "float16", (0, 0)),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is given when it is touched")
def test_past_2_to_the_31(machine: Machine, normalize: str, dtype: str, offsets: tuple[int, int]) -> None:
    if os.environ.get("DLMT_EMULATE_SANITIZE") == "1":
        pytest.skip("AddressSanitizer's own memory for these arrays would be too much")
    k = coefficients((3, 32, 32), "CHW", normalize, dtype)
    n, tail = 2**31 // 3072 + 5000, 6
    images = np.zeros(n * 3072 + 16, np.uint8)[offsets[0] : offsets[0] + n * 3072].reshape(n, *k.M.shape)
    images[-tail:] = make_images(k, tail)
    out = np.zeros(images.shape, contract.STORAGE[k.dtype])
    # Of what clears the bounds, too, only the last blocks run.
    bounds = None if normalize == "range" else np.tile(np.array([2**31 - 1, -(2**31)], np.int32), (n, 1, 1))
    device = {"multiprocessors": 132, "last_blocks": 3}
    machine._run(k, images, out, bounds, None, device)
    want, want_bounds = expected(k, images[-tail:])
    assert_same_bits(out[-tail:], want)
    if want_bounds is not None and bounds is not None:
        np.testing.assert_array_equal(bounds[-tail:], want_bounds)


# ---- the machine finds what is wrong


def test_it_sees_misalignment(machine: Machine) -> None:
    k = coefficients((1, 8, 8), "CHW", "minmax", "uint8")
    memory = np.zeros(16, np.uint8)
    bounds = np.frombuffer(memory.data, np.int32, 2, offset=2).reshape(1, 1, 2)
    images = make_images(k, 1)
    with pytest.raises(AssertionError, match="misaligned store of 4 bytes"):
        machine._run(k, images, np.empty_like(images), bounds, None, {})


@pytest.mark.parametrize("normalize", ["range", "minmax"])
def test_it_sees_accesses_outside_of_the_arrays(machine: Machine, normalize: str) -> None:
    for n, offset in ((1, 0), (7, 0), (7, 1)):
        k = coefficients((3, 32, 32), "CHW", normalize, "uint8")
        with pytest.raises(AssertionError, match="outside of every array") as raised:
            machine.affine(make_images(k, n), k, (offset, 0), withheld=1)
        assert "load" in str(raised.value)
        assert "store" in str(raised.value)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_under_sanitizers() -> None:
    """All of the above once more, with every load and store of the host watched, shared memory and fibers too."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    names = ("libasan.so", "libstdc++.so")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    if not all(os.path.isabs(path) for path in found):
        pytest.skip(f"{compiler} has no libasan.so")
    environment = os.environ | {
        "DLMT_EMULATE_SANITIZE": "1",
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    pytest_itself = Path(sys.executable).with_name("pytest")  # `python -m pytest` would import the checkout
    command = [str(pytest_itself), "-q", "-x", "-p", "no:cacheprovider", "-m", "not long", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
