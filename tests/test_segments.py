"""Large arrays in one file, done in segments: the bytes of a job that does it in one go, resumed in its middle."""

from __future__ import annotations

import errno
import gzip
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import ParameterError, StoreDamagedError, StoreError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.owner import OwnerFolder
from dlmt_fast.pipeline.seal import StoreSeal
from dlmt_fast.stores.contract import Array
from dlmt_fast.stores.manifest import manifest_path, read_manifest
from dlmt_fast.stores.npy_arrays import npy_file
from dlmt_fast.stores.publish import OS, FileOps
from dlmt_fast.stores.segments import SEGMENT_BYTES, DamagedSegmentError, PartFile, cut

SCHEME = dlmt.DLMT("mat_mmt")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
KINDS = ["npy", "channels last", "idx", "idx.gz", "gz to plain"]
SEGMENTS = 9


class Place:
    """A source of one array of 28 images, a job that does three at once, and one that does all."""

    def __init__(self, root: Path, key: dlmt.Key, kind: str = "npy", count: int = 28, side: int = 6) -> None:
        self.root, self.key = root, key
        self.image = side * side * (3 if kind == "channels last" else 1)
        shape = (count, side, side, 3) if kind == "channels last" else (count, side, side)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        name = {"npy": "a.npy", "channels last": "a.npy", "idx": "a-idx3-ubyte", "idx.gz": "a-idx3-ubyte.gz"}
        self.source = root / name.get(kind, "a-idx3-ubyte.gz")
        self.store = root / "out" / (self.source.name if kind != "gz to plain" else "a-idx3-ubyte")
        data = struct.pack(">BBBB3I", 0, 0, 8, 3, *shape[:3]) + pixels.tobytes()
        if self.source.suffix == ".npy":
            np.save(self.source, pixels)
        else:
            self.source.write_bytes(gzip.compress(data) if self.source.suffix == ".gz" else data)

    def owner(self, store_id: str) -> Path:
        return self.root / "owner"

    def options(self, segmented: bool = True, **options: Any) -> JobOptions:
        least = 3 * self.image if segmented else SEGMENT_BYTES
        return JobOptions(**{"normalize": "minmax", "segment_bytes": least} | options)

    def encrypt(self, ops: FileOps = OS, tell: Any = lambda text: None, **options: Any) -> Summary:
        return encrypt_store(
            self.source, self.store, self.key, SCHEME, self.owner, self.options(**options), ops=ops, tell=tell
        )

    def whole(self, **options: Any) -> dict[str, Any]:
        """What the job leaves that does it in one go."""
        other, store = self.root / "other", self.root / "in-one-go" / self.store.name
        encrypt_store(self.source, store, self.key, SCHEME, lambda _: other, self.options(segmented=False, **options))
        return self.content(store, other)

    def content(self, store: Path | None = None, owner: Path | None = None) -> dict[str, Any]:
        """Everything on disk, with what is sealed opened."""
        store, owner = store or self.store, owner or self.root / "owner"
        manifest = read_manifest(store)
        assert sorted(path.name for path in store.parent.iterdir()) == sorted([store.name, manifest_path(store).name])
        seal = StoreSeal(self.key, manifest.store_id)
        shard = manifest.shards[0]
        found: dict[str, Any] = {path.name: path.read_bytes() for path in owner.glob("*.json")}
        assert sorted(path.name for path in owner.glob("*.bin")) == ["ledger-00000.bin", "sources-00000.bin"]
        found["ledger"] = OwnerFolder(owner, seal).read_ledger(0, shard.sha256)
        found["header"] = seal.open_header(manifest.sealed)
        found |= {
            "data": store.read_bytes(),
            "shards": manifest.shards,
            "count": manifest.count,
            "id": manifest.store_id,
        }
        return found

    def entries(self) -> set[str]:
        return {path.name for path in (self.root / "owner").glob("segment-*")}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key, request.param)


