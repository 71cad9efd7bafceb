"""What the owner's folder tells of a store: counts that add up, the source's files, the versions of a job."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.canonical import canonical_json
from dlmt_fast.errors import StoreDamagedError, StoreError
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, job, sources, task, verify_store, worker
from dlmt_fast.pipeline.owner import OwnerFolder
from dlmt_fast.pipeline.seal import StoreSeal
from dlmt_fast.stores.contract import FileStamp
from dlmt_fast.stores.png import encode_png

SCHEME = dlmt.DLMT("mat_mmt")


class Place:
    """Seven images, two of them damaged, in shards of three."""

    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source, self.store = root, key, root / "source", root / "store"
        self.source.mkdir()
        for i in range(7):
            data = encode_png(np.full((1, 4, 4), i, np.uint8))
            (self.source / f"secret{i}.png").write_bytes(b"x" if i in (0, 4) else data)

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, **options: Any) -> Summary:
        chosen = JobOptions(**{"shard_size": 3, "on_error": "quarantine", **options})
        return encrypt_store(self.source, self.store, self.key, SCHEME, self.owner, chosen)

    def notes(self) -> list[str]:
        return verify_store(self.store, self.key, self.owner).notes


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


# counts


@pytest.mark.parametrize("normalize", ["range", "minmax"])
def test_the_counts_add_up(normalize: str, place: Place) -> None:
    place.encrypt(normalize=normalize)
    assert "the owner's folder agrees: 7 inputs = 5 outputs + 2 quarantined" in place.notes()


def test_without_the_owners_folder_the_inputs_are_unknown(place: Place) -> None:
    owner = place.owner(place.encrypt().store_id)
    owner.rename(place.root / "elsewhere")
    assert place.notes()[0] == "the key opens the header, and 5 images decrypt"
    assert "owner's folder is not at hand" in place.notes()[1]
    assert len(verify_store(place.store).notes) == 0


def entry(**changed: int) -> Callable[[bytes], bytes]:
    """A journal entry with other numbers and a good checksum."""

    def change(data: bytes) -> bytes:
        found = {name: value for name, value in json.loads(data).items() if name != "sha256"} | changed
        return canonical_json(found | {"sha256": hashlib.sha256(canonical_json(found)).hexdigest()})

    return change


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes] | None, str]] = {
    "no entry": ("journal-00001.json", None, "no journal entry of shard 1"),
    "no list": ("quarantine-00001.json", None, "no readable quarantine list of shard 1"),
    "an unreadable list": ("quarantine-00001.json", lambda data: data[:-1], "no readable quarantine list of shard 1"),
    "fewer inputs": ("journal-00001.json", entry(inputs=2), "counts of shard 1 do not add up: 3 inputs by the job"),
    "more inputs": ("journal-00001.json", entry(inputs=4, quarantined=2), "counts of shard 1 do not add up"),
    "more quarantined": ("journal-00001.json", entry(quarantined=2), "counts of shard 1 do not add up"),
    "an empty list": ("quarantine-00001.json", lambda data: b"[]", "2 outputs and quarantined by the store"),
    "another record": ("job.json", lambda data: data.replace(b'"crop"', b'"pad"'), "damaged or of another job"),
    "a record with floats": ("job.json", lambda data: data.replace(b'"crop"', b"1.5"), "damaged or of another job"),
    "a record that is none": ("job.json", lambda data: data[:-1], "job.json is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_counts_that_do_not_add_up(name: str, place: Place) -> None:
    owner = place.owner(place.encrypt().store_id)
    file, change, words = DAMAGE[name]
    path = owner / file
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    with pytest.raises(StoreDamagedError, match=words):
        place.notes()


def test_a_ledger_with_fewer_names(place: Place) -> None:
    store_id = place.encrypt().store_id
    owner = OwnerFolder(place.owner(store_id), StoreSeal(place.key, store_id))
    digest = str((owner.read_journal(1) or {})["output_sha256"])
    ledger = owner.read_ledger(1, digest) or {}
    fewer = ledger | {"names": ledger["names"][1:]}
    owner.write_ledger(1, StoreSeal(place.key, store_id).seal_ledger(1, digest, fewer))
    with pytest.raises(StoreDamagedError, match="2 names and quarantined by the ledger"):
        place.notes()


# the source's files


def test_files_that_changed_are_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FILES_A_PART", 3)
    owner = place.owner(place.encrypt().store_id)
    assert len(list(owner.glob("sources-*.bin"))) == 3
    assert all(b"secret" not in path.read_bytes() for path in owner.glob("sources-*"))
    os.utime(place.source / "secret3.png", ns=(1, 1))
    with pytest.raises(StoreError, match=r"finished store: the source's files: 1 changed \(secret3.png\)$"):
        place.encrypt(resume=True)
    (place.source / "secret1.png").unlink()
    for i in (10, 8, 2, 99, 0):
        (place.source / f"secret{i}.png").write_bytes(b"y" * 50)
    want = (
        r"3 changed \(secret0.png, secret2.png, secret3.png\); 1 gone \(secret1.png\); "
        r"3 new \(secret10.png, secret8.png, secret99.png\)$"
    )
    with pytest.raises(StoreError, match=want):
        place.encrypt(resume=True)
    (place.source / "secret98.png").write_bytes(b"y")
    with pytest.raises(StoreError, match=r"4 new \(secret10.png, secret8.png, secret98.png, ...\)"):
        place.encrypt(resume=True)


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_without_the_list_of_files_their_number_is_compared(harm: str, place: Place) -> None:
    path = place.owner(place.encrypt().store_id) / "sources-00000.bin"
    path.unlink() if harm == "missing" else path.write_bytes(path.read_bytes()[:-1])
    (place.source / "new.png").write_bytes(b"y")
    with pytest.raises(StoreError, match="the source: 7 files then, 8 now"):
        place.encrypt(resume=True)


def test_what_is_missing_of_the_list_is_written_when_a_job_goes_on(place: Place) -> None:
    owner = place.owner(place.encrypt().store_id)
    (owner / "sources-00000.bin").unlink()
    place.encrypt(resume=True)
    seal = StoreSeal(place.key, owner.name)
    assert list(sources.kept_sources(OwnerFolder(owner, seal), 7)) == [
        FileStamp.of(place.source, f"secret{i}.png") for i in range(7)
    ]


# versions


def test_a_worker_of_other_versions_is_refused(place: Place) -> None:
    real = job.versions()
    context = task.JobContext(
        place.key, SCHEME, JobOptions(), "0" * 32, "folder", "uint8", place.store, None, 1, 1,
        versions=real | {"pillow": "1.1.7", "nosuchlib": "2"},
    )  # fmt: skip
    with pytest.raises(StoreError) as raised:
        worker.ShardWork(context, None)
    assert f"(nosuchlib 2 in the job record, None here; pillow 1.1.7 in the job record, {real['pillow']} here)" in str(
        raised.value
    )
    assert "numpy" not in str(raised.value)


def test_a_job_of_other_versions_is_not_resumed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.encrypt()
    monkeypatch.setattr("PIL.__version__", "99.0")
    with pytest.raises(StoreError, match=r"another job's finished store: versions: pillow \S+ then, 99.0 now"):
        place.encrypt(resume=True)
