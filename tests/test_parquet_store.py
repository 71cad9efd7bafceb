"""Parquet stores: there and back, from and to other kinds, resumed, verified, damaged, and searched for secrets."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from key_material import key_material

import dlmt_fast as dlmt
from dlmt_fast.errors import BackendError, StoreDamagedError, StoreError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.stores import parquet_format
from dlmt_fast.stores.publish import FileOps

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SCHEME = dlmt.DLMT("mat_mmt", max_v_add=1237, max_v_mul=1013)
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
NAMES = ["cats/anna-holiday.jpg", "cats/2.png", "dogs/3.png", "dogs/deep/4.png", "dogs/5.png"]
NUMBERS = {name: int(name.startswith("dogs")) for name in NAMES}


def pixels(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (3, 6, 7), np.uint8)


def encoded(seed: int) -> bytes:
    """An image file with all that must not pass."""
    exif = PIL.Image.Exif()
    exif[0x010F] = "TopSecretCamera"
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels(seed).transpose(1, 2, 0)).save(buffer, "PNG", exif=exif, icc_profile=b"private" * 9)
    return buffer.getvalue()


class Place:
    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key = root, key
        self.source, self.store, self.back = root / "source", root / "store", root / "back"

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def folder(self) -> None:
        for seed, name in enumerate(NAMES):
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_bytes(encoded(seed))

    def rows(self, group: int = 2) -> None:
        """The same images in a Parquet file, with a field that is not wanted."""
        rows = [
            {"image": {"bytes": encoded(seed), "path": name}, "label": NUMBERS[name], "patient": "anna"}
            for seed, name in enumerate(NAMES)
        ]
        schema = pa.schema([("image", IMAGE), ("label", pa.int64()), ("patient", pa.string())])
        told = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cats", "dogs"]}}}}'
        table = pa.Table.from_pylist(rows, schema=schema.with_metadata({b"huggingface": told}))
        self.source.mkdir()
        pq.write_table(table, self.source / "train.parquet", row_group_size=group)

    def encrypt(self, to: str | None = None, ops: FileOps | None = None, **options: Any) -> Summary:
        chosen = JobOptions(**options)
        return encrypt_store(
            self.source, self.store, self.key, SCHEME, self.owner, chosen, target_named=to, ops=ops or FileOps()
        )

    def verified(self) -> int:
        assert "5 images decrypt" in verify_store(self.store, self.key, self.owner).notes[0]
        return verify_store(self.store).outputs

    def decrypt(self) -> Summary:
        return decrypt_store(self.store, self.back, self.key, self.owner)

    def parts(self) -> list[Path]:
        return sorted(self.store.glob("*.parquet"))


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


def stored_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def decoded(data: bytes) -> np.ndarray[Any, Any]:
    if data[:4] != b"\x89PNG":
        return np.load(io.BytesIO(data))
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).transpose(2, 0, 1)


def originals(label: int | None = None) -> set[bytes]:
    return {pixels(i).tobytes() for i, name in enumerate(NAMES) if label in (None, NUMBERS[name])}


def test_folder_to_parquet_and_back(place: Place) -> None:
    place.folder()
    done = place.encrypt("parquet", normalize="none", shard_size=2)
    assert (done.inputs, done.outputs, done.kind) == (5, 5, "parquet")
    assert [path.name for path in place.parts()] == [f"train-{i:05d}.parquet" for i in range(3)]
    rows = stored_rows(place.store)
    plan = SCHEME.plan(place.key, (3, 6, 7), "none")
    expected = {dlmt.encrypt(pixels(i), plan, layout="CHW").tobytes(): NUMBERS[name] for i, name in enumerate(NAMES)}
    assert {decoded(row["image"]["bytes"]).tobytes(): row["label"] for row in rows} == expected
    assert {row["image"]["path"] for row in rows} == {None}
    assert place.verified() == 5
    place.decrypt()
    back = {row["image"]["path"]: row for row in stored_rows(place.back)}
    assert set(back) == {str(Path(name).with_suffix(".png")) for name in NAMES}
    for seed, name in enumerate(NAMES):
        found = back[str(Path(name).with_suffix(".png"))]
        assert np.array_equal(decoded(found["image"]["bytes"]), pixels(seed))
        assert found["label"] == NUMBERS[name]
    assert b'"names": ["cats", "dogs"]' in pq.read_metadata(next(place.back.iterdir())).metadata[b"huggingface"]


@pytest.mark.parametrize(
    ("normalize", "dtype"), [("none", None), ("range", None), ("minmax", "float16"), ("range", "float32")]
)
def test_parquet_to_parquet_and_back(normalize: str, dtype: str | None, place: Place) -> None:
    place.rows()
    done = place.encrypt(normalize=normalize, dtype=dtype, shard_size=2)
    assert "the columns patient" in "".join(done.notes)
    plan = SCHEME.plan(place.key, (3, 6, 7), normalize, dtype)
    found = {decoded(row["image"]["bytes"]).tobytes() for row in stored_rows(place.store)}
    assert found == {dlmt.encrypt(pixels(i), plan, layout="CHW").tobytes() for i in range(5)}
    assert place.verified() == 5
    place.decrypt()
    rows = stored_rows(place.back)
    assert [row["image"]["path"] for row in rows] == [str(Path(name).with_suffix(".png")) for name in NAMES]
    assert [row["label"] for row in rows] == list(NUMBERS.values())
    for seed, row in enumerate(rows):
        difference = np.abs(decoded(row["image"]["bytes"]).astype(int) - pixels(seed))
        assert difference.max() <= plan.worst_error


def test_parquet_to_folder_and_back(place: Place) -> None:
    place.rows()
    place.encrypt("folder", normalize="none")
    assert {path.name for path in place.store.iterdir() if path.is_dir()} == {"0", "1"}
    assert place.verified() == 5
    place.decrypt()
    found = {path.relative_to(place.back).as_posix(): path for path in place.back.rglob("*.png")}
    assert {name.partition("#")[2].partition("/")[2] for name in found} == {
        str(Path(name).with_suffix(".png")) for name in NAMES
    }
    assert {decoded(path.read_bytes()).tobytes() for path in found.values()} == originals()


def test_arrays_become_parquet(place: Place) -> None:
    images = np.stack([pixels(i) for i in range(5)])
    place.source.mkdir()
    np.save(place.source / "x_test.npy", images)
    np.save(place.source / "y_test.npy", np.arange(5))
    place.encrypt("parquet", normalize="none")
    (path,) = place.parts()
    assert not list(place.store.glob("*.npy"))
    rows = pq.read_table(path).to_pylist()
    plan = SCHEME.plan(place.key, (3, 6, 7), "none")
    assert [row["label"] for row in rows] == list(range(5))
    assert np.array_equal(np.stack([decoded(row["image"]["bytes"]) for row in rows]), dlmt.encrypt(images, plan))
    assert place.verified() == 5
    place.decrypt()
    assert {row["label"]: decoded(row["image"]["bytes"]).tobytes() for row in stored_rows(place.back)} == {
        i: pixels(i).tobytes() for i in range(5)
    }


def test_without_the_owners_folder_there_are_no_names(place: Place) -> None:
    place.rows()
    place.encrypt(normalize="none")
    decrypt_store(place.store, place.back, place.key, lambda store_id: place.root / "none")
    assert {row["image"]["path"] for row in stored_rows(place.back)} == {None}


def test_names_and_classes_where_they_are_wanted(place: Place) -> None:
    place.folder()
    place.encrypt("parquet", names="keep", classes="keep")
    (path,) = place.parts()
    assert {row["image"]["path"] for row in stored_rows(place.store)} == {
        str(Path(name).with_suffix(".png")) for name in NAMES
    }
    assert b"cats" in pq.read_metadata(path).metadata[b"huggingface"]
    place.verified()


def test_rows_that_cannot_be_taken(place: Place) -> None:
    place.source.mkdir()
    rows = [{"image": {"bytes": encoded(i), "path": None}} for i in range(3)]
    rows[1]["image"]["bytes"] = b"nothing"
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([("image", IMAGE)])), place.source / "x.parquet")
    with pytest.raises(StoreError, match=r"x\.parquet//1: .*no PNG"):
        place.encrypt()
    done = place.encrypt(on_error="quarantine")
    assert (done.inputs, done.outputs, [item["path"] for item in done.quarantined]) == (3, 2, ["x.parquet//1"])
    assert verify_store(place.store, place.key, place.owner).outputs == 2


@pytest.mark.parametrize("source", ["folder", "rows"])
def test_a_stop_after_each_shard_and_workers_change_no_byte(source: str, place: Place) -> None:
    class Stops(FileOps):
        def __init__(self, after: int) -> None:
            self.left = after

        def rename(self, old: Path, new: Path) -> None:
            if new.suffix == ".parquet":
                if not self.left:
                    raise KeyboardInterrupt
                self.left -= 1
            super().rename(old, new)

    getattr(place, source)()
    place.encrypt("parquet", shard_size=2, workers=2)
    whole = {path.name: path.read_bytes() for path in place.parts()}
    assert len(whole) == 3
    for after in range(3):
        for path in place.store.iterdir():
            path.unlink()
        place.store.rmdir()
        with pytest.raises(KeyboardInterrupt):
            place.encrypt("parquet", Stops(after), shard_size=2)
        done = place.encrypt("parquet", shard_size=2, resume=True)
        assert (f"{after} of 3 shards" in "".join(done.notes)) == (after > 0)
        assert {path.name: path.read_bytes() for path in place.parts()} == whole
        place.verified()


def test_damage_is_noticed(place: Place) -> None:
    place.rows()
    place.encrypt()
    path = place.parts()[0]
    data = path.read_bytes()
    for damaged in (
        data[:-1],
        data + b"x",
        b"",
        *(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in (4, 900, len(data) - 9)),
    ):
        path.write_bytes(damaged)
        for work in (lambda: verify_store(place.store), place.decrypt):
            with pytest.raises(StoreDamagedError, match="damaged"):
                work()
            assert not place.back.exists()
    path.unlink()
    with pytest.raises(StoreDamagedError, match="missing"):
        verify_store(place.store)


def test_another_pyarrow_is_another_job(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.rows()
    first = place.encrypt().store_id
    monkeypatch.setattr("dlmt_fast.pipeline.job.version", lambda name: "0.0")
    with pytest.raises(StoreError, match=r"versions: pyarrow .* then, 0\.0 now"):
        place.encrypt(resume=True)
    assert place.encrypt(overwrite=True).store_id != first


def test_without_pyarrow_the_error_says_what_to_install(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.folder()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(BackendError, match=r'pip install "dlmt-fast\[parquet\]"'):
        parquet_format.library()


def leaves(data: bytes) -> list[bytes]:
    """Everything that a Parquet file holds: names, metadata, and the chunks of each image file, decoded."""
    file = pq.ParquetFile(io.BytesIO(data))
    found = [str(file.schema).encode(), str(file.metadata).encode(), *itertools.chain(*file.metadata.metadata.items())]
    for row in file.read().to_pylist():
        found += [row["image"]["bytes"], decoded(row["image"]["bytes"]).tobytes(), repr(row).encode()]
    return found


@pytest.mark.parametrize("source", ["folder", "rows"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_nothing_of_names_or_key_is_in_the_files(source: str, dtype: str, place: Place, secret: bytes) -> None:
    getattr(place, source)()
    done = place.encrypt("parquet", dtype=dtype, classes="index")
    words = [b"anna", b"holiday", b"deep", b"cats", b"dogs", b"patient", b"TopSecret", b"private", b"Exif", b"1237"]
    words += key_material(secret, done.store_id, SCHEME, (3, 6, 7))
    words += [done.store_id.encode(), str(place.root).encode()]
    for path in place.parts():
        for part in (path.name.encode(), path.read_bytes(), *leaves(path.read_bytes())):
            assert not [word for word in words if word in part]


def test_the_search_finds_what_it_looks_for(place: Place) -> None:
    place.rows()
    found = leaves((place.source / "train.parquet").read_bytes())
    assert all(any(word in part for part in found) for word in (b"anna", b"holiday", b"patient", b"TopSecret", b"cats"))
