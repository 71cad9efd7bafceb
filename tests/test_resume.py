"""Resuming a job: what is redone, what is refused, and kills of parent and workers at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import StoreError
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, verify_store
from dlmt_fast.stores.png import encode_png

SCHEME = dlmt.DLMT("mat_mmt")


class Place:
    def __init__(self, root: Path, key: dlmt.Key, count: int) -> None:
        self.root, self.key, self.source, self.store = root, key, root / "source", root / "store"
        rng = np.random.default_rng(0)
        for i in range(count):
            (self.source / f"{i % 3}").mkdir(parents=True, exist_ok=True)
            (self.source / f"{i % 3}" / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (3, 8, 8), np.uint8)))

    def owner(self, store_id: str) -> Path:
        return self.root / "k.stores" / store_id

    def encrypt(self, shard_size: int = 2, **options: object) -> Summary:
        chosen = JobOptions(shard_size=shard_size, **options)  # type: ignore[arg-type]
        return encrypt_store(self.source, self.store, self.key, SCHEME, self.owner, chosen)

    def files(self) -> dict[str, bytes]:
        """The store without the manifest, whose sealed header has a fresh nonce."""
        found = (path for path in self.store.rglob("*") if path.is_file() and path.name != "dlmt-store.json")
        return {str(path): path.read_bytes() for path in found}


def test_workers_change_no_byte(tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, 9)
    place.encrypt()
    one = place.files()
    for path in [*map(Path, one), place.store / "dlmt-store.json"]:
        path.unlink()
    for folder in place.store.iterdir():
        folder.rmdir()
    assert place.encrypt(workers=2).outputs == 9
    assert place.files() == one
    verify_store(place.store, key, place.owner)


@pytest.mark.parametrize("shard", [0, 1, 2])
@pytest.mark.parametrize("what", ["journal", "ledger", "quarantine", "listing", "image"])
def test_only_what_does_not_count_is_done_again(what: str, shard: int, tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, 6)
    store_id = place.encrypt().store_id
    whole = place.files()
    own = {path.name: path.stat().st_mtime_ns for path in place.owner(store_id).glob("journal*")}
    path = {
        "journal": place.owner(store_id) / f"journal-{shard:05d}.json",
        "ledger": place.owner(store_id) / f"ledger-{shard:05d}.bin",
        "quarantine": place.owner(store_id) / f"quarantine-{shard:05d}.json",
        "listing": place.store / f"dlmt-shard-{shard:05d}.txt",
        "image": place.store / (place.store / f"dlmt-shard-{shard:05d}.txt").read_text().splitlines()[0].split(" ")[2],
    }[what]
    path.write_bytes(path.read_bytes()[:-1])
    assert "2 of 3 shards" in place.encrypt(resume=True).notes[0]
    assert place.files() == whole
    after = {path.name: path.stat().st_mtime_ns for path in place.owner(store_id).glob("journal*")}
    assert {name for name in own if own[name] != after[name]} == {f"journal-{shard:05d}.json"}
    verify_store(place.store, key, place.owner)
    assert "3 of 3 shards" in place.encrypt(resume=True).notes[0]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]", b"1e400", b"null"])
def test_damage_to_every_entry_means_redo(data: bytes, tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, 6)
    owned = place.owner(place.encrypt().store_id)
    whole = place.files()
    for path in owned.glob("journal-*"):
        path.write_bytes(data)
    assert place.encrypt(resume=True).outputs == 6
    assert place.files() == whole
    verify_store(place.store, key, place.owner)


@pytest.mark.parametrize("damaged", [[], [0], [0, 1]], ids=str)
def test_an_owner_folder_of_another_key_is_refused(
    damaged: list[int], tmp_path: Path, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One entry that holds tells whose it is, whichever that is."""
    place = Place(tmp_path, key, 6)
    monkeypatch.setattr(place, "owner", lambda store_id: tmp_path / "own")
    place.encrypt()
    for shard in damaged:
        (tmp_path / "own" / f"journal-{shard:05d}.json").write_bytes(b"{}")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "own").glob("*.*")}
    place.key, place.store = dlmt.Key(bytes(32)), tmp_path / "elsewhere"
    with pytest.raises(StoreError, match=r"belongs to another job \(the key is another\); choose another --owner"):
        place.encrypt()
    assert {path.name: path.read_bytes() for path in (tmp_path / "own").glob("*.*")} == kept


