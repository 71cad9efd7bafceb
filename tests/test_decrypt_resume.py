"""Decrypts that are stopped, killed or cut off and go on: what is redone, what is refused, what is left behind."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import ParameterError, StoreDamagedError, StoreError, UsageError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, preview_decrypt
from dlmt_fast.pipeline.locks import JobLocks
from dlmt_fast.pipeline.slices import WHOLE
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import OS, FileOps

SCHEME = dlmt.DLMT("mat_mmt")
MAIN = "from dlmt_fast.cli import main; main()"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses Linux's signals and /proc")


class Place:
    """A finished store of one kind, and decrypts of it to `back`."""

    def __init__(self, root: Path, key: dlmt.Key, kind: str = "folder", count: int = 9, **options: Any) -> None:
        self.root, self.key, self.kind, self.store, self.back = root, key, kind, root / "store", root / "back"
        rng = np.random.default_rng(0)
        source = root / "source"
        arrays = kind in ("idx", "npy", "zarr")
        for i in range(3 if arrays else count):
            (source / ("." if arrays else f"{i // 2 % 3}")).mkdir(parents=True, exist_ok=True)
            if arrays:
                np.save(source / f"part{i}.npy", rng.integers(0, 256, (4 + i, 5, 6), np.uint8))
                np.save(source / f"part{i}-labels.npy", np.arange(4 + i))
            else:
                image = rng.integers(0, 256, (3, 8, 8), np.uint8)
                name = f"{i // 2}.{'png' if i % 2 else 'bmp'}" if i else "+.png"  # pairs lie in two shards
                (source / f"{i // 2 % 3}" / name).write_bytes(encode_png(image))
        chosen = JobOptions(**{"normalize": "minmax"} | ({} if arrays else {"shard_size": 2}) | options)
        self.id = encrypt_store(source, self.store, key, SCHEME, self.owner, chosen, target_named=kind).store_id
        shutil.rmtree(source)

    def owner(self, store_id: str) -> Path:
        return self.root / "k.stores" / store_id

    def decrypt(self, target: Path | None = None, **options: Any) -> Summary:
        return decrypt_store(self.store, target or self.back, self.key, self.owner, **options)

    def files(self, target: Path | None = None) -> dict[str, bytes]:
        root = target or self.back
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    def whole(self) -> dict[str, bytes]:
        """What an undisturbed decrypt writes."""
        summary = self.decrypt(self.root / "undisturbed")
        assert summary.inputs == summary.outputs
        found = self.files(self.root / "undisturbed")
        shutil.rmtree(self.root / "undisturbed")
        assert not [name for name in found if name.startswith(".")]
        return found

    def stop_after(self, shards: int, **options: Any) -> list[str]:
        """Decrypt until the disk is full, some shards later; gives what was said."""
        told: list[str] = []
        with pytest.raises(OSError, match="disk is full"):
            self.decrypt(ops=FullDisk(shards), tell=told.append, **options)
        return told


class FullDisk(FileOps):
    """Full as soon as some shards are entered."""

    def __init__(self, shards: int) -> None:
        self.left = shards

    def create(self, path: Path, mode: int = 0o666) -> int:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "the disk is full", str(path))
        return super().create(path, mode)

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self.left -= new.name.startswith("journal-")


KINDS = ["folder", "webdataset", "parquet", "zarr", "npy"]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, key: dlmt.Key) -> Place:
    package = {"parquet": "pyarrow", "zarr": "zarr"}.get(request.param)
    if package:
        pytest.importorskip(package)
    return Place(tmp_path, key, request.param)


@pytest.fixture
def folder(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


def test_a_stopped_decrypt_goes_on(place: Place) -> None:
    whole = place.whole()
    told = place.stop_after(1)
    count = 5 if place.kind in ("folder", "webdataset", "parquet") else 3
    assert told == [
        f"1 of {count} shards are done and stay, nothing half-written does; the same command with --resume goes on"
    ]
    assert (place.back / ".dlmt-job").exists()
    assert not list(place.back.rglob(".tmp-*"))
    with pytest.raises(StoreError, match="--resume goes on"):
        place.decrypt()
    before = {path: path.stat().st_mtime_ns for path in place.back.rglob("*.*") if ".dlmt" not in str(path)}
    preview = preview_decrypt(place.store, place.back, place.key, place.owner, resume=True)
    assert (preview.shards, preview.shards_done) == (count, 1)
    summary = place.decrypt(resume=True)
    assert summary.notes[0] == f"resumed: 1 of {count} shards were done already"
    images = 9 if count == 5 else 15
    assert (summary.inputs, summary.outputs) == (images, images)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path.is_file())
    assert place.files() == whole
    undisturbed = place.decrypt(place.root / "again")
    assert undisturbed.output_bytes == summary.output_bytes


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_change_no_byte(workers: int, tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, count=40)
    whole = place.whole()
    assert any(name.endswith(".bmp.png") for name in whole)  # names that are doubled over all shards
    assert place.decrypt(workers=workers).outputs == 40
    assert place.files() == whole


def test_workers_decrypt_tars(tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, "webdataset")
    whole = place.whole()
    place.decrypt(workers=2)
    assert place.files() == whole


@pytest.mark.parametrize("what", ["gone", "cut", "journal", "flipped"])
def test_only_what_does_not_count_is_done_again(what: str, place: Place) -> None:
    whole = place.whole()
    place.stop_after(2)
    entry = place.back / ".dlmt-decrypt" / "journal-00001.json"
    path = place.back / json.loads(entry.read_bytes())["files"][0][2]
    data = path.read_bytes()
    if what == "gone":
        path.unlink()
    elif what == "journal":
        entry.write_bytes(entry.read_bytes()[:-1])
    else:
        path.write_bytes(data[:-1] if what == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    summary = place.decrypt(resume=True, check=what == "flipped")
    assert summary.notes[0].startswith("resumed: 1 of ")
    assert place.files() == whole


def test_a_decrypt_without_ledgers_goes_on(tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, normalize="range", dtype="float32")
    own = place.owner(place.id)
    own.rename(tmp_path / "own")
    whole = place.whole()
    place.stop_after(2)
    assert place.decrypt(resume=True).outputs == 9
    assert place.files() == whole
    shutil.rmtree(place.back)
    place.stop_after(2)
    (tmp_path / "own").rename(own)  # the rest would get other names
    with pytest.raises(StoreError, match=r"ledgers: missing sha256 .*; ledgers: there 0 then, 5 now"):
        place.decrypt(resume=True)


def test_another_store_is_refused_and_says_what_differs(folder: Place, tmp_path: Path) -> None:
    folder.stop_after(2)
    (tmp_path / "two").mkdir()
    other = Place(tmp_path / "two", folder.key, count=7)
    before = folder.files()
    with pytest.raises(StoreError, match=rf"cannot be resumed: .*; store: {folder.id} then, {other.id} now"):
        other.decrypt(folder.back, resume=True)
    other.decrypt()
    options = JobOptions(shard_size=2, resume=True)
    with pytest.raises(StoreError, match="belongs to another job"):  # nor does an encrypt mix its files in
        encrypt_store(other.back, folder.back, folder.key, SCHEME, folder.owner, options)
    assert folder.files() == before
    folder.decrypt(resume=True)


def test_what_is_no_stopped_decrypt_is_refused(folder: Place) -> None:
    folder.decrypt()
    whole = folder.files()
    for resume in (False, True):
        with pytest.raises(UsageError, match="is not empty"):
            folder.decrypt(resume=resume)
    assert folder.files() == whole
    with pytest.raises(ParameterError, match="it goes with resume"):
        folder.decrypt(check=True)
    with pytest.raises(ParameterError, match="at least 1, got 0"):
        folder.decrypt(workers=0)
    assert folder.decrypt(folder.root / "new", resume=True).outputs == 9  # with nothing there, it starts


def test_a_decrypt_that_runs_is_not_joined(folder: Place) -> None:
    folder.stop_after(2)
    with JobLocks(folder.back / ".dlmt-decrypt", WHOLE) as locks:
        locks.take()
        with pytest.raises(StoreError, match=rf"the same job runs already \(host .*, pid {os.getpid()}, since"):
            folder.decrypt(resume=True)
        with pytest.raises(StoreError, match=rf"marked by a job that runs \(host .*, pid {os.getpid()}"):
            folder.decrypt()
    folder.decrypt(resume=True)


def test_one_file_and_its_labels(tmp_path: Path, key: dlmt.Key) -> None:
    """What lies beside a target of one file is never written over, and the journal is hidden beside it too."""
    np.save(tmp_path / "a.npy", np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    np.save(tmp_path / "a-labels.npy", np.arange(3))
    store, back, owner = tmp_path / "s" / "b.npy", tmp_path / "back" / "c.npy", lambda _: tmp_path / "own"
    encrypt_store(tmp_path / "a.npy", store, key, SCHEME, owner)
    back.parent.mkdir()
    (back.parent / "c-labels.npy").write_bytes(b"mine")
    with pytest.raises(StoreError, match=r"c-labels\.npy is in the way"):
        decrypt_store(store, back, key, owner)
    assert os.listdir(back.parent) == ["c-labels.npy"]
    (back.parent / "c-labels.npy").unlink()

    class NoLabels(FileOps):
        def rename(self, old: Path, new: Path) -> None:
            if new.name == "c-labels.npy":
                raise OSError(errno.EDQUOT, "quota")
            super().rename(old, new)

    with pytest.raises(OSError, match="quota"):
        decrypt_store(store, back, key, owner, ops=NoLabels())
    assert sorted(os.listdir(back.parent)) == [".c.npy.dlmt-decrypt", ".c.npy.dlmt-job", "c.npy"]
    decrypt_store(store, back, key, owner, resume=True)
    assert sorted(os.listdir(back.parent)) == ["c-labels.npy", "c.npy"]
    assert np.load(back.parent / "c-labels.npy").tolist() == [0, 1, 2]


def test_two_images_of_one_name_are_refused_before_any_work(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmt_fast.pipeline.original_names.OriginalNames.name", lambda self, original: "same.png")
    with pytest.raises(StoreError, match=r"two images or files would both be decrypted to same\.png"):
        folder.decrypt()
    assert not folder.back.exists()


def test_a_store_that_changes_meanwhile_is_noticed(folder: Place) -> None:
    def replaced(standing: Any) -> None:
        if standing.done == 0:
            manifest = folder.store / "dlmt-store.json"
            manifest.write_bytes(manifest.read_bytes()[:-3])

    with pytest.raises(StoreDamagedError):
        folder.decrypt(workers=2, progress=replaced)
    assert not folder.back.exists()


# signals and kills


def command(place: Place, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", MAIN, "decrypt", "store", "back", "--key", "k", "--progress", "none", *words]
    return subprocess.Popen(
        line, cwd=place.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@LINUX
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "2"), (signal.SIGTERM, "1")])
def test_a_signal_stops_cleanly(number: signal.Signals, workers: str, tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, count=120)
    key.save(tmp_path / "k", params=SCHEME.params)
    with command(place, "--workers", workers) as job:
        until = time.monotonic() + 60
        while not list(place.back.glob(".dlmt-decrypt/journal-*")):
            assert job.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        (os.killpg if number == signal.SIGINT else os.kill)(job.pid, number)
        out, err = job.communicate(timeout=60)
    lines = err.splitlines()
    assert (job.returncode, out, len(lines)) == (128 + number, "", 2), err
    assert "of 60 shards are done and stay" in lines[0]
    assert lines[1] == f"dlmt: stopped by {number.name}"
    assert not list(place.back.rglob(".tmp-*"))
    place.decrypt(resume=True)
    assert place.files() == place.whole()


@LINUX
@pytest.mark.parametrize(
    ("count", "kills", "longest"), [(600, 5, 1.0), pytest.param(3000, 50, 2.0, marks=pytest.mark.long)]
)
def test_kills(count: int, kills: int, longest: float, tmp_path: Path, key: dlmt.Key) -> None:
    """Kill parent or a worker at random moments, and go on until it ends."""
    place = Place(tmp_path, key, count=count, shard_size=10)
    key.save(tmp_path / "k", params=SCHEME.params)
    entries = ".dlmt-decrypt/journal-*"
    whole, rng, done, most = place.whole(), random.Random(count), 0, 0
    while done < kills:
        with command(place, "--workers", "2", "--resume") as job:
            before, some = set(place.back.glob(entries)), rng.random() < 0.7
            while job.poll() is None and not (
                set(place.back.glob(entries)) - before if some else (place.back / ".dlmt-job").exists()
            ):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.2 if some else longest))
            victim = rng.choice([job.pid, *children(job.pid)])
            if job.poll() is None:
                os.kill(victim, signal.SIGKILL)
                done += 1
            if victim != job.pid:
                time.sleep(rng.uniform(0, 0.2))
                job.kill()
        most = max(most, len(list(place.back.glob(entries))))
        if not (place.back / ".dlmt-job").exists() and place.back.exists():  # it ended before the kill
            assert place.files() == whole
            shutil.rmtree(place.back)
    with command(place, "--workers", "2", "--resume") as job:
        err = job.communicate(timeout=100)[1]
    assert (job.returncode, err) == (0, "")
    assert most > 0
    assert place.files() == whole


def test_nothing_is_left_in_the_owners_folder_or_tmp(folder: Place) -> None:
    before = {path for path in folder.root.rglob("*") if "back" not in path.parts}
    folder.stop_after(2)
    folder.decrypt(resume=True, ops=OS)
    assert {path for path in folder.root.rglob("*") if not path.is_relative_to(folder.back)} == before
