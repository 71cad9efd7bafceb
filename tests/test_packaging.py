"""What `pip install` gives: an sdist builds a wheel, the wheel works alone, and a missing compiler is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
SMOKE = """
import json, sys
import numpy as np, dlmt_fast as dlmt
assert "site-packages" in dlmt.__file__, dlmt.__file__
key = dlmt.Key(bytes(range(32)))
x = np.random.default_rng(0).integers(0, 256, (5, 3, 9, 7), dtype=np.uint8)
for normalize in ("none", "range", "minmax", "minmax_channel"):
    plan = dlmt.DLMT().plan(key, (3, 9, 7), normalize)
    assert (dlmt.encrypt(x, plan) == dlmt.encrypt(x, plan, backend="reference")).all()
print(json.dumps(dlmt.backends.available()))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def new_environment(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("sdist")
    tree = work / "tree"
    skipped = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "*.so", "_build.json", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, tree, ignore=skipped)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", work, tree, cwd=work)
    return next(work.glob("*.tar.gz"))


def test_sdist_holds_what_a_build_and_the_tests_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/bind_cpu.cpp", "csrc/affine.h", "setup.py", "LICENSE", "tests/vectors.json"} <= names
    assert not [name for name in names if name.endswith((".so", ".dlmtkey", "_build.json"))]


def test_wheel_from_the_sdist_works_in_an_empty_environment(sdist: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "empty")
    run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, sdist, cwd=tmp_path, DLMT_NATIVE="1")
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if name.startswith("dlmt_fast/_cpu")]
    assert "dlmt_fast/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "csrc/"))]
    run(python, "-m", "pip", "install", wheel, cwd=tmp_path)
    assert json.loads(run(python, "-c", SMOKE, cwd=tmp_path))["native"] == "ok"
    key, facts = tmp_path / "k.dlmtkey", json.loads(run(python.parent / "dlmt", "info", "--json", cwd=tmp_path))
    assert facts["build"]["native"]["built"] is True
    run(python.parent / "dlmt", "keygen", key, cwd=tmp_path)
    assert key.stat().st_mode & 0o777 == 0o600


def test_without_a_compiler_it_installs_and_says_so(sdist: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "empty")
    none = {"CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}
    run(python, "-m", "pip", "install", sdist, cwd=tmp_path, **none)
    available = json.loads(run(python, "-W", "ignore", "-c", SMOKE, cwd=tmp_path))
    assert "C++" in available["native"]
    assert available["numba"] == "ok"
    shown = run(python.parent / "dlmt", "info", cwd=tmp_path)
    assert 'backend="auto" is numba' in shown
    assert "built native: no" in shown
    warned = run(
        python,
        "-c",
        SMOKE.replace("import json, sys", "import json, warnings; warnings.simplefilter('error')")
        .replace(
            "for normalize",
            "try:\n    dlmt.encrypt(x, dlmt.DLMT().plan(key, (3, 9, 7)))\nexcept "
            "RuntimeWarning as w: assert 'numba' in str(w)\nelse: raise AssertionError\nfor normalize",
        )
        .replace("dlmt.encrypt(x, plan) ==", 'dlmt.encrypt(x, plan, backend="numba") =='),
        cwd=tmp_path,
    )
    assert warned


def test_demanding_the_native_module_without_a_compiler_fails(sdist: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "empty")
    done = subprocess.run(
        [python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, sdist],
        env={**os.environ, "CXX": "/nonexistent/c++", "CC": "/nonexistent/cc", "DLMT_NATIVE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "DLMT_NATIVE=1" in done.stdout + done.stderr