def test_a_damaged_record_is_no_reason_to_lose_a_ledger(tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, 6)
    owned = place.owner(place.encrypt().store_id)
    (owned / "job.json").write_bytes(b"{")
    with pytest.raises(StoreError, match=r"holds a damaged job.json; choose another --owner"):
        place.encrypt(resume=True)


def test_check_compares_digests(tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, 6)
    place.encrypt()
    whole = place.files()
    path = next(Path(name) for name in whole if name.endswith(".png"))
    path.write_bytes(bytes(len(whole[str(path)])))
    place.encrypt(resume=True)
    assert place.files() != whole
    place.encrypt(resume=True, check=True)
    assert place.files() == whole


@pytest.mark.parametrize("what", ["source", "option", "key", "shard size"])
def test_another_job_is_refused_and_says_what_differs(what: str, tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, 6)
    place.encrypt()
    options: dict[str, object] = {}
    if what == "source":
        os.utime(place.source / "0" / "0.png", ns=(1, 1))
    elif what == "option":
        options["normalize"] = "none"
    elif what == "key":
        place.key = dlmt.Key(bytes(32))
    else:
        options["shard_size"] = 3
    whole = place.files()
    words = {
        "source": r"the source's files: 1 changed \(0/0.png\)",
        "option": "options: normalize range then, none now",
        "key": "the key is another",
        "shard size": "shard size 2 then, 3 now",
    }[what]
    with pytest.raises(StoreError, match=words):
        place.encrypt(resume=True, **options)  # type: ignore[arg-type]
    assert place.files() == whole


def children(pid: int) -> list[int]:
    """The worker processes of a job."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def kill_and_resume(place: Place, kills: int, shard_size: int, longest: float, seed: int) -> None:
    """Kill a job `kills` times, parent or a worker, resume until it ends, and compare with an uninterrupted run."""
    rng = random.Random(seed)
    place.key.save(place.root / "k", params=SCHEME.params)
    words = ["encrypt", "source", "store", "--key", "k", "--resume", "--workers", "2", "--shard-size", str(shard_size)]
    command = [sys.executable, "-c", "from dlmt_fast.cli import main; main()", *words]
    done = 0
    while done < kills:
        with subprocess.Popen(command, cwd=place.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as job:
            time.sleep(rng.uniform(0.2, longest))
            workers = children(job.pid)
            victim = rng.choice([job.pid, *workers])
            if job.poll() is None:
                os.kill(victim, signal.SIGKILL)
                done += 1
            if victim != job.pid:
                time.sleep(rng.uniform(0, 0.2))
                job.kill()
        if job.returncode == 0:  # it ended before the kill: lose a shard, so that there is work again
            rng.choice(sorted(place.store.glob("dlmt-shard-*"))).unlink()
    subprocess.run(command, cwd=place.root, check=True, capture_output=True)
    interrupted = place.files()
    assert not [name for name in interrupted if ".tmp-" in name or ".dlmt-job" in name]
    assert not list((place.root / "k.stores").rglob(".tmp-*"))
    verify_store(place.store, place.key, place.owner)
    place.store.rename(place.root / "interrupted")
    place.encrypt(shard_size)
    assert place.files() == interrupted


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")
@pytest.mark.parametrize(
    ("count", "shard_size", "longest"), [(1000, 10, 0.8), pytest.param(5000, 90, 2.5, marks=pytest.mark.long)]
)
def test_fifty_kills(count: int, shard_size: int, longest: float, tmp_path: Path, key: dlmt.Key) -> None:
    kill_and_resume(Place(tmp_path, key, count), 50, shard_size, longest, count)
