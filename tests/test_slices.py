"""Slices of one job: real processes that start, finish, fail and are killed beside each other."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import ParameterError, StoreError, UsageError
from dlmt_fast.pipeline import JobOptions, Slice, Summary, encrypt_store, verify_store
from dlmt_fast.pipeline.locks import JobLocks
from dlmt_fast.stores.manifest import read_manifest
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import OS, FileOps, temporary_name

SCHEME = dlmt.DLMT("mat_mmt")


class Place:
    """A source of `count` small images, and jobs on it in this process or as commands."""

    def __init__(self, root: Path, key: dlmt.Key, count: int) -> None:
        self.root, self.key, self.source, self.store = root, key, root / "source", root / "store"
        key.save(root / "k", params=SCHEME.params)
        rng = np.random.default_rng(0)
        for i in range(count):
            (self.source / f"{i % 3}").mkdir(parents=True, exist_ok=True)
            (self.source / f"{i % 3}" / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (3, 8, 8), np.uint8)))

    def owner(self, store_id: str) -> Path:
        return self.root / "k.stores" / store_id

    def encrypt(self, part: Slice | None = None, ops: FileOps = OS, **options: Any) -> Summary:
        chosen = JobOptions(shard_size=2, slice=part or Slice(), **options)
        return encrypt_store(self.source, self.store, self.key, SCHEME, self.owner, chosen, ops=ops)

    def command(self, part: str, *words: str, shard_size: int = 2) -> subprocess.Popen[bytes]:
        line = ["encrypt", "source", "store", "--key", "k", "--shard", part, "--json", "--workers", "1"]
        line += ["--shard-size", str(shard_size), *words]
        return subprocess.Popen(
            [sys.executable, "-c", "from dlmt_fast.cli import main; main()", *line],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @property
    def owned(self) -> Path:
        (found,) = (self.root / "k.stores").iterdir()
        return found

    def files(self) -> dict[str, bytes]:
        """The store without the manifest, whose sealed header has a fresh nonce."""
        found = (path for path in self.store.rglob("*") if path.is_file() and path.name != "dlmt-store.json")
        return {path.relative_to(self.store).as_posix(): path.read_bytes() for path in found}

    def check_whole(self, expected: dict[str, bytes]) -> None:
        """The store is complete, with these bytes and nothing left over."""
        assert self.files() == expected
        verify_store(self.store, self.key, self.owner)
        assert not list((self.root / "k.stores").rglob(".tmp-*"))


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key, 12)


@pytest.fixture
def expected(place: Place) -> dict[str, bytes]:
    """What an undivided job writes."""
    whole = place.store
    place.store = place.root / "whole"
    place.encrypt()
    found, place.store = place.files(), whole
    for path in place.owned.glob("*.*"):
        path.unlink()
    return found


def test_the_words_of_a_slice() -> None:
    assert Slice.parse("3/16") == Slice(3, 16)
    assert [i in Slice(2, 3) for i in range(5)] == [False, True, False, False, True]
    assert str(Slice(2, 3)) == "2/3"
    assert Slice().whole
    for wrong in ("", "1", "1/", "a/b", "-1/2", "1/2/3"):
        with pytest.raises(UsageError, match="takes I/N"):
            Slice.parse(wrong)
    for wrong in ("0/2", "3/2", "0/0"):
        with pytest.raises(ParameterError, match="1 <= I <= N"):
            Slice.parse(wrong)


def test_the_last_slice_finishes_the_store(place: Place, expected: dict[str, bytes]) -> None:
    first = place.encrypt(Slice(2, 3))
    assert (first.inputs, first.outputs, first.shards_left) == (4, 4, 4)
    assert "4 shards are left: 2 of slice 1 (which does not run), 2 of slice 3 (which does not run)" in first.notes[0]
    with pytest.raises(StoreError, match="unfinished"):
        verify_store(place.store)
    second = place.encrypt(Slice(1, 3))
    assert second.shards_left == 2
    assert (place.store / ".dlmt-job").exists()
    last = place.encrypt(Slice(3, 3))
    assert last.shards_left == 0
    assert "slice 3/3 was the last" in last.notes[-1]
    place.check_whole(expected)
    with pytest.raises(UsageError, match="this job's finished store"):
        place.encrypt(Slice(3, 3))
    assert "2 of 2 shards of slice 3/3" in place.encrypt(Slice(3, 3), resume=True).notes[0]
    place.check_whole(expected)


def test_more_slices_than_shards(place: Place, expected: dict[str, bytes]) -> None:
    for number in range(1, 9):
        assert place.encrypt(Slice(number, 8)).inputs == (2 if number < 7 else 0)
    place.check_whole(expected)


def test_a_slice_does_not_overwrite(place: Place) -> None:
    with pytest.raises(ParameterError, match="a slice does not overwrite"):
        place.encrypt(Slice(1, 2), overwrite=True)


def test_a_shard_lost_later_is_the_business_of_its_slice(place: Place, expected: dict[str, bytes]) -> None:
    for number in (1, 2):
        place.encrypt(Slice(number, 2))
    (place.store / "dlmt-shard-00001.txt").unlink()
    assert place.encrypt(Slice(1, 2), resume=True).shards_left == 1
    with pytest.raises(StoreError, match="unfinished"):
        verify_store(place.store)
    assert place.encrypt(Slice(2, 2), resume=True).shards_left == 0
    place.check_whole(expected)


def test_another_target_of_the_same_job_does_not_count(place: Place, expected: dict[str, bytes]) -> None:
    place.encrypt(Slice(1, 2))
    first, place.store = place.store, place.root / "elsewhere"
    assert place.encrypt(Slice(2, 2)).shards_left == 3
    place.store = first
    assert place.encrypt(Slice(2, 2)).shards_left == 0
    place.check_whole(expected)


@contextmanager
def holding(owner: Path, part: Slice) -> Iterator[None]:
    """Another process has a slice's lock."""
    words = "import sys; from pathlib import Path; from dlmt_fast.pipeline import Slice\n"
    words += "from dlmt_fast.pipeline.locks import JobLocks\n"
    words += "locks = JobLocks(Path(sys.argv[1]), Slice.parse(sys.argv[2]))\n"
    words += "with locks.gate():\n    locks.take()\nprint(flush=True)\nsys.stdin.read()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", words, str(owner), str(part)], **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


