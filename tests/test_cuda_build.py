"""The CUDA module where there is no GPU: how it is built or why not, that it imports, what it says, what it refuses,
and what it would launch."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(dlmt.__file__).resolve().parent
BUILT = json.loads((PACKAGE / "_build.json").read_text())["cuda"] if (PACKAGE / "_build.json").exists() else {}

try:
    _cuda: Any = importlib.import_module("dlmt_fast._cuda")
except ModuleNotFoundError:
    _cuda = None
needs_module = pytest.mark.skipif(_cuda is None, reason=f"dlmt_fast._cuda is not built: {BUILT.get('reason')}")


def prepared(shape: tuple[int, int, int], order: str = "CHW", scheme: Any = None, **options: Any) -> Any:
    k = (scheme or dlmt.DLMT()).plan(dlmt.Key(bytes(range(32))), shape, **options).coefficients(order)
    return _cuda.Prepared(*arguments(k))


def arguments(k: Any) -> tuple[Any, ...]:
    return (k.normalize, k.dtype, k.lo, k.hi, k.M, k.B, k.M24, k.B24, k.std, k.g, k.b)


# ---- the build


def test_the_report_agrees_with_what_is_there() -> None:
    assert BUILT["built"] == (_cuda is not None), BUILT
    assert BUILT["reason"]
    if _cuda is not None:
        assert BUILT["architectures"] == _cuda.architectures()
        assert "sm_80" in BUILT["architectures"]
        assert BUILT["architectures"][-1].startswith("compute_")
        assert "-fmad=false" in BUILT["flags"]


def test_it_is_built_where_nvcc_is() -> None:
    if shutil.which("nvcc") is None or "switched off" in BUILT.get("reason", ""):
        pytest.skip("there is no nvcc here, or the module was switched off")
    assert BUILT["built"], BUILT["reason"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build reads, in a folder of its own."""
    for module in ("setuptools", "pybind11"):
        pytest.importorskip(module)
    if not (ROOT / "setup.py").exists():
        pytest.skip("the sources are not beside the tests")
    folder = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    skipped = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "dlmt_fast", folder / "dlmt_fast", ignore=skipped)
    return folder


def build(tree: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A build without the C++ module; the report on the CUDA module."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DLMT_", "CUDA_"))}
    report = tree / "lib" / "dlmt_fast" / "_build.json"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", "build", "--build-lib", "lib"],
        cwd=tree,
        env=kept | {"DLMT_NATIVE": "0"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, json.loads(report.read_text())["cuda"] if report.exists() else {}


def fake_nvcc(folder: Path, compiles: str) -> str:
    """An nvcc of which only the answers are real; `compiles` is what it does when it is to compile."""
    path = folder / "nvcc"
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '  *--version*) echo "Cuda compilation tools, release 99.1, V99.1.7" ;;\n'
        '  *--list-gpu-code*) echo "sm_80 sm_90 sm_200" ;;\n'
        f"  *--dryrun*) echo '#$ LIBRARIES=  \"-L{folder}\"' ;;\n"
        f"  *) {compiles} ;;\n"
        "esac\n"
    )
    path.chmod(0o755)
    return str(path)


