"""What only the C++ backend has: CPU levels, threads that stay, and checks that no argument gets past."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
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

_cpu = native._cpu
LEVELS = native.levels()
THREADS = 4
EVERY_OUTPUT = [
    ("none", "int32"),
    ("none", "narrowest"),
    *((n, d) for n in ("range", "minmax", "minmax_channel") for d in ("uint8", "float32", "float16", "bfloat16")),
]
no_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Any:
    before = native.level()
    native.set_level(request.param)
    yield request.param
    native.set_level(before)


def coefficients(shape: tuple[int, int, int], order: str = "CHW", scheme: Any = None, **options: Any) -> Any:
    scheme = scheme or dlmt.DLMT("mat_mmt", max_v_add=100, max_v_mul=50)
    return scheme.plan(dlmt.Key(bytes(range(32))), shape, **options).coefficients(order)


def make_images(k: Any, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *k.M.shape), np.uint8)


def make_bounds(k: Any, n: int) -> np.ndarray | None:
    groups = {"minmax": 1, "minmax_channel": k.M.shape[1]}.get(k.normalize)
    return np.zeros((n, groups, 2), np.int32) if groups else None


def transform(backend: Any, images: np.ndarray, k: Any, threads: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
    out, bounds = np.empty(images.shape, contract.STORAGE[k.dtype]), make_bounds(k, len(images))
    backend.affine(images, k, out, bounds, threads)
    return out, bounds


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype
    unsigned = np.dtype(f"u{got.itemsize}")
    np.testing.assert_array_equal(got.view(unsigned), want.view(unsigned))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees the same dlmt_fast."""
    path = str(Path(dlmt.__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, "-c", code]  # -c puts the working directory first on the path
    return subprocess.run(command, env=env, cwd=path, capture_output=True, text=True, timeout=120)


# ---- levels


def test_levels_are_listed_best_first() -> None:
    assert LEVELS[-1] == "baseline"
    assert [name for name in ("avx512vbmi", "avx512", "avx2", "baseline") if name in LEVELS] == LEVELS
    assert native.level() in LEVELS


def test_an_unknown_level_is_refused_and_changes_nothing() -> None:
    before = native.level()
    with pytest.raises(BackendError, match=r'level="sse9" .* there are: .*baseline'):
        native.set_level("sse9")
    assert native.level() == before


@pytest.mark.parametrize("name", LEVELS)
def test_the_environment_names_a_level(name: str) -> None:
    done = run_python("from dlmt_fast.backends import native; print(native.level())", DLMT_CPU_LEVEL=name)
    assert (done.stdout.strip(), done.stderr) == (name, "")


def test_a_wrong_level_in_the_environment_is_an_error_at_first_use() -> None:
    code = """if True:
        import numpy as np
        from types import SimpleNamespace
        from dlmt_fast.backends import native
        from dlmt_fast.errors import BackendError
        one = np.ones((1, 1, 1), np.int32)
        k = SimpleNamespace(normalize="none", dtype="int32", lo=0, hi=256, M=one, B=one, M24=None, B24=None,
                            std=None, g=None, b=None, cache={})
        image, out = np.ones((1, 1, 1, 1), np.uint8), np.zeros((1, 1, 1, 1), np.int32)
        for call in (native.level, lambda: native.affine(image, k, out, None),
                     lambda: native.affine_inverse(out, k, None, image)):
            try:
                call()
            except BackendError as error:
                print(error)
        native.set_level("baseline")
        native.affine(image, k, out, None)
        print(native.level(), out.item())
    """
    done = run_python(code, DLMT_CPU_LEVEL="avx1024")
    assert done.stderr == ""
    *errors, last = done.stdout.splitlines()
    assert len(errors) == 3
    assert all(line.startswith('DLMT_CPU_LEVEL="avx1024" is no CPU level') for line in errors)
    assert last == "baseline 2"


# ---- values at the edges of vectors, rows and blocks


@pytest.mark.parametrize("normalize", ["range", "minmax", "minmax_channel"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("order", ["CHW", "HWC"])
def test_every_small_size(level: str, normalize: str, dtype: str, order: str) -> None:
    """Ends of vectors fall everywhere, and nothing is written beside the result."""
    for width in range(1, 140):
        k = coefficients((1 + width % 3, 1, width), order, normalize=normalize, dtype=dtype)
        images = make_images(k, 1 + width % 6, seed=width)
        want, _ = transform(reference, images, k)
        guarded = np.full(want.size + 128, 77, want.dtype)
        out = guarded[64:-64].reshape(want.shape)
        native.affine(images, k, out, make_bounds(k, len(images)), 1)
        assert_same_bits(out, want)
        assert (guarded[:64] == 77).all()
        assert (guarded[-64:] == 77).all()


@pytest.mark.parametrize(("normalize", "dtype"), EVERY_OUTPUT)
@pytest.mark.parametrize("shape", [(3, 150, 173), (5, 131, 97), (300, 21, 5)], ids=str)
def test_results_do_not_depend_on_threads(level: str, normalize: str, dtype: str, shape: tuple[int, int, int]) -> None:
    """One large image is split by positions, several by images; more channels than a row of parameters holds."""
    for order, n in (("CHW", 1), ("HWC", 1), ("HWC", 9)):
        k = coefficients(shape, order, normalize=normalize, dtype=dtype)
        images = make_images(k, n)
        want, want_bounds = transform(native, images, k, 1)
        back = np.empty_like(images)
        for threads in (2, THREADS, 1000):
            got, got_bounds = transform(native, images, k, threads)
            assert_same_bits(got, want)
            assert want_bounds is None or np.array_equal(got_bounds, want_bounds)
            assert native.affine_inverse(got, k, got_bounds, back, threads) == -1
        if dtype != "bfloat16" and not (normalize.startswith("minmax") and dtype == "uint8"):
            assert np.abs(back.astype(int) - images).max() <= 128
    assert_same_bits(want[:1], transform(reference, images[:1], k)[0])


@pytest.mark.parametrize(("normalize", "dtype"), [("none", "int32"), ("none", "narrowest"), ("range", "float32")])
def test_the_smallest_bad_index_is_found(level: str, normalize: str, dtype: str) -> None:
    k = coefficients((3, 90, 101), normalize=normalize, dtype=dtype)
    images = make_images(k, 7)
    good, _ = transform(native, images, k)
    bad_value = np.nan if good.dtype.kind == "f" else k.hi + 1
    back = np.empty_like(images)
    for first in (0, 1, 4097, good.size // 2 + 3, good.size - 1):
        damaged = good.copy()
        damaged.reshape(-1)[[first, (first + good.size) // 2, good.size - 1]] = bad_value
        for threads in (1, THREADS):
            assert native.affine_inverse(damaged, k, None, back, threads) == first
    assert native.affine_inverse(good, k, None, back, THREADS) == -1
    assert normalize != "none" or np.array_equal(back, images)


@pytest.mark.parametrize(("m", "b"), [(-1, 255), (1, 0)])
def test_negative_multipliers(level: str, m: int, b: int) -> None:
    """255 - A is the same map with M = -1."""
    full = np.full((1, 3, 35), m, np.int32)
    images = np.arange(256, dtype=np.uint8).repeat(105).reshape(256, 1, 3, 35)
    fixed = 255 * (1 << 24) // 255
    k = SimpleNamespace(
        normalize="range", dtype="uint8", lo=0, hi=255, M=full, B=np.full_like(full, b), std=None, cache={}
    )
    k.M24 = np.full(full.shape, m * fixed, np.int64).astype(np.uint32)
    k.B24 = np.full(full.shape, b * fixed + (1 << 23), np.int64).astype(np.uint32)
    k.g = k.b = None
    out, back = np.empty_like(images), np.empty_like(images)
    native.affine(images, k, out, None)
    np.testing.assert_array_equal(out, 255 - images if m < 0 else images)
    assert native.affine_inverse(out, k, None, back) == -1
    np.testing.assert_array_equal(back, images)


@pytest.mark.parametrize("step", [-1, 0])
def test_images_may_lie_backwards_or_be_one(level: str, step: int) -> None:
    k = coefficients((3, 20, 20), normalize="minmax")
    images = make_images(k, 9)
    view = images[::-1] if step else np.broadcast_to(images[:1], images.shape)
    got, bounds = transform(native, view, k, THREADS)
    want, want_bounds = transform(reference, view, k)
    assert_same_bits(got, want)
    assert np.array_equal(bounds, want_bounds)


def test_in_place(level: str) -> None:
    for normalize in ("range", "minmax", "minmax_channel"):
        k = coefficients((3, 33, 31), "HWC", normalize=normalize)
        images = make_images(k, 6)
        want, bounds = transform(reference, images, k)
        memory = images.copy()
        native.affine(memory, k, memory, make_bounds(k, 6), THREADS)
        assert_same_bits(memory, want)
        native.affine_inverse(memory, k, bounds, memory, THREADS)
        reference.affine_inverse(want, k, bounds, images)
        assert_same_bits(memory, images)


# ---- the float state of the calling thread


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs libm.so.6")
def test_the_rounding_mode_of_the_program_does_not_matter(level: str) -> None:
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]
    libm = ctypes.CDLL("libm.so.6")
    for normalize, dtype in EVERY_OUTPUT:
        k = coefficients((3, 40, 41), normalize=normalize, dtype=dtype)
        images = make_images(k, 5)
        want, bounds = transform(native, images, k)
        back, again = np.empty_like(images), np.empty_like(images)
        native.affine_inverse(want, k, bounds, back)
        before = libm.fegetround()
        libm.fesetround(upward)
        try:
            got, _ = transform(native, images, k)
            native.affine_inverse(want, k, bounds, again)
            assert libm.fegetround() == upward
        finally:
            libm.fesetround(before)
        assert_same_bits(got, want)
        assert_same_bits(again, back)


def test_flushing_subnormals_does_not_matter(level: str) -> None:
    torch = pytest.importorskip("torch")
    mean = [-1e-40, 2e-42, 0.5]  # b is subnormal, and y = b where v is lo
    k = coefficients((3, 40, 41), normalize="minmax", dtype="float32", mean=mean)
    images = make_images(k, 2)
    want, _ = transform(native, images, k)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        got, _ = transform(native, images, k)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(got, want)
    assert ((want != 0) & (np.abs(want) < 1e-38)).any()


# ---- threads and processes


def big(normalize: str = "minmax") -> tuple[Any, np.ndarray, np.ndarray]:
    k = coefficients((3, 128, 128), normalize=normalize)
    images = make_images(k, 12)
    return k, images, transform(reference, images, k)[0]


def test_many_threads_call_at_once() -> None:
    work = []
    for seed in range(8):
        k = coefficients((3, 64, 65), normalize="minmax_channel", dtype="float32")
        images = make_images(k, 9, seed)
        work.append((images, k, transform(reference, images, k)[0]))

    def repeat(images: np.ndarray, k: Any, want: np.ndarray) -> None:
        for _ in range(30):
            assert_same_bits(transform(native, images, k, THREADS)[0], want)

    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(repeat, *each) for each in work]:
            done.result()


def exit_code_of_child(work: Callable[[], bool]) -> int:
    """Forks; the child exits with 0 where `work` returned True. A child that hangs is ended after a minute."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            import signal

            signal.alarm(60)
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


@no_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_threads() -> None:
    k, images, want = big()

    def work() -> bool:
        return all(np.array_equal(transform(native, images, k, THREADS)[0], want) for _ in range(5))

    def work_and_fork_again() -> bool:
        return work() and exit_code_of_child(work) == 0

    for _ in range(5):
        assert work()
        assert exit_code_of_child(work_and_fork_again) == 0
    assert work()


@no_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("normalize", ["range", "minmax"])
def test_a_fork_in_the_middle_of_another_threads_call(normalize: str) -> None:
    k, images, want = big(normalize)
    out, bounds = np.empty_like(images), make_bounds(k, len(images))
    stop = threading.Event()

    def keep_calling() -> None:
        while not stop.is_set():
            native.affine(images, k, out, bounds, THREADS)

    caller = threading.Thread(target=keep_calling)
    caller.start()
    try:
        for _ in range(25):
            assert exit_code_of_child(lambda: np.array_equal(transform(native, images, k, THREADS)[0], want)) == 0
    finally:
        stop.set()
        caller.join()


def test_a_spawned_child_computes() -> None:
    whole = coefficients((3, 128, 128), normalize="none")
    k = SimpleNamespace(**{field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)})
    images = make_images(k, 12)
    v, _ = transform(native, images, k, THREADS)
    damaged = v.copy()
    damaged[7, 0, 1, 5] = -1
    k.cache = {}  # what stands in it now cannot be sent
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for sent, expected in ((v, -1), (damaged, int(np.ravel_multi_index((7, 0, 1, 5), v.shape)))):
            back = np.empty_like(images)
            assert pool.apply(native.affine_inverse, (sent, k, None, back, THREADS)) == expected


EXIT_CODE = """if True:
    import threading, time
    import numpy as np
    import dlmt_fast as dlmt
    from dlmt_fast.backends import native
    plan = dlmt.DLMT("mat_mmt").plan(dlmt.Key.generate(), (3, 256, 256))
    k = plan.coefficients("CHW")
    images = np.zeros((16, 1, 3, 256 * 256), np.uint8)
    out = np.empty_like(images)
    native.affine(images, k, out, None, 4)
    def forever():
        while True:
            native.affine(images, k, out, None, 4)
    if {daemon}:
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.1)
    print("end")
"""


@pytest.mark.parametrize("daemon", [False, True])
def test_a_program_ends_while_the_threads_live(daemon: bool) -> None:
    for _ in range(5):
        done = run_python(EXIT_CODE.replace("{daemon}", str(daemon)))
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# ---- arguments of the private module


def arguments(normalize: str = "range", dtype: str = "uint8", n: int = 3) -> dict[str, Any]:
    k = coefficients((3, 4, 5), normalize=normalize, dtype=dtype)
    given = {name: getattr(k, name) for name in PREPARED}
    images = make_images(k, n)
    out = np.zeros(images.shape, contract.STORAGE[k.dtype])
    return {"images": images, "out": out, **given, "bounds": make_bounds(k, n), "threads": 1}


PREPARED = ("normalize", "dtype", "lo", "hi", "M", "B", "M24", "B24", "std", "g", "b")


def affine(given: dict[str, Any], inverse: bool = False) -> int | None:
    """One call through a new `Prepared`; `inverse` swaps images and out."""
    prepared = _cpu.Prepared(**{name: given[name] for name in PREPARED})
    call = {name: given[name] for name in ("images", "out", "bounds", "threads")}
    if inverse:
        return prepared.affine_inverse(**call | {"images": given["out"], "out": given["images"]})
    return prepared.affine(**call)


def readonly(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def swapped(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


def gapped(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def overlapping(array: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(array, array.shape, (array.itemsize, *array.strides[1:]))


Change = Callable[[Any], Any]
WRONG: list[tuple[str, str, str, Change]] = [
    *(
        (normalize, dtype, name, change)
        for normalize, dtype, names in (
            ("range", "uint8", ("images", "out", "M", "B", "M24", "B24")),
            ("range", "float32", ("out", "g", "b")),
            ("minmax", "float32", ("std", "bounds")),
            ("minmax_channel", "uint8", ("bounds",)),
            ("none", "int32", ("out",)),
        )
        for name in names
        for change in (
            lambda a: None,
            lambda a: a.tolist(),
            lambda a: a.tobytes(),
            lambda a: memoryview(a),
            lambda a: a.astype(np.complex128),
            lambda a: a.astype(np.int64),
            lambda a: a.astype(object),
            lambda a: a.astype(bool),
            lambda a: a.view([("x", a.dtype)]),
            lambda a: a[..., None],
            lambda a: a[0],
            lambda a: a.reshape(1, -1),
            lambda a: a[..., :-1],
            lambda a: np.concatenate([a, a]),
            lambda a: a[:0],
            gapped,
        )
    ),
    *(
        ("range", dtype, name, change)
        for dtype, name in (("float32", "out"), ("float32", "M"), ("float32", "g"), ("uint8", "M24"))
        for change in (misaligned, swapped)
    ),
    *(("range", dtype, "out", change) for dtype in ("uint8", "float32") for change in (readonly, overlapping)),
    ("minmax", "uint8", "bounds", readonly),
    ("range", "uint8", "bounds", lambda a: np.zeros((3, 1, 2), np.int32)),
    ("range", "uint8", "normalize", lambda a: "max"),
    ("range", "uint8", "normalize", lambda a: "none\0"),
    ("range", "uint8", "normalize", lambda a: None),
    ("range", "uint8", "dtype", lambda a: "float64"),
    ("range", "uint8", "dtype", lambda a: "int32"),
    ("range", "uint8", "dtype", lambda a: 8),
    ("none", "int32", "dtype", lambda a: "float32"),
    ("range", "uint8", "lo", lambda a: 1 << 31),
    ("range", "uint8", "lo", lambda a: -(1 << 31)),
    ("range", "uint8", "hi", lambda a: -1),
    ("range", "uint8", "hi", lambda a: 1 << 70),
    ("range", "uint8", "hi", lambda a: 1.5),
    ("range", "uint8", "threads", lambda a: "2"),
    ("range", "uint8", "threads", lambda a: 1 << 40),
]


@pytest.mark.parametrize("case", range(len(WRONG)), ids=lambda i: f"{i}-{'-'.join(WRONG[i][:3])}")
def test_wrong_arguments_raise(case: int) -> None:
    normalize, dtype, name, change = WRONG[case]
    given = arguments(normalize, dtype)
    affine(given)
    given[name] = change(given[name])
    with pytest.raises((TypeError, ValueError)):
        affine(given)


@pytest.mark.parametrize("case", range(len(WRONG)), ids=lambda i: f"{i}-{'-'.join(WRONG[i][:3])}")
def test_wrong_arguments_of_the_inverse_raise(case: int) -> None:
    normalize, dtype, name, change = WRONG[case]
    given = arguments(normalize, dtype)
    affine(given)
    assert affine(given, inverse=True) == -1
    given[name] = change(given[name])
    if (name in ("out", "bounds") and change is readonly) or change is overlapping:
        affine(given, inverse=True)  # these are only read
    else:
        with pytest.raises((TypeError, ValueError)):
            affine(given, inverse=True)


def test_values_that_no_plan_has_do_no_harm(level: str) -> None:
    """The arrays are checked, not what they hold: results are then meaningless, and memory is safe."""
    extremes = np.array([-(2**31), 2**31 - 1, 0, -1, 1], np.int32)
    for normalize, dtype in EVERY_OUTPUT:
        given = arguments(normalize, dtype)
        for m in extremes:
            given["M"] = np.full_like(given["M"], m)
            given["B"] = np.resize(extremes, given["B"].shape)
            for number in (0.0, -1.0, np.inf, np.nan, 1e-300):
                with np.errstate(over="ignore"):
                    for name in ("std", "g", "b"):
                        if given[name] is not None:
                            given[name] = np.full(given[name].shape, number).astype(given[name].dtype)
                affine(given)
                found = affine(given | {"images": given["images"].copy()}, inverse=True)
                assert -1 <= found < given["out"].size


@pytest.mark.parametrize(("normalize", "dtype"), EVERY_OUTPUT)
def test_no_images(normalize: str, dtype: str) -> None:
    k = coefficients((3, 4, 5), normalize=normalize, dtype=dtype)
    out, bounds = transform(native, make_images(k, 0), k, THREADS)
    assert native.affine_inverse(out, k, bounds, make_images(k, 0), THREADS) == -1
    for threads in (0, -5):
        transform(native, make_images(k, 2), k, threads)