@pytest.mark.parametrize(
    ("runs", "starts", "words"),
    [
        (Slice(1, 2), Slice(1, 2), r"runs already as slice 1/2 \(host .*, pid \d+, since 20"),
        (Slice(2, 3), Slice(1, 2), r"runs already as slice 2/3 \(host .*, pid \d+, since 20"),
        (Slice(1, 2), Slice(), r"runs already as slice 1/2 \(host .*, pid \d+, since 20"),
        (Slice(), Slice(1, 2), r"runs already \(host .*, pid \d+, since 20"),
    ],
    ids=str,
)
def test_who_excludes_whom(place: Place, runs: Slice, starts: Slice, words: str) -> None:
    place.encrypt(Slice(2, 2))
    before = place.files()
    with holding(place.owned, runs):
        with pytest.raises(StoreError, match=words):
            place.encrypt(starts, resume=True)
        assert place.files() == before
    place.encrypt(starts, resume=True)


def test_another_job_at_the_target_is_named(place: Place) -> None:
    place.encrypt(Slice(1, 2))
    with holding(place.owned, Slice(1, 2)):
        with pytest.raises(
            StoreError, match=r"another job, which runs \(slice 1/2: host .*, pid .*normalize range then"
        ):
            place.encrypt(Slice(2, 2), normalize="none")
        with pytest.raises(StoreError, match=r"a job that runs \(slice 1/2: host .*, pid "):
            place.encrypt()
    with pytest.raises(StoreError, match=r"another job, so it cannot be resumed: .*normalize range then, none now"):
        place.encrypt(Slice(2, 2), normalize="none")
    with pytest.raises(StoreError, match="runs or was stopped or killed"):
        place.encrypt()


def test_a_running_slice_is_left_to_finish(place: Place, expected: dict[str, bytes]) -> None:
    place.encrypt(Slice(2, 2))
    with holding(place.owned, Slice(2, 2)):
        done = place.encrypt(Slice(1, 2))
        assert done.shards_left == 0
        assert "0 shards are left: 0 of slice 2 (host " in done.notes[0]
        assert (place.store / ".dlmt-job").exists()
    place.encrypt(Slice(2, 2), resume=True)
    place.check_whole(expected)


def test_a_whole_job_and_slices_go_on_with_each_other(place: Place, expected: dict[str, bytes]) -> None:
    place.encrypt(Slice(1, 3))
    assert "2 of 6 shards were done already" in place.encrypt(resume=True).notes[0]
    place.check_whole(expected)


class FullDisk(FileOps):
    """No space for the files of a shard, by default 3, which is one of slice 2/2."""

    def __init__(self, shard: str = "-00003-") -> None:
        self.shard = shard

    def create(self, path: Path, mode: int = 0o666) -> int:
        if self.shard in path.name:
            raise OSError(errno.ENOSPC, "no space left", str(path))
        return super().create(path, mode)


def test_a_failing_slice_touches_no_other(place: Place, expected: dict[str, bytes]) -> None:
    """The files of other slices stay, their temporaries too; its own go."""
    place.encrypt(Slice(1, 2))
    store_id = place.owned.name
    done = place.files()
    folders = (place.store / "0", place.owned)
    theirs = [folder / f".tmp-{store_id}-00002-{7:016x}" for folder in folders]
    for path in (*theirs, *(folder / f".tmp-{store_id}-00003-{7:016x}" for folder in folders)):
        path.write_bytes(b"half")
    with pytest.raises(OSError, match="no space left"):
        place.encrypt(Slice(2, 2), ops=FullDisk())
    assert sorted(place.root.rglob(".tmp-*")) == sorted(theirs)
    assert len(place.files().items() - done.items()) == 3 + 1  # shard 1, of slice 2/2, and a temporary of shard 2
    assert done.items() <= place.files().items()
    for left in theirs:
        left.unlink()
    assert "1 of 3 shards of slice 2/2 were done already" in place.encrypt(Slice(2, 2), resume=True).notes[0]
    place.check_whole(expected)