def test_it_can_be_switched_off(tree: Path) -> None:
    done, report = build(tree, DLMT_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert report == {"built": False, "reason": "switched off by DLMT_CUDA=0"}


def test_a_missing_nvcc_is_said(tree: Path) -> None:
    done, report = build(tree, DLMT_NVCC="/nonexistent/nvcc")
    assert done.returncode == 0, done.stderr
    assert report == {"built": False, "reason": "nvcc was not found (DLMT_NVCC names none)"}
    done, report = build(tree, DLMT_NVCC="/nonexistent/nvcc", DLMT_CUDA="1")
    assert done.returncode != 0
    assert "DLMT_CUDA=1, but the CUDA module cannot be built: nvcc was not found" in done.stderr
    assert report == {}


def test_an_nvcc_that_fails_is_quoted(tree: Path, tmp_path: Path) -> None:
    failing = fake_nvcc(tmp_path, 'echo "nvcc fatal : error: no such thing in /some/where/kernel.cu"; exit 3')
    done, report = build(tree, DLMT_NVCC=failing)
    assert done.returncode == 0, done.stderr
    assert "libcudart_static.a" in report["reason"]
    (tmp_path / "libcudart_static.a").touch()
    done, report = build(tree, DLMT_NVCC=failing)
    assert done.returncode == 0, done.stderr
    assert report["reason"] == "nvcc: nvcc fatal : error: no such thing in kernel.cu"
    assert "code=[sm_90,compute_90]" in done.stdout
    assert "sm_100" not in done.stdout  # this one does not know it


def test_an_nvcc_that_is_none_is_refused(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "nvcc"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    assert build(tree, DLMT_NVCC=str(other))[1]["reason"] == "nvcc --version says no CUDA version: hello"


def test_sanitizers_leave_it_out(tree: Path) -> None:
    assert "sanitizers" in build(tree, DLMT_SANITIZE="1")[1]["reason"]


def test_a_wrong_switch_is_an_error(tree: Path) -> None:
    done, _ = build(tree, DLMT_CUDA="yes")
    assert done.returncode != 0
    assert "DLMT_CUDA='yes': expected auto, 0 or 1" in done.stderr


# ---- what the module says


@needs_module
def test_the_state_is_one_sentence_and_never_error_35() -> None:
    state = _cuda.status()
    assert state == _cuda.status()
    assert "35" not in state
    assert "\n" not in state
    if state != "ok":
        assert _cuda.devices() == []
        with pytest.raises(RuntimeError) as raised:
            prepared((3, 4, 5)).on(0)
        assert str(raised.value) == f"dlmt_fast._cuda: {state}"
        with pytest.raises(RuntimeError, match=r"^dlmt_fast\._cuda: "):
            _cuda.copy(256, 512, 16, "uint8", 0, 0)


@needs_module
def test_a_missing_driver_is_said() -> None:
    """In a fresh process whose loader finds no libcuda.so.1, whatever is installed."""
    if _cuda.status() == "ok":
        pytest.skip("there is a driver here")
    code = "from dlmt_fast import _cuda; print(_cuda.status())"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code]  # -c puts the working directory first on the path
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=PACKAGE.parent)
    assert done.stdout.strip() in (
        "there is no NVIDIA driver on this machine: libcuda.so.1 cannot be opened",
        "the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES may hide them)",
    )


@needs_module
def test_it_needs_neither_the_driver_nor_the_runtime_to_load() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    said = subprocess.run(["readelf", "-Wd", "--dyn-syms", _cuda.__file__], capture_output=True, text=True, check=True)
    needed = [line for line in said.stdout.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [line for line in needed if "cuda" in line]
    defined = [line.split() for line in said.stdout.splitlines() if " GLOBAL " in line and " UND " not in line]
    assert [words[-1] for words in defined if "GLOBAL" in words] == ["PyInit__cuda"]


# ---- what it refuses


@needs_module
@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, lambda a: "max"),
        (1, lambda a: "int32"),
        (2, lambda a: 1 << 31),
        (3, lambda a: -1),
        (4, lambda a: a[0]),
        (4, lambda a: a[:, :, :0]),
        (4, lambda a: a.astype(np.int64)),
        (5, lambda a: None),
        (5, lambda a: a[..., :-1]),
        (6, lambda a: None),
        (7, lambda a: a.astype(np.int32)),
    ],
)
def test_wrong_coefficients_raise(index: int, change: Any) -> None:
    k = dlmt.DLMT().plan(dlmt.Key(bytes(range(32))), (3, 4, 5)).coefficients("CHW")
    given = list(arguments(k))
    _cuda.Prepared(*given)
    given[index] = change(given[index])
    with pytest.raises((TypeError, ValueError)):
        _cuda.Prepared(*given)


@needs_module
def test_the_key_is_neither_shown_nor_pickled() -> None:
    one = prepared((3, 4, 5))
    assert repr(one).startswith("<dlmt_fast._cuda.Prepared object at")
    with pytest.raises(TypeError):
        pickle.dumps(one)


# ---- what it would launch


