"""The Numba backend's pool of threads, in forked and spawned children and at the end, and its cache on disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import dlmt_fast as dlmt

pytest.importorskip("numba")
from dlmt_fast.backends import numba_cpu, pool

PACKAGE = Path(dlmt.__file__).parent
LONG_ENOUGH = 60.0  # seconds that a child may take, compiling included


def assert_as_reference(images: NDArray[np.uint8], plan: dlmt.Plan) -> None:
    want = dlmt.encrypt(images, plan, backend="reference")
    np.testing.assert_array_equal(dlmt.encrypt(images, plan, backend="numba", threads=3), want)


def test_pool_order_errors_and_reuse() -> None:
    assert pool.run([lambda i=i: i * i for i in range(20)], 4) == [i * i for i in range(20)]
    ended = []

    def fail() -> None:
        raise ValueError("from a task")

    def slow() -> None:
        time.sleep(0.05)
        ended.append(1)

    with pytest.raises(ValueError, match="from a task"):
        pool.run([fail, slow, slow, fail], 4)
    assert len(ended) == 2  # nothing runs on after the call
    results: list[list[int]] = []
    callers = [
        threading.Thread(target=lambda: results.append(pool.run([lambda: threading.get_ident()] * 8, 3)))
        for _ in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [len(result) for result in results] == [8] * 6


def test_no_thread_beyond_the_limit() -> None:
    idents: set[int] = set()

    def task() -> None:
        idents.add(threading.get_ident())
        time.sleep(0.005)

    pool.run([task] * 12, 1)
    assert idents == {threading.get_ident()}
    pool.run([task] * 12, 2)
    assert len(idents) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_children_have_threads_of_their_own(
    key: dlmt.Key, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_cpu, "LEAST_WORK", 64)
    plan = dlmt.DLMT().plan(key, (3, 64, 64), "minmax")
    images = rng.integers(0, 256, (16, 3, 64, 64), dtype=np.uint8)
    assert_as_reference(images, plan)
    with pool._lock, warnings.catch_warnings():  # as if another thread were just starting the pool
        warnings.simplefilter("ignore", DeprecationWarning)
        children = [_fork(images, plan) for _ in range(2)]
    for child in children:
        assert _exit_code(child) == 0
    assert_as_reference(images, plan)


def _fork(images: NDArray[np.uint8], plan: dlmt.Plan) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert_as_reference(images, plan)
            code = 0 if pool._pool is not None else 2
        finally:
            os._exit(code)
    return child


def _exit_code(child: int) -> int:
    end = time.monotonic() + LONG_ENOUGH
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the forked child hangs")


SCRIPT = """
import atexit, hashlib, multiprocessing, sys
import numpy as np
import dlmt_fast as dlmt
from dlmt_fast.backends import numba_cpu, numba_kernels

def digest(backend, threads=2):
    numba_cpu.LEAST_WORK = 64
    plan = dlmt.DLMT().plan(dlmt.Key(bytes(32)), (3, 32, 32))
    images = np.arange(40 * 3072).astype(np.uint8).reshape(40, 3, 32, 32)
    y = dlmt.encrypt(images, plan, backend=backend, threads=threads)
    return hashlib.sha256(y.tobytes()).hexdigest()

def at_exit(want):
    print("exit", digest("numba") == want)

if __name__ == "__main__":
    want = digest("reference")
    assert digest("numba") == want
    if "spawn" in sys.argv:
        with multiprocessing.get_context("spawn").Pool(2) as workers:
            print("spawn", workers.map(digest, ["numba"] * 4) == [want] * 4)
    print("cached", not hasattr(numba_kernels.fixed, "signatures"))
    atexit.register(at_exit, want)
"""


def run_script(folder: Path, *arguments: str, path: Path = PACKAGE.parent, **environment: str) -> str:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(path), **environment},
        capture_output=True,
        text=True,
        timeout=3 * LONG_ENOUGH,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_spawned_children_and_the_end_of_the_interpreter(tmp_path: Path) -> None:
    output = run_script(tmp_path, "spawn", NUMBA_CACHE_DIR=str(tmp_path))
    assert output.splitlines() == ["spawn True", "cached True", "exit True"]


def test_without_a_place_for_the_cache(tmp_path: Path) -> None:
    """No writable installation and no home: files stand where Numba would make folders, which stops root as well."""
    shutil.copytree(PACKAGE, tmp_path / "dlmt_fast", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("backends", "."):
        (tmp_path / "dlmt_fast" / folder / "__pycache__").write_text("")
    nowhere = {
        "HOME": "/dev/null",
        "XDG_CACHE_HOME": "/dev/null",
        "NUMBA_CACHE_DIR": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    assert run_script(tmp_path, path=tmp_path, **nowhere).splitlines() == ["cached False", "exit True"]
