"""Zarr stores: there and back, from other kinds, resumed, verified, damaged, and searched for secrets."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from key_material import key_material

import dlmt_fast as dlmt
from dlmt_fast.errors import BackendError, ParameterError, StoreDamagedError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.stores import zarr_format
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import FileOps

zarr = pytest.importorskip("zarr")

SCHEME = dlmt.DLMT("mat_mmt", max_v_add=1237, max_v_mul=1013)
STORED = [("none", None), ("none", "narrowest"), ("range", None), ("range", "float32"), ("minmax", "float16")]


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(1, 256, shape, np.uint8)


IMAGES = pixels(5, 3, 6, 7)


class Place:
    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key = root, key
        self.source, self.store, self.back = root / "source", root / "store", root / "back"

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def group(self) -> None:
        group = zarr.create_group(self.source)
        group.create_array("anna", data=IMAGES, chunks=(2, 3, 6, 7))
        group.create_array("anna-labels", data=np.arange(5) + 10)

    def folder(self) -> None:
        for i, image in enumerate(IMAGES):
            path = self.source / ("cats" if i < 3 else "dogs") / f"anna-{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))

    def encrypt(self, to: str | None = "zarr", ops: FileOps | None = None, **options: Any) -> Summary:
        chosen = JobOptions(**options)
        return encrypt_store(
            self.source, self.store, self.key, SCHEME, self.owner, chosen, target_named=to, ops=ops or FileOps()
        )

    def verified(self) -> int:
        assert "images decrypt" in verify_store(self.store, self.key, self.owner).notes[0]
        return verify_store(self.store).outputs

    def decrypt(self) -> Summary:
        return decrypt_store(self.store, self.back, self.key, self.owner)

    def objects(self) -> dict[str, bytes]:
        files = (path for path in self.store.rglob("*") if path.is_file() and path.name != "dlmt-store.json")
        return {path.relative_to(self.store).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


@pytest.mark.parametrize(("normalize", "dtype"), STORED)
def test_zarr_to_zarr_and_back(normalize: str, dtype: str | None, place: Place) -> None:
    place.group()
    done = place.encrypt(None, normalize=normalize, dtype=dtype)
    assert (done.inputs, done.outputs, done.kind) == (5, 5, "zarr")
    plan = SCHEME.plan(place.key, (3, 6, 7), normalize, dtype)
    found = zarr.open_group(place.store, mode="r")
    assert [name for name, _ in found.members()] == ["images", "labels"]
    assert found["images"].dtype == np.dtype(done.dtype)
    assert np.array_equal(found["images"][:], dlmt.encrypt(IMAGES, plan))
    assert found["labels"][:].tolist() == [10, 11, 12, 13, 14]
    assert place.verified() == 5
    place.decrypt()
    back = zarr.open_group(place.back, mode="r")
    assert np.abs(back["images"][:].astype(int) - IMAGES).max() <= plan.worst_error
    assert back["images"].dtype == np.uint8
    assert back["labels"][:].tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("shard_size", [2, 1000])
def test_folder_to_zarr_and_back(shard_size: int, place: Place) -> None:
    place.folder()
    place.encrypt(normalize="none", shard_size=shard_size)
    found = zarr.open_group(place.store, mode="r")
    plan = SCHEME.plan(place.key, (3, 6, 7), "none")
    expected = {image.tobytes(): int(i > 2) for i, image in enumerate(dlmt.encrypt(IMAGES, plan))}
    pairs = zip(found["images"][:], found["labels"][:], strict=True)
    assert {image.tobytes(): label for image, label in pairs} == expected
    assert place.verified() == 5
    place.decrypt()
    back = zarr.open_group(place.back, mode="r")
    pairs = zip(back["images"][:], back["labels"][:], strict=True)
    assert {image.tobytes(): label for image, label in pairs} == {x.tobytes(): int(i > 2) for i, x in enumerate(IMAGES)}


def test_idx_to_zarr_and_back(place: Place) -> None:
    place.source.mkdir()
    for seed, name in enumerate(("train", "t10k")):
        values = pixels(6 + seed, 5, 4, seed=seed)
        header = struct.pack(">BBBB3I", 0, 0, 8, 3, *values.shape)
        (place.source / f"{name}-images-idx3-ubyte").write_bytes(header + values.tobytes())
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, 6 + seed) + bytes(range(6 + seed))
        (place.source / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    place.encrypt(normalize="none")
    found = zarr.open_group(place.store, mode="r")
    assert sorted(name for name, _ in found.members()) == ["t10k-images", "t10k-labels", "train-images", "train-labels"]
    plan = SCHEME.plan(place.key, (1, 5, 4), "none")
    assert np.array_equal(found["train-images"][:], dlmt.encrypt(pixels(6, 5, 4)[:, None], plan))
    assert found["t10k-labels"][:].tolist() == list(range(7))
    assert place.verified() == 13
    place.decrypt()
    back = zarr.open_group(place.back, mode="r")
    assert np.array_equal(back["t10k-images"][:], pixels(7, 5, 4, seed=1)[:, None])
    assert back["train-labels"][:].tolist() == list(range(6))


def test_labels_that_have_no_place_are_told(place: Place) -> None:
    place.source.mkdir()
    for name in ("fine", "coarse"):
        np.save(place.source / f"x_{name}.npy", IMAGES)
    np.save(place.source / "y_fine.npy", np.arange(5))
    done = place.encrypt()
    assert "at most; the source's labels are in y_fine.npy" in "".join(done.notes)


def test_packed_images_with_plain_labels(place: Place) -> None:
    place.source.mkdir()
    header = struct.pack(">BBBB3I", 0, 0, 8, 3, 3, 5, 4)
    packed = gzip.compress(header + pixels(3, 5, 4).tobytes(), mtime=0)
    (place.source / "train-images-idx3-ubyte.gz").write_bytes(packed)
    (place.source / "train-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"\7\5\0")
    assert place.encrypt().outputs == 3
    assert zarr.open_group(place.store, mode="r")["train-labels"][:].tolist() == [7, 5, 0]


def test_npy_to_zarr_and_back(place: Place) -> None:
    place.source.mkdir()
    for name, count in (("anna", 4), ("x_b", 7)):
        np.save(place.source / f"{name}.npy", pixels(count, 5, 4, 3))
    np.save(place.source / "y_b.npy", np.arange(7))
    place.encrypt(normalize="none")
    assert not any("anna" in name for name in place.objects())
    assert place.verified() == 11
    place.decrypt()
    back = zarr.open_group(place.back, mode="r")
    assert sorted(name for name, _ in back.members()) == ["anna", "x_b", "y_b"]
    assert np.array_equal(back["anna"][:], pixels(4, 5, 4, 3).transpose(0, 3, 1, 2))
    assert back["y_b"][:].tolist() == list(range(7))


def test_zarr_to_npy(place: Place) -> None:
    place.group()
    place.encrypt("npy", normalize="none", names="keep")
    plan = SCHEME.plan(place.key, (3, 6, 7), "none")
    assert np.array_equal(np.load(place.store / "anna.npy"), dlmt.encrypt(IMAGES, plan))
    assert np.load(place.store / "anna-labels.npy").tolist() == [10, 11, 12, 13, 14]
    verify_store(place.store, place.key, place.owner)


def test_one_npy_file_becomes_a_folder(place: Place) -> None:
    place.source = place.root / "x.npy"
    np.save(place.source, IMAGES)
    place.encrypt(normalize="none")
    assert sorted(place.objects()) == ["images/c.0.0.0.0", "images/zarr.json", "zarr.json"]
    assert place.verified() == 5


@pytest.mark.parametrize("options", [{"per_size": True}, {"on_error": "quarantine"}], ids=str)
def test_what_an_array_cannot_hold(options: dict[str, Any], place: Place) -> None:
    place.folder()
    with pytest.raises(ParameterError, match="does not apply to zarr"):
        place.encrypt(**options)
    assert not place.store.exists()


def test_a_stop_after_each_shard_and_workers_change_no_byte(place: Place) -> None:
    class Stops(FileOps):
        def __init__(self, after: int) -> None:
            self.left = after

        def rename(self, old: Path, new: Path) -> None:
            if place.store in new.parents:
                if not self.left:
                    raise KeyboardInterrupt
                self.left -= 1
            super().rename(old, new)

    place.folder()
    place.encrypt(shard_size=2, workers=2)
    whole = place.objects()
    order = ["images/c.0.0.0.0", "images/c.1.0.0.0", "images/c.2.0.0.0", "labels/c.0"]
    assert sorted(whole) == [*order[:3], "images/zarr.json", "labels/c.0", "labels/zarr.json", "zarr.json"]
    place.store.rename(place.root / "first")
    for after in range(8):
        with pytest.raises(KeyboardInterrupt):
            place.encrypt(ops=Stops(after), shard_size=2)
        assert not (place.store / "zarr.json").exists() or after == 7
        place.encrypt(shard_size=2, resume=True)
        assert place.objects() == whole
        place.verified()
        place.store.rename(place.root / f"again-{after}")


def test_damage_is_noticed(place: Place) -> None:
    place.group()
    place.encrypt()
    for name, data in place.objects().items():
        path = place.store / name
        for damaged in (data[:-1], data + b"x", b"", data[:9] + bytes([data[9] ^ 1]) + data[10:]):
            path.write_bytes(damaged)
            with pytest.raises(StoreDamagedError, match="damaged"):
                verify_store(place.store)
            if "c." in name:
                with pytest.raises(StoreDamagedError, match="damaged"):
                    place.decrypt()
                assert not place.back.exists() or (place.back / ".dlmt-job").exists()
                shutil.rmtree(place.back, ignore_errors=True)
        path.unlink()
        with pytest.raises(StoreDamagedError, match="missing"):
            verify_store(place.store)
        path.write_bytes(data)
    (place.store / "images" / "more").write_bytes(b"")
    with pytest.raises(StoreDamagedError, match="does not name"):
        verify_store(place.store)


def test_nothing_of_names_or_key_is_in_the_files(place: Place, secret: bytes) -> None:
    place.folder()
    done = place.encrypt(dtype="float32")
    words = [b"anna", b"cats", b"dogs", b"1237", b"1013", done.store_id.encode(), b"scheme", b"range", b"dlmt"]
    words += key_material(secret, done.store_id, SCHEME, (3, 6, 7))
    values = zarr.open_group(place.store, mode="r")
    parts = [values["images"][:].tobytes(), values["labels"][:].tobytes(), *place.objects().values()]
    assert not [word for word in words for part in parts if word in part]
    document = json.loads((place.store / "zarr.json").read_bytes())
    assert (document["attributes"], set(document)) == (
        {},
        {"zarr_format", "node_type", "attributes", "consolidated_metadata"},
    )


@pytest.mark.parametrize("package", ["zarr", "google_crc32c"])
def test_what_to_install(package: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(BackendError, match=r'pip install "dlmt-fast\[zarr\]"'):
        zarr_format.library() if package == "zarr" else zarr_format.crc32c(b"")