@needs_module
@pytest.mark.parametrize("multiprocessors", [1, 16, 108, 132, 148])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 32, 32), (1, 28, 28), (3, 224, 224), (3, 225, 225), (3, 2048, 2048)])
def test_launches_fit_every_device(shape: tuple[int, int, int], multiprocessors: int) -> None:
    size = int(np.prod(shape))
    for options in (
        {},
        {"normalize": "none"},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        *({"normalize": n, "dtype": d} for n in ("minmax", "minmax_channel") for d in ("uint8", "float32")),
    ):
        plan = prepared(shape, **options)
        old = plan.launch(5, "8.0", multiprocessors)["steps"]
        assert all(step["cluster"] == 1 for step in old)  # which came with 9.0
        assert plan.launch(0) == {"launches": 0, "steps": []}
        for n in (1, 7, 128, 50_000, 2**33 // size):
            found = plan.launch(n, "9.0", multiprocessors)
            assert found["launches"] == len(found["steps"]) >= 1
            for step in found["steps"]:
                (x, y, z), (threads, _, _) = step["grid"], step["block"]
                assert 1 <= x < 2**31
                assert 1 <= y < 2**16
                assert z == 1
                assert threads % 32 == 0
                assert 32 <= threads <= 1024
                assert x % step["cluster"] == 0
                assert step["shared"] <= (96 if step["cluster"] > 1 else 48) * 1024


@needs_module
@pytest.mark.parametrize(
    ("shape", "n", "options", "kernels"),
    [
        ((3, 32, 32), 50_000, {}, ["range"]),
        ((3, 32, 32), 50_000, {"normalize": "none"}, ["none"]),
        ((3, 224, 224), 1024, {"dtype": "float32"}, ["unit"]),
        ((3, 32, 32), 50_000, {"normalize": "minmax"}, ["minmax_small"]),
        ((3, 32, 32), 50_000, {"normalize": "minmax_channel"}, ["minmax_small"]),
        ((3, 224, 224), 1024, {"normalize": "minmax"}, ["minmax_cluster"]),
        ((3, 96, 96), 8, {"normalize": "minmax"}, ["minmax_cluster"]),
        ((3, 225, 225), 8, {"normalize": "minmax"}, ["clear_bounds", "bounds", "minmax"]),
        ((3, 2048, 2048), 64, {"normalize": "minmax"}, ["clear_bounds", "bounds", "minmax"]),
        ((3, 32, 32), 9, {"normalize": "minmax", "dtype": "float16"}, ["clear_bounds", "bounds", "minmax"]),
        ((3, 32, 32), 9, {"normalize": "minmax_channel", "order": "HWC"}, ["minmax_general"]),
        ((1, 32, 32), 9, {"normalize": "minmax_channel", "order": "HWC"}, ["minmax_small"]),
    ],
)
def test_which_kernels(shape: tuple[int, int, int], n: int, options: dict[str, Any], kernels: list[str]) -> None:
    found = prepared(shape, **options).launch(n, "9.0", 132)
    assert [step["kernel"] for step in found["steps"]] == kernels


@needs_module
@pytest.mark.parametrize(("shape", "n"), [((3, 32, 32), 50_000), ((3, 224, 224), 1024)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_blocks_fill_one_wave(shape: tuple[int, int, int], n: int, dtype: str) -> None:
    """Just under as many blocks as run at once on 132 multiprocessors, at 72 registers a thread, and at least half."""
    found = prepared(shape, dtype=dtype).launch(n, "9.0", 132)
    at_once = 132 * (896 // found["block"][0])
    assert at_once / 2 < found["grid"][0] * found["grid"][1] <= at_once


@needs_module
def test_a_batch_of_128_small_images_reaches_nearly_every_multiprocessor() -> None:
    for options in ({}, {"normalize": "minmax"}, {"dtype": "float32"}):
        found = prepared((3, 32, 32), **options).launch(128, "9.0", 132)
        assert found["grid"][0] * found["grid"][1] >= 128


@needs_module
@pytest.mark.parametrize("bad", [{"n": -1}, {"capability": "9"}, {"capability": "new"}, {"multiprocessors": 0}])
def test_wrong_devices_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        prepared((3, 4, 5)).launch(**{"n": 1, **bad})
