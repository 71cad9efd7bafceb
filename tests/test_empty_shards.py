"""A shard without any sample is published like any other, and no two files get one hidden name."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import ImageError, StoreError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.seal import StoreSeal
from dlmt_fast.stores.decode import decode_bytes
from dlmt_fast.stores.manifest import read_manifest
from dlmt_fast.stores.png import encode_png

TARGETS = ["folder", "webdataset", "parquet"]


def image(number: int) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 256, (3, 4, 5), np.uint8))


def values(images: list[bytes]) -> list[bytes]:
    return sorted(decode_bytes(data).tobytes() for data in images)


class Place:
    """A folder of twelve images of two classes, in shards of four."""

    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source, self.store, self.back = root, key, root / "source", root / "s", root / "back"
        for i in range(12):
            path = self.path(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(i))

    def path(self, number: int) -> Path:
        return self.source / "ab"[number > 5] / f"{number:02d}.png"

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, to: str | None = None, **options: Any) -> Summary:
        if to == "parquet":
            pytest.importorskip("pyarrow")
        chosen = JobOptions(**{"shard_size": 4, "on_error": "quarantine", "normalize": "none"} | options)
        scheme = dlmt.DLMT("mat_mmt")
        return encrypt_store(self.source, self.store, self.key, scheme, self.owner, chosen, target_named=to)

    def files(self) -> dict[str, bytes]:
        """The store without the manifest, whose sealed header has a fresh nonce."""
        found = [path for path in self.store.rglob("*") if path.is_file() and path.name != "dlmt-store.json"]
        return {path.relative_to(self.store).as_posix(): path.read_bytes() for path in found}

    def decrypted(self, to: str) -> list[bytes]:
        """The images of the decrypted store, each as its file."""
        shutil.rmtree(self.back, ignore_errors=True)
        decrypt_store(self.store, self.back, self.key, self.owner)
        if to == "folder":
            return [path.read_bytes() for path in self.back.rglob("*.png")]
        if to == "parquet":
            pq = pytest.importorskip("pyarrow.parquet")
            tables = [pq.read_table(path) for path in sorted(self.back.glob("*.parquet"))]
            assert len({table.schema for table in tables}) == 1
            return [row["image"]["bytes"] for table in tables for row in table.to_pylist()]
        found = []
        for path in self.back.glob("*.tar"):
            with tarfile.open(path) as tar:
                files = [tar.extractfile(info) for info in tar if info.name.endswith(".png")]
                found += [file.read() for file in files if file is not None]
        return found


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"no image": b"no image", "cut": data[:-30], "empty": b""}[how])


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("shard", [0, 1, 2])
@pytest.mark.parametrize("how", ["no image", "cut"])
def test_a_shard_of_refused_samples_alone(how: str, shard: int, to: str, place: Place) -> None:
    """Found by their headers or when they are decoded; `--resume` counts the shard as done."""
    bad = range(4 * shard, 4 * shard + 4)
    for number in bad:
        spoil(place.path(number), how)
    summary = place.encrypt(to)
    assert (summary.inputs, summary.outputs) == (12, 8)
    assert sorted(each["path"] for each in summary.quarantined) == [
        place.path(number).relative_to(place.source).as_posix() for number in bad
    ]
    manifest = read_manifest(place.store)
    assert [each.count for each in manifest.shards] == [0 if number == shard else 4 for number in range(3)]
    assert manifest.count == 8
    assert all((place.store / each.name).is_file() for each in manifest.shards)
    verify_store(place.store)
    verify_store(place.store, place.key, place.owner)
    assert values(place.decrypted(to)) == values([image(i) for i in range(12) if i not in bad])
    whole = place.files()
    again = place.encrypt(to, resume=True, check=True)
    assert "3 of 3 shards were done already" in again.notes[0]
    assert len(again.quarantined) == 4
    (place.store / manifest.shards[shard].name).unlink()
    with pytest.raises(StoreError):
        verify_store(place.store)
    assert "2 of 3 shards were done already" in place.encrypt(to, resume=True).notes[0]
    assert place.files() == whole
    verify_store(place.store, place.key, place.owner)


@pytest.mark.parametrize("to", TARGETS)
def test_a_shard_of_equal_samples_alone(to: str, place: Place) -> None:
    for number in range(4, 8):
        place.path(number).write_bytes(image(number - 4))
    summary = place.encrypt(to, duplicates="drop")
    assert (summary.outputs, summary.dropped) == (8, 4)
    assert [each.count for each in read_manifest(place.store).shards] == [4, 0, 4]
    verify_store(place.store, place.key, place.owner)
    assert values(place.decrypted(to)) == values([image(i) for i in (0, 1, 2, 3, 8, 9, 10, 11)])


@pytest.mark.parametrize("to", TARGETS)
def test_every_shard_but_one_is_empty(to: str, place: Place) -> None:
    for number in range(12):
        if number != 5:
            spoil(place.path(number), "empty")
    assert place.encrypt(to, shard_size=1, workers=2).outputs == 1
    assert [each.count for each in read_manifest(place.store).shards] == [int(i == 5) for i in range(12)]
    verify_store(place.store, place.key, place.owner)
    assert values(place.decrypted(to)) == values([image(5)])


@pytest.mark.parametrize("to", TARGETS)
def test_a_source_without_any_image_is_no_store(to: str, place: Place) -> None:
    for number in range(12):
        spoil(place.path(number), "empty")
    with pytest.raises((StoreError, ImageError), match="none of the 12 files can be taken"):
        place.encrypt(to)
    assert not place.store.exists()


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("pair", [(0, 1), (1, 5)], ids=["one shard", "two shards"])
def test_two_samples_with_one_hidden_name_are_an_error(
    pair: tuple[int, int], to: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (place.path(number).relative_to(place.source).as_posix() for number in pair)
    name = StoreSeal.name
    monkeypatch.setattr(StoreSeal, "name", lambda seal, path: name(seal, one if path == two else path))
    with pytest.raises(StoreError, match=f"{one} and {two} would both be written as .*[0-9a-f]{{32}}"):
        place.encrypt(to)
    assert not place.store.exists()
    assert not (place.root / "owner").exists()


def test_one_hidden_name_in_two_classes_is_no_collision(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    name = StoreSeal.name
    monkeypatch.setattr(StoreSeal, "name", lambda seal, path: name(seal, path.replace("b/06", "a/00")))
    assert place.encrypt().outputs == 12
    verify_store(place.store, place.key, place.owner)


def test_two_arrays_with_one_hidden_name_are_an_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.source = place.root / "arrays"
    place.source.mkdir()
    for number in range(2):
        np.save(place.source / f"{number}.npy", np.full((3, 4, 5), number, np.uint8))
    name = StoreSeal.name
    monkeypatch.setattr(StoreSeal, "name", lambda seal, path: name(seal, path.replace("1.npy", "0.npy")))
    with pytest.raises(StoreError, match=r"0\.npy and 1\.npy would both be written as [0-9a-f]{32}\.npy"):
        place.encrypt(shard_size=JobOptions().shard_size, on_error="fail")
    assert not place.store.exists()
