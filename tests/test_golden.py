"""Stores of the first release, opened by this one and by the program of docs/format-v1.md, which knows no release.

`golden/v1` was made once, by `golden/make.py`. Never make it again: where a test fails, the package reads differently.
"""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dlmt_fast as dlmt
from dlmt_fast.pipeline import decrypt_store, verify_store
from dlmt_fast.stores.manifest import read_manifest

pytest.importorskip("pyarrow")
pytest.importorskip("zarr")

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "v1"
FORMAT = HERE.parent / "docs" / "format-v1.md"
PLAIN: dict[str, dict[str, Any]] = json.loads((GOLDEN / "plain.json").read_text("utf-8"))
#: Of every file's name and content, in the order of names.
SHA256 = "64323957a9bc275f6747e5b6c6c699ee8b4f1f77f356df1501cd357e9b5f1faf"


@pytest.fixture(scope="module")
def golden_key() -> dlmt.Key:
    return dlmt.Key.load(GOLDEN / "key.json", (GOLDEN / "passphrase").read_text("utf-8"))


def test_these_are_the_files_that_were_made() -> None:
    digest = hashlib.sha256()
    for path in sorted((path for path in GOLDEN.rglob("*") if path.is_file()), key=lambda path: path.as_posix()):
        digest.update(
            f"{path.relative_to(GOLDEN).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    assert digest.hexdigest() == SHA256
    assert {path.name.removesuffix(".dlmt-store.json") for path in GOLDEN.iterdir()} == {
        *PLAIN,
        *("key.json", "owner", "passphrase", "plain.json"),
    }


def test_every_kind_and_mode_is_among_them() -> None:
    jobs = [json.loads((GOLDEN / "owner" / name / "job.json").read_bytes()) for name in PLAIN]
    assert {job["target"] for job in jobs} == {"folder", "webdataset", "parquet", "zarr", "idx", "npy"}
    assert {job["scheme"]["mode"] for job in jobs} == {"mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat"}
    assert {job["options"]["normalize"] for job in jobs} == {"none", "range", "minmax", "minmax_channel"}
    assert {read_manifest(GOLDEN / name).dtype for name in PLAIN} == {"uint8", "uint16", "int32", "float32", "float16"}
    for name, job in zip(PLAIN, jobs, strict=True):
        assert PLAIN[name]["exact"] or job["options"]["normalize"] != "none", name


@pytest.mark.parametrize("name", PLAIN)
def test_this_release_opens_it(name: str, golden_key: dlmt.Key, tmp_path: Path) -> None:
    store, owner = GOLDEN / name, tmp_path / "owner"
    shutil.copytree(GOLDEN / "owner" / name, owner)
    contents = runpy.run_path(str(HERE / "golden" / "make.py"))["contents"]
    verified = verify_store(store, golden_key, lambda _: owner)
    assert "the owner's folder agrees" in verified.notes[-1]
    back = tmp_path / ("back" if store.is_dir() else f"back{store.suffix}")
    decrypted = decrypt_store(store, back, golden_key, lambda _: owner)
    assert not decrypted.notes
    assert contents(back, verified.kind) == PLAIN[name]["images"]


@pytest.mark.parametrize("name", PLAIN)
def test_a_program_without_the_package_opens_it(name: str) -> None:
    program = re.search(r"```python\n(.*?)```", FORMAT.read_text("utf-8"), re.DOTALL)
    assert program is not None
    code = "import sys\nsys.modules['dlmt_fast'] = None\n" + program[1]
    words = [GOLDEN / "key.json", GOLDEN / "passphrase", GOLDEN / name, GOLDEN / "owner" / name]
    done = subprocess.run([sys.executable, "-I", "-c", code, *words], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    images = PLAIN[name]["images"]
    assert sorted(image[1:] for image in found) == sorted(image[1:3] for image in images)
    kind = read_manifest(GOLDEN / name).kind
    if kind in ("folder", "webdataset"):
        originals = {re.sub(r"\.\w+$", "", place): digest for place, _, digest in found}
        assert originals == {re.sub(r"\.\w+$", "", place): digest for place, _, digest, _ in images}


def test_the_program_is_short() -> None:
    program = re.search(r"```python\n(.*?)```", FORMAT.read_text("utf-8"), re.DOTALL)
    assert program is not None
    lines = [line for line in program[1].splitlines() if line and not re.match(r"import|from|#", line)]
    assert len(lines) < 70
    assert "dlmt_fast" not in program[1]
