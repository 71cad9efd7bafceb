"""The check against the reference while training: faults planted in a backend are caught, named and reproduced."""

from __future__ import annotations

import ast
import inspect
import io
import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlmt_fast as dlmt
from dlmt_fast import checking, difference, functional
from dlmt_fast.checking import Checker, Report, checked
from dlmt_fast.errors import CheckError, InputTypeError, ParameterError

SCHEME = dlmt.DLMT("mat_mmt")
SHAPE = (3, 6, 5)
ODD = 77  # the pixel value that the planted fault gets wrong
FAST = dlmt.backends.auto().name
PAIRS = [
    ("none", "int32"),
    ("none", "narrowest"),
    *((n, d) for n in ("range", "minmax", "minmax_channel") for d in ("uint8", "float32", "float16", "bfloat16")),
]

pytestmark = pytest.mark.filterwarnings(
    'ignore:backend="auto" uses numba:RuntimeWarning', "ignore:.*multi-threaded.*fork:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def always_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images too go to the thread, as large ones do."""
    monkeypatch.setattr(checking, "_SMALL", 0)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fast backend gets every pixel of one value wrong by one bit."""
    with planted(monkeypatch):
        yield


def planted(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = dlmt.backends.get(FAST)
    true = module.affine

    def wrong(images: Any, k: Any, out: Any, bounds: Any, threads: int = 1) -> None:
        odd = images == ODD
        true(images, k, out, bounds, threads)
        bits = out.view(f"u{out.itemsize}")
        bits ^= odd.astype(bits.dtype)

    context = monkeypatch.context()
    patch = context.__enter__()
    patch.setattr(module, "affine", wrong)
    patch.setattr(functional, "try_direct", lambda *_: False)

    class Planted:
        def __enter__(self) -> None: ...

        def __exit__(self, *error: Any) -> None:
            context.__exit__(*error)

    return Planted()


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Images without the odd value."""
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.where(images == ODD, ODD + 1, images).astype(np.uint8)


def run(source: str, keyfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reproduction, as `python reproduction.py KEYFILE` runs it."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["reproduction.py", str(keyfile)])
        exec(compile(source, "reproduction.py", "exec"), {"__name__": "__main__"})


@pytest.fixture
def keyfile(key: dlmt.Key, tmp_path: Path) -> Path:
    key.save(tmp_path / "test.dlmtkey")
    return tmp_path / "test.dlmtkey"


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalize", "dtype"), PAIRS, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW", "HWC"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_planted_fault_is_found_and_reproduced(
    normalize: str,
    dtype: str,
    layout: str,
    kind: str,
    key: dlmt.Key,
    keyfile: Path,
    secret: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if dtype == "bfloat16" and kind == "numpy":
        pytest.skip("NumPy has no bfloat16")
    plan = SCHEME.plan(key, SHAPE, normalize, dtype, *((0.4, (0.2, 0.3, 0.4)) if "float" in dtype else ()))
    images = pixels(4, *SHAPE)
    images[2, 1, 3, 4] = images[2, 2, 4, 1] = ODD
    index = (2, 1, 3, 4) if layout.endswith("CHW") else (2, 3, 4, 1)
    images = images if layout.endswith("CHW") else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    if not layout.startswith("N"):
        images, index = images[2], index[1:]
    given: Any = images
    if kind == "torch":
        given = torch.from_numpy(images)

    with checked("all") as quiet:
        dlmt.encrypt(given, plan, layout=layout)
        dlmt.encrypt(given, plan, layout=layout, return_bounds=True)
    bounds = {"minmax_channel": 3}.get(normalize, 1) * 2 * (4 if layout.startswith("N") else 1)
    count = 4 if layout.startswith("N") else 1
    assert quiet.report() == Report(2, 2, 0, 2 * count, 2 * images.size + bounds, 0)

    with planted(monkeypatch):
        with pytest.raises(CheckError) as caught, checked("all") as checker:
            y = dlmt.encrypt(given, plan, layout=layout, threads=1)
        found = caught.value.difference
        assert found is not None
        with pytest.raises(AssertionError, match=r"got .*, expected "):
            run(found.reproduction, keyfile, monkeypatch)
    run(found.reproduction, keyfile, monkeypatch)

    assert (found.index, found.of, found.pixel, found.differ, found.values) == (index, "images", ODD, 2, images.size)
    want = dlmt.encrypt(given, plan, layout=layout, backend="reference")
    for value, text in ((y[index], found.got), (want[index], found.expected)):
        assert float(text.split(" ")[0]) == pytest.approx(float(value), rel=1e-6)
        assert ("(0x" in text) == ("float" in dtype)
    assert found.got != found.expected
    assert checker.report() == Report(1, 1, 0, count, images.size, 2)

    message = str(caught.value)
    level = getattr(dlmt.backends.get(FAST), "level", lambda: None)()
    for part in (str(list(index)), found.got, found.expected, f"backend {FAST}", key.fingerprint, repr(SCHEME), layout):
        assert part in message
    assert level is None or f"CPU level {level}" in message
    assert "once more: wrong" in message
    for text in (message, repr(found), repr(checker)):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
        assert "array(" not in text


@pytest.mark.parametrize("mode", ["mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat"])
def test_one_wrong_bit_anywhere_is_found(
    fast_target: Any, mode: str, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """On every backend and CPU level, in every mode, normalisation and dtype: the index is that of the planted bit."""
    scheme = dlmt.DLMT(mode, rise_v=300) if mode == "rise_mmt" else dlmt.DLMT(mode)
    module = dlmt.backends.get(fast_target.backend)
    true = module.affine
    images = rng.integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    for normalize, dtype in PAIRS:
        plan = scheme.plan(key, SHAPE, normalize, dtype)
        given = torch.from_numpy(images) if dtype == "bfloat16" else images
        at = int(rng.integers(images.size))

        def wrong(images: Any, k: Any, out: Any, bounds: Any, threads: int = 1, at: int = at) -> None:
            true(images, k, out, bounds, threads)
            out.reshape(-1).view(f"u{out.itemsize}")[at] ^= 1

        with fast_target.active() as backend:
            with checked("all") as right:
                dlmt.encrypt(given, plan, backend=backend)
            assert right.report() == Report(1, 1, 0, 5, images.size, 0)
            with monkeypatch.context() as patch:
                patch.setattr(module, "affine", wrong)
                patch.setattr(functional, "try_direct", lambda *_: False)
                with pytest.raises(CheckError) as caught, checked("all") as checker:
                    dlmt.encrypt(given, plan, backend=backend)
        assert checker.report().differ == 1
        assert caught.value.difference.index == np.unravel_index(at, images.shape)
        assert caught.value.difference.backend == fast_target.backend
        assert fast_target.level is None or caught.value.difference.place == f"CPU level {fast_target.level}"


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("normalize", ["range", "minmax"])
def test_in_place(kind: str, normalize: str, key: dlmt.Key, keyfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels are gone after the call, so they are copied before it."""
    plan = SCHEME.plan(key, SHAPE, normalize, "uint8")
    for odd in (False, True):
        images = pixels(5, *SHAPE)
        if odd:
            images[4, 0, 0, 2] = ODD
        given: Any = torch.from_numpy(images) if kind == "torch" else images
        checker = Checker("all")
        with planted(monkeypatch):
            with monkeypatch.context() as patch:
                patch.setattr(functional, "observers", [checker.begin])
                assert dlmt.encrypt(given, plan, out=given) is given
            if not odd:
                assert checker.close().differ == 0
                continue
            with pytest.raises(CheckError, match=rf"index \[4, 0, 0, 2\].*, for the pixel {ODD}\n") as caught:
                checker.close()
            assert "in place" in str(caught.value)
            found = caught.value.difference
            assert found is not None
            with pytest.raises(AssertionError):
                run(found.reproduction, keyfile, monkeypatch)
        run(found.reproduction, keyfile, monkeypatch)


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)], ids=str)
def test_other_strides(axes: tuple[int, ...], key: dlmt.Key, keyfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = np.ascontiguousarray(pixels(4, *SHAPE).transpose(axes)).transpose(np.argsort(axes))
    images[1, 2, 3, 0] = ODD
    with planted(monkeypatch):
        with pytest.raises(CheckError) as caught, checked("all"):
            dlmt.encrypt(images, plan)
        found = caught.value.difference
        assert found is not None
        assert found.index == (1, 2, 3, 0)
        assert ".transpose(" in found.reproduction
        with pytest.raises(AssertionError):
            run(found.reproduction, keyfile, monkeypatch)


@pytest.mark.parametrize("normalize", ["minmax", "minmax_channel"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_wrong_bounds(
    normalize: str, layout: str, key: dlmt.Key, keyfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SCHEME.plan(key, SHAPE, normalize)
    images = pixels(4, *SHAPE)
    images = images if layout == "NCHW" else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    module = dlmt.backends.get(FAST)
    true = module.affine

    def wrong(images: Any, k: Any, out: Any, bounds: Any, threads: int = 1) -> None:
        true(images, k, out, bounds, threads)
        if len(bounds) > 2:
            bounds[2, -1, 1] += 1

    with monkeypatch.context() as patch:
        patch.setattr(module, "affine", wrong)
        patch.setattr(functional, "try_direct", lambda *_: False)
        with pytest.raises(CheckError, match="the bounds differ") as caught, checked("all"):
            dlmt.encrypt(images, plan, layout=layout, return_bounds=True)
        found = caught.value.difference
        assert found is not None
        assert found.index == ((2, 2, 1) if normalize == "minmax_channel" else (2, 1))
        assert int(found.got) == int(found.expected) + 1
        with pytest.raises(AssertionError, match=f"got {found.got}, expected {found.expected}"):
            run(found.reproduction, keyfile, monkeypatch)
    run(found.reproduction, keyfile, monkeypatch)


def test_a_fault_of_the_moment_is_told_apart(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SCHEME.plan(key, SHAPE)
    checker = Checker("all")
    end = checker.begin(pixels(*SHAPE), plan)
    assert end is not None
    y = dlmt.encrypt(pixels(*SHAPE), plan)
    y[0, 0, 0] ^= 128
    end(y, None)
    with pytest.raises(CheckError, match="once more: right, so the rest of the call or the moment matter"):
        checker.close()


def test_zero_and_minus_zero_differ(key: dlmt.Key) -> None:
    """Floats are compared by their bits."""
    plan = dlmt.DLMT("mmt").plan(key, SHAPE, "range", "float32")
    black = np.zeros(SHAPE, np.uint8)
    checker = Checker("all")
    end = checker.begin(black, plan)
    assert end is not None
    end(-dlmt.encrypt(black, plan), None)
    with pytest.raises(CheckError, match=r"got -0.0 \(0x80000000\), expected 0.0 \(0x00000000\)"):
        checker.close()


# --- when it is told -------------------------------------------------------------------------------------------------


def odd_image() -> np.ndarray[Any, Any]:
    image = pixels(*SHAPE)
    image[1, 2, 3] = ODD
    return image


@pytest.mark.usefixtures("fault")
def test_it_raises_at_the_next_call_or_at_the_end(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE)
    checker = Checker("all")
    functional.observers.append(checker.begin)
    try:
        dlmt.encrypt(odd_image(), plan)
        assert checker.report().differ == 1
        with pytest.raises(CheckError, match=r"index \[1, 2, 3\]"):
            dlmt.encrypt(pixels(*SHAPE), plan)
        dlmt.encrypt(pixels(*SHAPE), plan)  # told once
        assert checker.close() == Report(2, 2, 0, 2, 180, 1)
        dlmt.encrypt(odd_image(), plan)  # goes on after close
        with pytest.raises(CheckError):
            checker.close()
    finally:
        functional.observers.clear()


@pytest.mark.usefixtures("fault")
def test_it_logs_where_asked(key: dlmt.Key, caplog: pytest.LogCaptureFixture) -> None:
    plan = SCHEME.plan(key, SHAPE)
    with caplog.at_level(logging.INFO, "dlmt_fast"), checked("all", on_difference="log") as checker:
        for _ in range(15):
            dlmt.encrypt(odd_image(), plan)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR and r.name == "dlmt_fast"]
    assert len(errors) == 10, "further ones are counted only"
    assert all("index [1, 2, 3]" in text and "dlmt.Key.load(sys.argv[1])" in text for text in errors)
    assert (
        caplog.records[-1].getMessage() == "dlmt_fast.checking: checked 15 of 15 calls, 1350 values compared, 15 differ"
    )
    assert checker.report().differ == 15


@pytest.mark.usefixtures("fault")
def test_another_exception_goes_on(key: dlmt.Key, caplog: pytest.LogCaptureFixture) -> None:
    plan = SCHEME.plan(key, SHAPE)
    with pytest.raises(ZeroDivisionError), checked("all"):
        print(dlmt.encrypt(odd_image(), plan)[1, 2, 3] / 1, 1 // 0)
    assert "index [1, 2, 3]" in caplog.text
    assert functional.observers == []


def test_a_check_that_fails_is_no_check_that_passed(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(piece: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(checking, "compare", fail)
    with pytest.raises(CheckError, match="could not be checked: MemoryError: no room"), checked("all") as checker:
        dlmt.encrypt(pixels(*SHAPE), SCHEME.plan(key, SHAPE))
    assert checker.report() == Report(calls=1)


def test_nothing_compared_is_said(key: dlmt.Key, caplog: pytest.LogCaptureFixture) -> None:
    with checked(1e-9):
        dlmt.encrypt(pixels(*SHAPE), SCHEME.plan(key, SHAPE))
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.records[-1].getMessage() == "dlmt_fast.checking: checked 0 of 1 calls, 0 values compared, 0 differ"


# --- what is chosen --------------------------------------------------------------------------------------------------


def choices(checker: Checker, plan: dlmt.Plan, calls: int) -> list[int]:
    image = pixels(*SHAPE)
    chosen = [i for i in range(calls) if checker.begin(image, plan) is not None]
    assert checker.close().calls == calls
    return chosen


def test_the_choice_follows_seed_and_process(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SCHEME.plan(key, SHAPE)
    first = choices(Checker(0.05, seed=3), plan, 4000)
    assert 140 < len(first) < 260
    assert choices(Checker(0.05, seed=3), plan, 4000) == first
    assert choices(Checker(0.05, seed=4), plan, 4000) != first
    assert len(choices(Checker("all"), plan, 50)) == len(choices(Checker(1), plan, 50)) == 50
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.current_process(), "_name", "Process-7")
        other = choices(Checker(0.05, seed=3), plan, 4000)
        assert other == choices(Checker(0.05, seed=3), plan, 4000)
    assert other != first


def test_large_batches_are_compared_in_part(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share takes every n-th image from a random start; "all" takes all, piece by piece."""
    plan = SCHEME.plan(key, SHAPE)
    images = pixels(100, *SHAPE)
    seen: list[Any] = []
    monkeypatch.setattr(checking, "compare", lambda piece: (seen.append(piece), difference.compare(piece))[1])
    with checked(1.0, most_bytes=8 * 90) as part:
        for _ in range(40):
            dlmt.encrypt(images, plan)
            part.report()
    assert {piece.part.step for piece in seen} == {13}
    assert {piece.part.start for piece in seen} == set(range(13))
    assert all(len(piece.images) <= 8 for piece in seen)
    assert part.report().images == sum(len(piece.images) for piece in seen)
    with checked("all", most_bytes=8 * 90) as every:
        dlmt.encrypt(images, plan)
    assert every.report() == Report(1, 1, 0, 100, 9000, 0)
    with checked(1.0, most_bytes=1) as least:
        dlmt.encrypt(images, plan)
        dlmt.encrypt(images[:0], plan)
    assert least.report() == Report(2, 1, 0, 1, 90, 0)


@pytest.mark.parametrize("share", [1.0, "all"])
def test_the_index_is_that_of_the_whole_batch(
    share: Any, key: dlmt.Key, keyfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pixels(100, *SHAPE)
    images[61:, 1, 2, 3] = ODD
    with planted(monkeypatch):
        with pytest.raises(CheckError) as caught, checked(share, most_bytes=16 * 90):
            dlmt.encrypt(images, SCHEME.plan(key, SHAPE))
        found = caught.value.difference
        assert found is not None
        assert 61 <= found.index[0] <= (61 if share == "all" else 68)
        with pytest.raises(AssertionError):
            run(found.reproduction, keyfile, monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        *({"share": share} for share in (0, 0.0, -0.1, 1.1, float("nan"), True, "some", None)),
        {"on_difference": "ignore"},
        {"seed": 0.5},
        {"seed": True},
        {"most_bytes": 0},
        {"most_bytes": 1.5},
    ],
    ids=str,
)
def test_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="got"):
        Checker(**options)
    with pytest.raises(ParameterError), checked(**options):
        pass
    assert functional.observers == []


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_memory_is_bounded(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share skips and counts what it cannot keep up with; "all" waits."""
    plan = SCHEME.plan(key, SHAPE)
    images = pixels(3, *SHAPE)
    go = threading.Event()
    monkeypatch.setattr(checking, "compare", lambda piece: (go.wait(30), difference.compare(piece))[1])
    with checked(1.0) as share:
        for _ in range(50):
            dlmt.encrypt(images, plan)
        assert len(share._waiting) == 4
        go.set()
    assert share.report() == Report(50, 4, 46, 12, 1080, 0)
    assert str(share.report()).endswith(", 46 more were skipped to keep up")

    go.clear()
    every = Checker("all")
    done: list[int] = []

    def call() -> None:
        for i in range(9):
            end = every.begin(images, plan)
            assert end is not None
            end(dlmt.encrypt(images, plan), None)
            done.append(i)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    assert len(done) == len(every._waiting) == 4
    go.set()
    thread.join()
    assert every.close() == Report(9, 9, 0, 27, 2430, 0)


def test_the_thread_ends(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SCHEME.plan(key, SHAPE)
    monkeypatch.setattr(checking, "_IDLE", 0.05)
    checker = Checker("all")
    end = checker.begin(pixels(*SHAPE), plan)
    assert end is not None
    end(dlmt.encrypt(pixels(*SHAPE), plan), None)
    for _ in range(200):
        if not any(thread.name == "dlmt-check" for thread in threading.enumerate()):
            break
        time.sleep(0.01)
    assert checker._thread is None
    assert checker.close().checked == 1


def test_without_a_thread_the_caller_compares(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with checked("all") as checker:
        dlmt.encrypt(pixels(9, *SHAPE), SCHEME.plan(key, SHAPE))
    assert checker.report() == Report(1, 1, 0, 9, 810, 0)


def test_small_images_are_compared_at_once(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SCHEME.plan(key, SHAPE)
    monkeypatch.setattr(checking, "_SMALL", 180)
    with planted(monkeypatch), checked("all") as checker:
        dlmt.encrypt(odd_image(), plan)
        dlmt_thread = checker._thread
        assert checker._own[checking._DIFFER] == 1
        with pytest.raises(CheckError, match=r"index \[1, 2, 3\]"):
            dlmt.encrypt(pixels(2, *SHAPE), plan)
        dlmt.encrypt(pixels(2, *SHAPE), plan)
        assert checker._thread is dlmt_thread is None
        dlmt.encrypt(pixels(3, *SHAPE), plan)
        assert checker._thread is not None
    assert checker.report() == Report(3, 3, 0, 6, 540, 1)


def test_unused_it_costs_one_question(tmp_path: Path) -> None:
    assert functional.observers == []
    tree = ast.parse(inspect.getsource(functional.encrypt_now)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    assert ast.unparse(tree.body[1]).startswith("if observers and ")
    code = "import sys, dlmt_fast; dlmt_fast.encrypt; print('dlmt_fast.checking' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "False", done.stderr


def test_all_threads_are_seen(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE)
    with checked("all") as checker:
        threads = [
            threading.Thread(target=lambda: [dlmt.encrypt(pixels(*SHAPE), plan) for _ in range(20)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert checker.report() == Report(80, 80, 0, 80, 80 * 90, 0)


def test_checked_blocks_nest_and_wrong_calls_raise_as_ever(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE)
    with checked("all") as outer, checked("all") as inner:
        dlmt.encrypt(pixels(*SHAPE), plan)
        for wrong, error in ((np.zeros(SHAPE), InputTypeError), ([1], InputTypeError), (None, InputTypeError)):
            with pytest.raises(error):
                dlmt.encrypt(wrong, plan)
        with pytest.raises(InputTypeError, match="expected a plan"):
            dlmt.encrypt(pixels(*SHAPE), "plan")
        with pytest.raises(ParameterError, match="layout"):
            dlmt.encrypt(pixels(*SHAPE), plan, layout=3)
        with pytest.raises(ParameterError, match="threads"):
            dlmt.encrypt(pixels(*SHAPE), plan, threads=0)
    assert inner.report().checked == outer.report().checked == 1
    assert inner.report().values == 90


def test_what_torch_compiles_is_seen_when_it_runs(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE)
    images = torch.from_numpy(pixels(2, *SHAPE))
    compiled = torch.compile(lambda x: dlmt.encrypt(x, plan), fullgraph=True, backend="eager")
    with checked("all") as checker:
        for _ in range(3):
            compiled(images)
    assert checker.report().checked == 3
    assert checker.report().differ == 0


def test_each_backend_is_named(backend: str, key: dlmt.Key) -> None:
    checker = Checker("all")
    image, plan = pixels(*SHAPE), SCHEME.plan(key, SHAPE)
    end = checker.begin(image, plan, backend=backend, threads=2)
    assert end is not None
    end(dlmt.encrypt(image, plan) ^ 1, None)
    with pytest.raises(CheckError, match=f"; backend {backend}, CPU") as caught:
        checker.close()
    assert caught.value.difference is not None
    assert caught.value.difference.backend == backend


# --- other processes -------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a plain fork."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    for _ in range(600):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


@needs_fork
def test_a_fork_in_the_middle(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SCHEME.plan(key, SHAPE)
    slow = difference.compare
    monkeypatch.setattr(checking, "compare", lambda piece: (time.sleep(0.02), slow(piece))[1])
    with checked("all") as checker:

        def work() -> None:
            for _ in range(5):
                dlmt.encrypt(pixels(*SHAPE), plan)
            assert checker.report() == Report(5, 5, 0, 5, 450, 0)

        for _ in range(4):
            dlmt.encrypt(pixels(*SHAPE), plan)
            assert in_child(work) == 0
        assert checker.report() == Report(24, 24, 0, 24, 24 * 90, 0)

        def nested() -> None:
            work()
            assert in_child(lambda: [dlmt.encrypt(pixels(*SHAPE), plan) for _ in range(5)] and checker.report()) == 0
            assert checker.report() == Report(10, 10, 0, 10, 900, 0)
            checking._finish_all()

        assert in_child(nested) == 0
        assert checker.report().checked == 34, "what a grandchild counted comes up when its parent ends"


@needs_fork
@pytest.mark.usefixtures("fault")
def test_what_a_child_found_is_raised_in_the_parent(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, SHAPE)
    checker = Checker("all")

    def work() -> None:
        end = checker.begin(odd_image(), plan)
        assert end is not None
        end(dlmt.encrypt(odd_image(), plan), None)
        assert checker.report().differ == 1

    assert in_child(work) == 0
    assert checker.report() == Report(1, 1, 0, 1, 90, 1)
    with pytest.raises(CheckError, match=r"index \[1, 2, 3\]") as caught:
        checker.close()
    assert key.fingerprint in str(caught.value)
    assert caught.value.difference is None
    checker.close()  # told once


SCRIPT = """
import json, logging, sys
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset
import dlmt_fast as dlmt
from dlmt_fast import functional
from dlmt_fast.transforms import Encrypt

class Data(Dataset):
    def __init__(self, transform, size, fault):
        self.transform, self.size, self.fault = transform, size, fault
    def __len__(self):
        return self.size
    def __getitem__(self, i):
        if self.fault:
            self.fault = False
            plant()
        return self.transform(torch.full((3, 6, 5), i, dtype=torch.uint8))

def plant():
    module = dlmt.backends.get("auto")
    true = module.affine
    def wrong(images, k, out, bounds, threads=1):
        true(images, k, out, bounds, threads)
        out.view(np.uint32)[..., 4] ^= 1
    module.affine = wrong
    functional.try_direct = lambda *_: False

def load(context, size, fault, epochs=1, **options):
    transform = Encrypt(dlmt.Key(bytes(range(32))), dlmt.DLMT(), check="all", **options)
    loader = DataLoader(Data(transform, size, fault), 1, num_workers=2, multiprocessing_context=context)
    result = {"error": "", "batches": 0}
    try:
        for epoch in range(epochs):
            result["batches"] += sum(1 for _ in loader)
    except Exception as error:
        result |= {"error": f"{type(error).__name__}: {error}"}
    result["report"] = str(transform.check_report())
    try:
        transform.close_check()
    except Exception as error:
        result["close"] = f"{type(error).__name__}: {error}"
    return result

if __name__ == "__main__":
    context = sys.argv[1]
    result = {"early": load(context, 12, True), "late": load(context, 2, True)}
    if context != "spawn":  # the others start their workers faster
        result["right"] = load(context, 12, False, epochs=2)
        result["logged"] = load(context, 2, True, on_difference="log")
    else:
        result["right"] = load(context, 12, False)
    print(json.dumps(result))
"""


@pytest.mark.parametrize("context", multiprocessing.get_all_start_methods())
def test_workers(context: str, tmp_path: Path, key: dlmt.Key, secret: bytes) -> None:
    """Counts come back from DataLoader's workers; what they find is raised there at the next call, else by the parent.

    The script is a file, since spawned workers import it."""
    pytest.importorskip("torchvision")
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), context], capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr
    got = json.loads(result.stdout)
    calls = got["right"]["batches"]
    assert calls == (12 if context == "spawn" else 24)
    assert got["right"]["error"] == ""
    assert got["right"]["report"] == f"checked {calls} of {calls} calls, {calls * 90} values compared, 0 differ"
    assert "close" not in got["right"]
    assert got["early"]["error"].startswith("CheckError: Caught CheckError in DataLoader worker process")
    assert "first at index [0, 0, 4]" in got["early"]["error"]
    assert got["early"]["batches"] < 12
    assert got["late"]["error"] == ""
    assert got["late"]["batches"] == 2
    assert got["late"]["report"] == "checked 2 of 2 calls, 180 values compared, 6 differ"
    assert got["late"]["close"].startswith("CheckError: the images differ from the reference, first at index [0, 0, 4]")
    assert key.fingerprint in got["late"]["close"]
    assert result.stderr.count("the images differ from the reference") >= 2, "logged when the workers end"
    if "logged" in got:
        assert got["logged"]["report"] == got["late"]["report"]
        assert "close" not in got["logged"]
    for text in (result.stdout, result.stderr):
        assert secret.hex() not in text


def test_interpreter_exit(tmp_path: Path) -> None:
    """What is in line is compared, the report is logged, and nothing hangs; the transform is gone by then."""
    code = """
import logging
import numpy as np
import dlmt_fast as dlmt
from dlmt_fast import functional
from dlmt_fast.checking import Checker
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
def main():
    checker = Checker("all")
    plan = dlmt.DLMT().plan(dlmt.Key(bytes(32)), (3, 64, 64))
    images = np.zeros((200, 3, 64, 64), np.uint8)
    for i in range(3):
        end = checker.begin(images, plan)
        y = dlmt.encrypt(images, plan)
        if i == FAULT:
            y[150, 2, 3, 4] ^= 1
        end(y, None)
main()
"""
    for fault, words in ((-1, "INFO "), (2, "WARNING ")):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("FAULT", str(fault))],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        differ = int(fault == 2)
        report = (
            f"{words}dlmt_fast.checking: checked 3 of 3 calls, {600 * 3 * 64 * 64} values compared, {differ} differ"
        )
        assert report in done.stderr
        assert ("ERROR the images differ from the reference, first at index [150, 2, 3, 4]" in done.stderr) == differ


# --- the transform ---------------------------------------------------------------------------------------------------


def test_encrypt_checks(key: dlmt.Key, secret: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from dlmt_fast.transforms import Encrypt

    transform = Encrypt(key, SCHEME, mean=0.5, check="all", check_seed=3)
    sample = {"a": torch.from_numpy(pixels(4, *SHAPE)), "b": torch.from_numpy(pixels(1, 4, 4)), "label": 3}
    transform(sample)
    assert transform.check_report() == Report(2, 2, 0, 5, 376, 0)
    assert repr(transform).startswith(f"Encrypt(key='{key.fingerprint}', DLMT(")
    assert repr(transform).endswith(", check='all')")
    with planted(monkeypatch):
        transform(torch.from_numpy(odd_image()))
        transform.check_report()
        with pytest.raises(CheckError, match=r"torch uint8 \(3, 6, 5\), layout NCHW"):
            transform(sample)
        transform(torch.from_numpy(odd_image()))
        with pytest.raises(CheckError):
            transform.close_check()
    assert transform.close_check().calls == 4

    with dlmt.keys.allow_export():
        data = pickle.dumps(transform)
    again = pickle.loads(data)
    assert again.check_report() == Report()
    again(sample)
    assert Encrypt(key, SCHEME, check=0.01)._checker is not None
    assert again.close_check().checked == 2
    assert secret not in pickle.dumps(transform._checker)
    state: dict[str, Any] = {}
    with pytest.raises(dlmt.errors.SecretExportError):
        torch.save(transform, io.BytesIO())
    assert state == transform.state_dict()


def test_encrypt_without_a_check(key: dlmt.Key) -> None:
    pytest.importorskip("torchvision")
    from dlmt_fast.transforms import Encrypt

    for call in (Encrypt(key, SCHEME).check_report, Encrypt(key, SCHEME).close_check):
        with pytest.raises(ParameterError, match=r"make it with check=0\.01"):
            call()
    for options in ({"check": 0}, {"check": "some"}, {"check": 0.1, "on_difference": "ignore"}):
        with pytest.raises(ParameterError):
            Encrypt(key, SCHEME, **options)