class Beside(FileOps):
    """Has another slice do its part just before the first file of this name is published."""

    def __init__(self, name: str, other: Callable[[], object]) -> None:
        self.name, self.other = name, other

    def rename(self, old: Path, new: Path) -> None:
        if new.name == self.name:
            self.name = ""
            self.other()
        super().rename(old, new)


@pytest.mark.parametrize("name", ["sources-00000.bin", "journal-00001.json"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_slice_leaves_what_another_is_writing(
    name: str, fails: bool, place: Place, expected: dict[str, bytes]
) -> None:
    """It starts, works and ends or fails while the other one holds a temporary in the owner's folder; both of them may
    write the list of sources."""

    def other() -> None:
        if not fails:
            assert place.encrypt(Slice(1, 2)).outputs == 6
            return
        with pytest.raises(OSError, match="no space left"):
            place.encrypt(Slice(1, 2), ops=FullDisk("-00004-"))

    done = place.encrypt(Slice(2, 2), ops=Beside(name, other))
    assert (done.outputs, done.shards_left) == (6, 1 if fails else 0)
    place.encrypt(Slice(1, 2), resume=True)
    place.check_whole(expected)


def test_what_a_killed_slice_left_of_no_shard_goes_when_nobody_writes(place: Place, expected: dict[str, bytes]) -> None:
    """Whose it is nothing tells: so it goes when a slice starts or ends alone."""
    place.encrypt(Slice(1, 2))
    left = place.owned / temporary_name(place.owned.name, None)
    left.write_bytes(b"half")
    with holding(place.owned, Slice(1, 2)):
        place.encrypt(Slice(2, 2))
        assert left.exists()
    place.encrypt(Slice(2, 2), resume=True)
    assert not left.exists()
    place.check_whole(expected)
    (place.store / "dlmt-shard-00001.txt").unlink()
    place.encrypt(Slice(1, 2), resume=True)
    left.write_bytes(b"half")
    with pytest.raises(OSError, match="no space left"):
        place.encrypt(Slice(2, 2), ops=FullDisk("-00001-"), resume=True)
    assert not left.exists()


def test_no_slice_alone_is_the_one_of_what_belongs_to_no_shard() -> None:
    assert None in Slice()
    assert None not in Slice(1, 2)
    assert None not in Slice(2, 2)


def test_what_a_killed_slice_left_of_labels_goes_at_the_end(place: Place) -> None:
    """Labels and metadata of Zarr lie in folders of their own."""
    pytest.importorskip("zarr")

    def encrypt(part: Slice) -> Summary:
        options = JobOptions(shard_size=2, slice=part)
        return encrypt_store(place.source, place.store, place.key, SCHEME, place.owner, options, target_named="zarr")

    store_id = encrypt(Slice(1, 2)).store_id
    folders = [place.store, *(path for path in place.store.rglob("*") if path.is_dir())]
    assert len(folders) > 1
    for folder in folders:
        (folder / temporary_name(store_id, None)).write_bytes(b"half")
    assert encrypt(Slice(2, 2)).shards_left == 0
    assert not list(place.store.rglob(".*"))
    verify_store(place.store, place.key, place.owner)


def test_slices_start_and_end_together(place: Place, expected: dict[str, bytes]) -> None:
    """Held at the gate until all wait there, then let in at the same moment; so then they race to the end."""
    probe = place.encrypt(Slice(1, 4))
    for path in sorted(place.store.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.store.rmdir()
    locks = JobLocks(place.owner(probe.store_id), Slice())
    with locks.gate():
        jobs = [place.command(f"{number}/4") for number in (1, 2, 3, 4)]
        time.sleep(2.5)
        assert [job.poll() for job in jobs] == [None] * 4
        assert not place.store.exists()
    answers = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4, answers
    found = [json.loads(out) for out, _ in answers]
    assert sum(answer["outputs"] for answer in found) == 12
    assert sum("was the last" in " ".join(answer["notes"]) for answer in found) == 1
    place.check_whole(expected)


def test_a_killed_slice_is_resumed(tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, 300)
    killed, other = place.command("1/2"), place.command("2/2")
    deadline = time.monotonic() + 60
    while not list(place.root.rglob("journal-00010.json")):  # of the first slice, which has 75 of the 150 shards
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    out, _ = other.communicate()
    assert other.returncode == 0
    left = json.loads(out)["shards_left"]
    assert 0 < left < 75
    assert f"{left} shards are left: {left} of slice 1 (which does not run)" in json.loads(out)["notes"][0]
    again = place.command("1/2", "--resume")
    out, _ = again.communicate()
    assert again.returncode == 0
    assert "was the last" in json.loads(out)["notes"][-1]
    manifest = read_manifest(place.store)
    assert (manifest.count, len(manifest.shards)) == (300, 150)
    found, place.store = place.files(), place.root / "whole"
    place.encrypt()
    place.check_whole(found)
