"""Errors that may pass are tried again wherever inputs are read and results entered: three attempts, then the job
fails, and nothing is quarantined for it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import StoreError
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, inspect_store, ray_engine
from dlmt_fast.pipeline.summary import Standing
from dlmt_fast.stores import attempts, folder
from dlmt_fast.stores.equal import Contents
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import OS, FileOps

PASSING = [errno.EIO, errno.ETIMEDOUT, errno.ENOENT, errno.ESTALE]
STAYING = [errno.EACCES, errno.ENOSPC, errno.EISDIR]


class Place:
    """A folder of twelve images, of which two are equal to others and one is cut short, in shards of four."""

    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source = root, key, root / "source"
        self.source.mkdir()
        for i in range(12):
            data = encode_png(np.full((1, 4, 5), i % 10, np.uint8))
            (self.source / f"{i:02d}.png").write_bytes(data[:-30] if i == 6 else data)
        self.standings: list[Standing] = []

    def encrypt(self, target: str, ops: FileOps = OS, **options: Any) -> Summary:
        chosen = JobOptions(shard_size=4, on_error="quarantine", **options)
        return encrypt_store(
            self.source, self.root / target, self.key, dlmt.DLMT("mat_mmt"), lambda _: self.owned(target), chosen,
            ops=ops, progress=self.standings.append,
        )  # fmt: skip

    def owned(self, target: str) -> Path:
        return self.root / f"own-{target}"

    def files(self, target: str) -> dict[str, bytes]:
        """A store without the manifest, whose sealed header has a fresh nonce."""
        found = {path.name: path for path in (self.root / target).iterdir()}
        return {name: path.read_bytes() for name, path in found.items() if name != "dlmt-store.json"}

    def lists(self, target: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.owned(target).glob("duplicates-*")}


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_PAUSE", 0.0)


class Failing:
    """A function that fails the first `times` times that it gets the file `name`."""

    def __init__(self, work: Callable[..., Any], name: str, times: int, number: int = errno.EIO) -> None:
        self.work, self.name, self.left, self.number, self.calls = work, name, times, number, 0

    def __call__(self, path: Path, *more: Any) -> Any:
        if path.name == self.name:
            self.calls += 1
            if self.left:
                self.left -= 1
                raise OSError(self.number, os.strerror(self.number), str(path))
        return self.work(path, *more)


# headers of a folder's images


@pytest.mark.parametrize("number", PASSING)
def test_a_header_that_cannot_be_read_is_tried_again(
    number: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.encrypt("whole")
    probe = Failing(folder.probe, "05.png", 2, number)
    monkeypatch.setattr(folder, "probe", probe)
    assert place.encrypt("store").outputs == 11
    assert probe.calls == 3
    assert place.files("store") == place.files("whole")


@pytest.mark.parametrize(("number", "calls"), [*((each, 3) for each in PASSING), *((each, 1) for each in STAYING)])
def test_a_header_that_stays_unread_fails_the_job(
    number: int, calls: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Failing(folder.probe, "05.png", 9, number)
    monkeypatch.setattr(folder, "probe", probe)
    with pytest.raises(OSError, match=r"05\.png") as failure:
        place.encrypt("store")
    assert (failure.value.errno, probe.calls) == (number, calls)
    assert [path.name for path in place.root.iterdir()] == ["source"]


def test_inspect_tries_headers_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "probe", Failing(folder.probe, "05.png", 2))
    assert inspect_store(place.source).inputs == 12


# --duplicates


@pytest.mark.parametrize("name", ["00.png", "05.png", "06.png", "07.png", "11.png"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_duplicates_are_looked_for_again(
    name: str, shuffle: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image is counted twice, and none is left out."""
    whole = place.encrypt("whole", duplicates="drop", shuffle=shuffle)
    expected, place.standings = place.standings, []
    decode = Failing(folder.decode, name, 2)
    monkeypatch.setattr(folder, "decode", decode)
    found = place.encrypt("store", duplicates="drop", shuffle=shuffle)
    assert decode.calls == 4  # the last one is that of the work
    assert (found.duplicates, found.dropped, found.outputs) == (whole.duplicates, whole.dropped, whole.outputs)
    assert (found.duplicates, found.outputs) == (2, 9)
    assert place.lists("store") == place.lists("whole")
    assert place.files("store") == place.files("whole")
    for doing in ("compared", ""):
        last = [[each for each in one if each.doing == doing][-1] for one in (expected, place.standings)]
        assert last[0] == last[1]
        assert last[0].done == last[0].total


@pytest.mark.parametrize(("number", "calls"), [(errno.EIO, 3), (errno.EACCES, 1)])
def test_duplicates_that_cannot_be_looked_for_fail_the_job(
    number: int, calls: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Failing(folder.decode, "05.png", 9, number)
    monkeypatch.setattr(folder, "decode", decode)
    with pytest.raises(OSError, match=r"05\.png") as failure:
        place.encrypt("store", duplicates="report")
    assert (failure.value.errno, decode.calls) == (number, calls)
    assert not place.lists("store")
    assert not (place.root / "store").exists()


def test_a_digest_that_cannot_be_kept_is_not_taken_in_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was taken in by halves would be equal to itself."""
    calls = []

    def add(contents: Contents, index: int, digest: bytes, name: str) -> None:
        calls.append(index)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Contents, "add", add)
    with pytest.raises(StoreError, match=f"{tempfile.gettempdir()} .*TMPDIR.*: .*Input/output error"):
        place.encrypt("store", duplicates="report")
    assert calls == [0]


# the driver of Ray, which enters what its tasks made


class FailingEntries(FileOps):
    """Publishing a file of the owner's folder fails the first `times` times."""

    def __init__(self, name: str, times: int) -> None:
        self.name, self.times, self.calls = name, times, 0

    def rename(self, old: Path, new: Path) -> None:
        if new.name == self.name:
            self.calls += 1
            if self.times:
                self.times -= 1
                raise OSError(errno.EIO, "input/output error", str(new))
        super().rename(old, new)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for Ray: tasks are done here, one after the other."""

    class Error(Exception):
        pass

    def task(work: Callable[..., Any]) -> Any:
        return SimpleNamespace(options=lambda name: SimpleNamespace(remote=lambda *args: partial(work, *args)))

    fake = SimpleNamespace(
        is_initialized=lambda: True,
        cluster_resources=lambda: {"CPU": 2},
        put=lambda value: value,
        remote=lambda **how: task,
        wait=lambda flying, num_returns, timeout=0: (flying[:num_returns], flying[num_returns:]),
        get=lambda done: done(),
        cancel=lambda done, force: None,
        exceptions=SimpleNamespace(RayError=Error, RayTaskError=Error),
    )
    monkeypatch.setattr(ray_engine, "_ray", lambda: fake)


@pytest.mark.parametrize("name", ["ledger-00001.bin", "quarantine-00001.json", "journal-00001.json"])
def test_an_entry_of_the_driver_is_tried_again(name: str, place: Place, ray: None) -> None:
    place.encrypt("whole")
    ops = FailingEntries(name, 2)
    assert place.encrypt("store", ops, engine="ray", workers=1).outputs == 11
    assert ops.calls == 3
    assert place.files("store") == place.files("whole")


def test_an_entry_of_the_driver_that_fails_fails_the_job(place: Place, ray: None) -> None:
    ops = FailingEntries("journal-00001.json", 9)
    with pytest.raises(OSError, match="input/output error"):
        place.encrypt("store", ops, engine="ray", workers=1)
    assert ops.calls == 3
    assert place.encrypt("store", engine="ray", workers=1, resume=True).outputs == 11
