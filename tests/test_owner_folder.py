"""Who may read the owner's folder, where that was there before."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, private

OPEN = [0o755, 0o750, 0o777, 0o711, 0o702]


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    path = tmp_path / "own"
    path.mkdir(0o700)
    return path


@pytest.fixture
def encrypt(tmp_path: Path, owner: Path, key: dlmt.Key) -> Callable[[], Summary]:
    source = tmp_path / "a.npy"
    np.save(source, np.zeros((3, 4, 4), np.uint8))

    def run() -> Summary:
        options = JobOptions(resume=True)
        return encrypt_store(source, tmp_path / "b.npy", key, dlmt.DLMT("mat_mmt"), lambda _: owner, options)

    return run


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", OPEN, ids=oct)
def test_an_empty_folder_is_closed_to_others(mode: int, owner: Path, encrypt: Callable[[], Summary]) -> None:
    owner.chmod(mode)
    notes = encrypt().notes
    assert mode_of(owner) == 0o700
    assert f"the owner's folder {owner} had mode {mode:04o}, which lets others enter it; it has 0700 now" in notes
    assert not [note for note in encrypt().notes if "mode" in note]


@pytest.mark.parametrize("mode", OPEN, ids=oct)
def test_a_folder_of_a_job_alone_is_closed_to_others(mode: int, owner: Path, encrypt: Callable[[], Summary]) -> None:
    encrypt()
    (owner / ".tmp-0123-none-45").write_bytes(b"left")
    owner.chmod(mode)
    assert [note for note in encrypt().notes if "it has 0700 now" in note]
    assert mode_of(owner) == 0o700


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("name", ["thesis.tex", "job.txt", "journal-1.json.bak", "locks2", ".hidden"])
def test_a_folder_with_other_files_stays_open_and_that_is_told(
    name: str, before: bool, owner: Path, encrypt: Callable[[], Summary]
) -> None:
    if before:
        encrypt()
    (owner / name).write_text("mine")
    owner.chmod(0o755)
    for _ in range(2):
        (note,) = (note for note in encrypt().notes if "mode" in note)
        assert note.startswith(f"others can enter the owner's folder {owner} (mode 0755)")
        assert f"chmod 700 {owner}" in note
        assert mode_of(owner) == 0o755
    files = [path for path in owner.iterdir() if path.is_file() and path.name != name]
    assert {mode_of(path) for path in files} == {0o600}


@pytest.mark.parametrize("refuses", [True, False])
def test_a_file_system_without_modes_takes_the_job(
    refuses: bool, owner: Path, encrypt: Callable[[], Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some refuse to change one, some say that they did."""

    def chmod(path: Path, mode: int) -> None:
        if refuses:
            raise PermissionError(1, "operation not permitted", str(path))

    owner.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", chmod)
    summary = encrypt()
    assert summary.outputs == 3
    assert [note for note in summary.notes if note.startswith(f"others can enter the owner's folder {owner}")]


def test_rights_that_the_owner_has_not_are_not_given(owner: Path) -> None:
    owner.chmod(0o555)
    assert "had mode 0555" in private.closed_to_others(owner, re.compile(""))
    assert mode_of(owner) == 0o500


def test_windows_has_no_modes(owner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner.chmod(0o777)
    monkeypatch.setattr(private, "os", SimpleNamespace(name="nt"))
    assert private.closed_to_others(owner, re.compile("")) == ""
    assert mode_of(owner) == 0o777