@pytest.fixture
def npy(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


class Failing(FileOps):
    """Fails at the n-th use of an operation, for good."""

    def __init__(self, operation: str, uses: int, error: int = errno.ENOSPC, prefix: str = "") -> None:
        self.operation, self.left, self.error, self.prefix = operation, uses, error, prefix

    def _maybe(self, operation: str, path: Path | None = None) -> None:
        if operation == self.operation and (path is None or path.name.startswith(self.prefix)):
            if self.left == 0:
                raise OSError(self.error, "it failed")
            self.left -= 1

    def datasync(self, descriptor: int) -> None:
        self._maybe("datasync")
        super().datasync(descriptor)

    def reopen(self, path: Path) -> int:
        self._maybe("reopen", path)
        return super().reopen(path)

    def create(self, path: Path, mode: int = 0o666) -> int:
        self._maybe("create", path)
        return super().create(path, mode)

    def rename(self, old: Path, new: Path) -> None:
        self._maybe("rename", new)
        super().rename(old, new)


def test_segments_of_a_file() -> None:
    def sizes(count: int, item: int, least: int) -> list[int]:
        file = npy_file("x.npy", "uint8", (count, 1, item))
        places = cut(file, least)
        assert [place for part in places for place in part] == list(range(count))
        return [len(part) for part in places]

    assert sizes(10, 5, 10) == [2] * 5
    assert sizes(11, 5, 10) == [2, 2, 2, 2, 3]
    assert sizes(10, 5, 11) == [3, 3, 4]
    assert sizes(3, 5, 10) == [3]
    assert sizes(1, 5, 1) == [1]
    assert sizes(0, 5, 10) == [0]
    assert cut(npy_file("x.npy", "float32", (60000, 28, 28)), SEGMENT_BYTES) == [range(21400), range(21400, 60000)]
    assert len(cut(npy_file("x.npy", "uint8", (60000, 28, 28)), SEGMENT_BYTES)) == 1  # Fashion-MNIST
    with pytest.raises(ParameterError, match="segment_bytes must be at least 1"):
        JobOptions(segment_bytes=0)


@pytest.mark.parametrize(("normalize", "dtype"), [("minmax", None), ("none", None), ("range", "float32")])
def test_the_same_on_disk_as_in_one_go(normalize: str, dtype: str | None, place: Place) -> None:
    options = {"normalize": normalize, "dtype": dtype}
    whole = place.whole(**options)
    summary = place.encrypt(**options)
    assert (summary.inputs, summary.outputs) == (28, 28)
    assert place.content() == whole
    verify_store(place.store, place.key, place.owner)
    decrypt_store(place.store, place.root / "back" / place.source.name, place.key, place.owner)


@pytest.mark.parametrize("kind", ["npy", "channels last", "idx"])
def test_a_shuffled_array_is_the_same_too(kind: str, tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, kind)
    whole = place.whole(shuffle=True)
    with pytest.raises(OSError, match="it failed"):
        place.encrypt(Failing("datasync", 4), shuffle=True)
    summary = place.encrypt(shuffle=True, resume=True)
    assert summary.outputs == 28
    assert "resumed: some segments of a large array were done already" in summary.notes
    assert place.content() == whole
    back = place.root / "back" / place.source.name
    decrypt_store(place.store, back, key, place.owner, segment_bytes=3 * place.image)
    assert back.stat().st_size == place.source.stat().st_size


@pytest.mark.parametrize("kind", ["npy", "idx.gz"])
def test_workers_change_no_byte(kind: str, tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, kind, count=100)
    whole = place.whole()
    assert place.encrypt(workers=2).outputs == 100
    assert place.content() == whole


@pytest.mark.parametrize(("operation", "uses", "done"), [("datasync", 4, 4), ("reopen", 1, 1), ("create", 8, 4)])
def test_a_stopped_job_goes_on_in_the_middle(operation: str, uses: int, done: int, place: Place) -> None:
    whole = place.whole()
    told: list[str] = []
    with pytest.raises(OSError, match="it failed"):
        place.encrypt(Failing(operation, uses), told.append)
    assert told == [
        "0 of 1 shards are done and stay, and of the next some segments, nothing half-written does; "
        "the same command with --resume goes on"
    ]
    assert not place.store.exists()
    assert len(list(place.store.parent.glob(".part-*"))) == 1
    assert not list(place.root.rglob(".tmp-*"))
    assert len(place.entries()) == done
    before = {name: (place.root / "owner" / name).stat().st_mtime_ns for name in place.entries()}
    seen: list[int] = []
    with pytest.raises(OSError, match="it failed"):
        place.encrypt(Failing("datasync", SEGMENTS - done - 1), resume=True)
    assert len(place.entries()) == SEGMENTS - 1
    assert {name: (place.root / "owner" / name).stat().st_mtime_ns for name in before} == before
    encrypt_store(
        place.source, place.store, place.key, SCHEME, place.owner, place.options(resume=True),
        progress=lambda standing: seen.append(standing.done),
    )  # fmt: skip
    assert seen[:3] == [0, 0, 24]
    assert seen[-1] == 28
    assert place.content() == whole


@pytest.mark.parametrize("operation", ["datasync", "reopen"])
def test_before_a_segment_counts_the_target_is_left_as_it_was(operation: str, npy: Place) -> None:
    with pytest.raises(OSError, match="it failed"):
        npy.encrypt(Failing(operation, 0))
    assert not npy.store.parent.exists()
    assert npy.entries() == set()
    npy.encrypt()


@pytest.mark.parametrize("name", ["a", "journal-", "ledger-", "quarantine-"])
def test_a_failure_at_the_end_keeps_every_segment(name: str, place: Place) -> None:
    """Also between the file's name and its entry: it is not done again, and not visible before it counts."""
    whole = place.whole()
    with pytest.raises(OSError, match="it failed"):
        place.encrypt(Failing("rename", 0, prefix=name))
    assert not place.store.exists()
    assert len(place.entries()) == SEGMENTS
    with_one_more = Failing("datasync", 0)
    place.encrypt(with_one_more, resume=True)
    assert place.content() == whole


def test_an_error_that_passes_costs_one_segment(npy: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmt_fast.stores.attempts._PAUSE", 0.0)
    whole = npy.whole()

    class Once(Failing):
        def datasync(self, descriptor: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.EIO, "it failed")
            OS.datasync(descriptor)

    ops = Once("", 4)
    npy.encrypt(ops)
    assert ops.left == 4 - SEGMENTS - 1
    assert npy.content() == whole


@pytest.mark.parametrize("what", ["entry cut", "entry gone", "entry of another", "part gone", "part cut"])
def test_only_what_does_not_count_is_done_again(what: str, npy: Place) -> None:
    whole = npy.whole()
    with pytest.raises(OSError, match="it failed"):
        npy.encrypt(Failing("datasync", 5))
    entry, part = npy.root / "owner" / "segment-00000-00002.bin", next(npy.store.parent.glob(".part-*"))
    if what == "entry cut":
        entry.write_bytes(entry.read_bytes()[:-1])
    elif what == "entry gone":
        entry.unlink()
    elif what == "entry of another":
        entry.write_bytes((npy.root / "owner" / "segment-00000-00001.bin").read_bytes())
    elif what == "part gone":
        part.unlink()
    else:
        os.truncate(part, 200)
    ops = Failing("datasync", SEGMENTS)
    npy.encrypt(ops, resume=True)
    assert SEGMENTS - ops.left == (5 if "entry" in what else 9)
    assert npy.content() == whole


def test_bytes_that_changed_on_the_disk_are_found_and_done_again(place: Place) -> None:
    whole = place.whole()
    with pytest.raises(OSError, match="it failed"):
        place.encrypt(Failing("datasync", 5))
    part = next(place.store.parent.glob(".part-*"))
    data = bytearray(part.read_bytes())
    data[-28 * place.image + 8 * place.image] ^= 1  # the ninth image, in the third segment
    part.write_bytes(data)
    with pytest.raises(StoreDamagedError, match="segment 2 is not on the disk as it was written"):
        place.encrypt(resume=True)
    assert place.entries() == {f"segment-00000-{i:05d}.bin" for i in range(SEGMENTS) if i != 2}
    assert not place.store.exists()
    place.encrypt(resume=True)
    assert place.content() == whole


class Decrypts:
    """Decrypts of a place's store, by segments of three images."""

    def __init__(self, place: Place) -> None:
        self.place, self.back = place, place.root / "back" / place.store.name
        place.encrypt(segmented=False)

    def decrypt(self, ops: FileOps = OS, target: Path | None = None, segmented: bool = True, **options: Any) -> Summary:
        place, least = self.place, 3 * self.place.image if segmented else SEGMENT_BYTES
        back = target or self.back
        return decrypt_store(place.store, back, place.key, place.owner, ops=ops, segment_bytes=least, **options)

    def whole(self) -> bytes:
        other = self.place.root / "in-one-go" / self.back.name
        self.decrypt(target=other, segmented=False)
        return other.read_bytes()

    def entries(self) -> list[Path]:
        return sorted(self.back.parent.glob(".*.dlmt-decrypt/segment-*"))

    def check(self, whole: bytes) -> None:
        assert [path.name for path in self.back.parent.iterdir()] == [self.back.name]
        assert self.back.read_bytes() == whole


@pytest.mark.parametrize(
    ("operation", "uses", "prefix"), [("datasync", 4, ""), ("rename", 0, "a"), ("rename", 0, "jour")]
)
def test_a_stopped_decrypt_goes_on_in_the_middle(operation: str, uses: int, prefix: str, place: Place) -> None:
    job, told = Decrypts(place), list[str]()
    whole = job.whole()
    with pytest.raises(OSError, match="it failed"):
        job.decrypt(Failing(operation, uses, prefix=prefix), tell=told.append)
    assert told == [
        "0 of 1 shards are done and stay, and of the next some segments, nothing half-written does; "
        "the same command with --resume goes on"
    ]
    assert not job.back.exists()
    done = 4 if uses else SEGMENTS
    assert len(job.entries()) == done
    ops = Failing("datasync", SEGMENTS)
    summary = job.decrypt(ops, resume=True)
    assert summary.outputs == 28
    assert summary.notes == ["resumed: some segments of a large array were done already"]
    assert SEGMENTS - ops.left == SEGMENTS - done
    job.check(whole)


@pytest.mark.parametrize("what", ["entry cut", "part gone", "bytes"])
def test_what_a_stopped_decrypt_lost_is_done_again(what: str, place: Place) -> None:
    job = Decrypts(place)
    whole = job.whole()
    with pytest.raises(OSError, match="it failed"):
        job.decrypt(Failing("datasync", 4))
    part = next(job.back.parent.glob(".part-*"))
    if what == "entry cut":
        job.entries()[2].write_bytes(job.entries()[2].read_bytes()[:-1])
    elif what == "part gone":
        part.unlink()
    else:
        data = bytearray(part.read_bytes())
        data[-20 * place.image] ^= 1
        part.write_bytes(data)
        with pytest.raises(StoreDamagedError, match="segment 2 is not on the disk as it was written"):
            job.decrypt(resume=True)
        assert len(job.entries()) == SEGMENTS - 1
    job.decrypt(resume=True)
    job.check(whole)


def test_a_part_file_is_what_it_says(tmp_path: Path) -> None:
    file = npy_file("x.npy", "uint8", (4, 2, 3))
    part = PartFile(tmp_path, "0" * 32, 0, "x.npy", file)
    part.begin()
    assert part.there()
    images: Array = np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3)
    done = []
    for places in (range(2, 4), range(2)):  # in any order
        writer = part.writer(places)
        with pytest.raises(StoreError, match="images came for places"):
            writer.write(range(places.start + 1, places.stop), [], images[:1])
        writer.write(places, [], images[places.start : places.stop])
        assert writer.publish().count == 2
        done.append(writer.written)
    with pytest.raises(DamagedSegmentError, match="segment 0 is not on the disk"):
        part.seal(done)
    published = part.seal(done[::-1])
    part.publish()
    assert (published.count, published.size) == (4, (tmp_path / "x.npy").stat().st_size)
    assert np.array_equal(np.load(tmp_path / "x.npy"), images[:, 0])
    part.take_back()
    assert [path.name for path in tmp_path.iterdir()] == [part.path.name]


def test_a_segmented_store_is_replaced(npy: Place) -> None:
    """The old store is whole until the new file is."""
    npy.encrypt(normalize="none", segmented=False)
    old = npy.store.read_bytes()
    (npy.root / "owner").rename(npy.root / "old-owner")
    with pytest.raises(OSError, match="it failed"):
        npy.encrypt(Failing("datasync", 3), overwrite=True)
    assert npy.store.read_bytes() == old
    assert verify_store(npy.store).outputs == 28
    npy.encrypt(resume=True)
    assert npy.content() == npy.whole()


def test_many_bounds_are_refused_in_words(npy: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmt_fast.pipeline.seal._MOST", 100)
    with pytest.raises(StoreError, match=r"the bounds of shard 0 take \d+ bytes, and a ledger holds at most 100"):
        npy.encrypt()


# kills

JOB = """
import sys
from pathlib import Path
import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, encrypt_store
if __name__ == "__main__":
    root, name, least = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    options = JobOptions(normalize="minmax", workers=2, resume=True, segment_bytes=least)
    key, scheme = dlmt.Key(bytes(range(32))), dlmt.DLMT("mat_mmt")
    encrypt_store(root / name, root / "out" / name, key, scheme, lambda _: root / "owner", options)
"""


def children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@LINUX
@pytest.mark.parametrize(("kind", "kills"), [("npy", 5), pytest.param("npy", 40, marks=pytest.mark.long)])
def test_kills(kind: str, kills: int, tmp_path: Path, key: dlmt.Key) -> None:
    """Kill parent or a worker at random moments, and go on until it ends."""
    place = Place(tmp_path, key, kind, count=240 * (1 + kills // 10), side=64)
    whole, rng, done, most = place.whole(), random.Random(kills), 0, 0
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path), place.source.name, str(3 * place.image)]
    while done < kills:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as job:
            before = place.entries()
            while job.poll() is None and rng.random() < 0.99 and not place.entries() - before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.15))
            victim = rng.choice([job.pid, *children(job.pid)])
            if job.poll() is None:
                os.kill(victim, signal.SIGKILL)
                done += 1
            if victim != job.pid:
                time.sleep(rng.uniform(0, 0.2))
                job.kill()
        most = max(most, len(place.entries()))
        if job.returncode == 0:
            assert place.content() == whole
            place.store.unlink()
            manifest_path(place.store).unlink()
    ended = subprocess.run(command, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert most > 0
    assert place.content() == whole
