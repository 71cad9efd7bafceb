"""Stores of .npy files: layouts, labels, damage, round trips, and that a failure of the writer leaves nothing."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import ParameterError, StoreDamagedError, StoreError, UsageError
from dlmt_fast.pipeline import JobOptions, decrypt_store, encrypt_store, verify_store
from dlmt_fast.stores import npy_arrays
from dlmt_fast.stores.axes import layout_of
from dlmt_fast.stores.contract import Batch
from dlmt_fast.stores.npy import encode_header
from dlmt_fast.stores.npy_arrays import (
    NpySource,
    labels_name,
    looks_like_npy,
    npy_file,
    read_array_header,
)
from dlmt_fast.stores.publish import FileOps, file_digest
from dlmt_fast.stores.sliced import SlicedWriter

SCHEME = dlmt.DLMT("mat_mmt", max_v_add=256, max_v_mul=10)
SHAPES = {"gray": (7, 5, 4), "hwc": (7, 5, 4, 3), "chw": (7, 3, 5, 4), "hw1": (7, 5, 4, 1), "one": (7, 1, 5, 4)}
STORED = [("none", None), ("none", "narrowest"), ("range", None), ("range", "float32"), ("minmax", "float16")]


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def nchw(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    if array.ndim == 3:
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if name in ("hwc", "hw1") else array


class Place:
    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key = root, key
        self.source, self.store, self.back = root / "source", root / "store", root / "back"

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, **options: Any) -> Any:
        return encrypt_store(self.source, self.store, self.key, SCHEME, self.owner, JobOptions(**options))

    def decrypt(self) -> Any:
        return decrypt_store(self.store, self.back, self.key, self.owner)


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


@pytest.mark.parametrize(("normalize", "dtype"), STORED)
@pytest.mark.parametrize("name", SHAPES)
def test_one_file_there_and_back(name: str, normalize: str, dtype: str | None, place: Place) -> None:
    place.source, place.store, place.back = (place.root / f"{x}.npy" for x in ("anna", "stored", "again"))
    values = pixels(*SHAPES[name])
    np.save(place.source, values)
    np.save(place.root / "anna-labels.npy", np.arange(7))
    done = place.encrypt(normalize=normalize, dtype=dtype)
    assert (done.inputs, done.outputs, done.kind) == (7, 7, "npy")
    stored = np.load(place.store, mmap_mode="r", allow_pickle=False)
    assert stored.shape == values.shape
    assert stored.dtype == done.dtype
    shape = nchw(values, name).shape[1:]
    plan = SCHEME.plan(place.key, shape, normalize, dtype)
    assert np.array_equal(nchw(stored, name), dlmt.encrypt(np.ascontiguousarray(nchw(values, name)), plan))
    assert np.load(place.root / "stored-labels.npy").tolist() == list(range(7))
    assert verify_store(place.store).outputs == 7
    assert "7 images decrypt" in verify_store(place.store, place.key, place.owner).notes[0]
    place.decrypt()
    back = np.load(place.back, allow_pickle=False)
    assert np.abs(back.astype(int) - values).max() <= plan.worst_error
    assert np.load(place.root / "again-labels.npy").dtype == np.int64


@pytest.mark.parametrize("names", ["hash", "keep"])
def test_a_folder_there_and_back(names: str, place: Place) -> None:
    place.source.mkdir()
    arrays = {
        "anna-images.npy": pixels(9, 5, 4, 3, seed=1),
        "anna-labels.npy": np.arange(9, dtype=">i2"),
        "x_test.npy": pixels(4, 5, 4, 3, seed=2),
        "y_test.npy": np.arange(4, dtype=np.uint8),
        "zero.npy": pixels(0, 5, 4, 3),
    }
    for name, values in arrays.items():
        np.save(place.source / name, values)
    (place.source / "notes.txt").write_text("x")
    done = place.encrypt(normalize="none", names=names)
    assert (done.inputs, done.outputs) == (13, 13)
    assert "notes.txt" in done.notes[0]
    found = {path.name for path in place.store.iterdir()}
    assert len(found) == 6
    assert (found == {*arrays, "dlmt-store.json"}) == (names == "keep")
    assert not any("anna" in name or "test" in name for name in found) or names == "keep"
    assert "13 images decrypt" in verify_store(place.store, place.key, place.owner).notes[0]
    place.decrypt()
    assert {path.name for path in place.back.iterdir()} == set(arrays)
    assert all(np.array_equal(np.load(place.back / name), values) for name, values in arrays.items())


def test_decrypt_digests_a_shard_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(place.source, pixels(7, 5, 4))
    place.source.with_suffix(".npy").rename(place.source)
    place.encrypt()
    digested: list[Path] = []

    def counted(path: Path) -> tuple[int, str]:
        digested.append(path)
        return file_digest(path)

    monkeypatch.setattr("dlmt_fast.pipeline.formats.contract.file_digest", counted)
    place.decrypt()
    assert digested == [place.store]


def test_without_the_owners_folder_names_stay_hidden(place: Place) -> None:
    place.source.mkdir()
    np.save(place.source / "anna.npy", pixels(2, 5, 4))
    place.encrypt(normalize="none")
    decrypt_store(place.store, place.back, place.key, lambda store_id: place.root / "none")
    (name,) = {path.name for path in place.back.iterdir()}
    assert len(name) == 36
    assert np.array_equal(np.load(place.back / name), pixels(2, 5, 4))


def test_arrays_of_several_sizes(place: Place) -> None:
    place.source.mkdir()
    for name, shape in SHAPES.items():
        np.save(place.source / f"{name}.npy", pixels(*shape))
    with pytest.raises(ParameterError, match="2 different shapes"):
        place.encrypt()
    place.encrypt(normalize="none", per_size=True)
    place.decrypt()
    for name, shape in SHAPES.items():
        assert np.array_equal(np.load(place.back / f"{name}.npy"), pixels(*shape))


def test_a_damaged_store_is_noticed(place: Place) -> None:
    place.source = place.root / "a.npy"
    place.store, place.back = place.root / "b.npy", place.root / "c.npy"
    np.save(place.source, pixels(6, 5, 4))
    place.encrypt()
    data = place.store.read_bytes()
    for damaged in (data[:-1], data + b"x", data[:-1] + bytes([data[-1] ^ 1]), data[:70]):
        place.store.write_bytes(damaged)
        with pytest.raises(StoreDamagedError, match="damaged"):
            verify_store(place.store)
        with pytest.raises(StoreDamagedError, match="damaged"):
            place.decrypt()
        assert not place.back.exists()


def test_what_cannot_be_asked(place: Place) -> None:
    place.source = place.root / "a.npy"
    np.save(place.source, pixels(6, 5, 4))
    for options in ({"size": (4, 4)}, {"channels": 3}, {"classes": "index"}):
        with pytest.raises(ParameterError, match=r"does not apply to \.npy"):
            place.encrypt(**options)
    with pytest.raises(UsageError, match="can become npy"):
        encrypt_store(place.source, place.store, place.key, SCHEME, place.owner, target_named="idx")
    place.store.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        place.encrypt()


# what a file may be


def test_names_of_labels() -> None:
    expected = {"train-images.npy": "train-labels.npy", "x_train.npy": "y_train.npy", "X_a.npy": "y_a.npy"}
    expected |= {"a.npy": "a-labels.npy", "images/images.npy": "images/labels.npy"}
    assert {name: labels_name(name) for name in expected} == expected


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 5, 5), (4, 3, 5, 3), (4, 1, 5, 3), (4, 0, 5), (4, 3, 0, 5)])
def test_shapes_that_are_no_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(StoreError, match="has shape"):
        NpySource(tmp_path / "a.npy")


def test_the_layouts() -> None:
    expected = {"gray": "NHW", "hwc": "NHWC", "chw": "NCHW", "hw1": "NHWC", "one": "NCHW"}
    assert {name: layout_of(shape, Path("x")) for name, shape in SHAPES.items()} == expected


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "bool", ">u2", "S1", "complex64"])
def test_only_bytes_are_transformed(dtype: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), dtype))
    with pytest.raises(StoreError, match=r"uint8|array of numbers"):
        NpySource(tmp_path / "a.npy")


def test_no_pickle_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hacks:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "hacked"),)

    array = np.empty((2, 3, 4), object)
    array[:] = Hacks()
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    for content in (buffer.getvalue(), pickle.dumps(Hacks())):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(StoreDamagedError, match=r"objects, which only a pickle|not a \.npy file"):
            NpySource(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", pixels(2, 3, 4))
    (tmp_path / "a-labels.npy").write_bytes(buffer.getvalue())
    with pytest.raises(StoreDamagedError, match="objects"):
        NpySource(tmp_path / "a.npy").survey()
    assert not (tmp_path / "hacked").exists()


def test_fortran_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(pixels(4, 5, 6)))
    with pytest.raises(StoreError, match="ascontiguousarray"):
        NpySource(tmp_path / "a.npy")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format(version: tuple[int, int], tmp_path: Path) -> None:
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, pixels(4, 5, 6), version)
    assert looks_like_npy(tmp_path / "a.npy")
    (batch,) = NpySource(tmp_path / "a.npy").read(range(4), 1)
    assert isinstance(batch, Batch)
    assert np.array_equal(batch.images[:, 0], pixels(4, 5, 6))


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, pixels(2, 3, 4))
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(StoreDamagedError):
            NpySource(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(StoreDamagedError, match="longer than its header"):
        NpySource(path)


@pytest.mark.parametrize(
    "text",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2, 3), }",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1e3, 2, 3), }",
        b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1, 2, 3), }",
        b"{'descr': '|q9', 'fortran_order': False, 'shape': (1, 2, 3), }",
        b"__import__('os').mkdir('hacked')",
        b"",
    ],
)
def test_odd_headers(text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(6))
    with pytest.raises(StoreDamagedError, match="not an array of numbers"):
        read_array_header(Path("a.npy"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_absurd_sizes_allocate_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(encode_header(np.dtype(np.uint8), (10**17, 10**9, 10**9)) + bytes(100))
    with pytest.raises(StoreDamagedError, match="truncated"):
        NpySource(tmp_path / "a.npy")


@pytest.mark.parametrize("labels", [np.zeros(3, np.int64), np.zeros(4), np.zeros((4, 1), np.uint8)])
def test_labels_that_do_not_fit(labels: np.ndarray[Any, Any], place: Place) -> None:
    place.source = place.root / "a.npy"
    np.save(place.source, pixels(4, 5, 6))
    np.save(place.root / "a-labels.npy", labels)
    with pytest.raises(StoreError, match="beside 4 images; labels are 4 integers"):
        place.encrypt()
    assert not place.store.exists()


def test_slices_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy_arrays, "SLICE_BYTES", 200)
    np.save(tmp_path / "a.npy", pixels(11, 5, 4, 3, seed=1))
    np.save(tmp_path / "b.npy", pixels(3, 5, 4, 3, seed=2))
    source = NpySource(tmp_path)
    assert [list(batch.indices) for batch in source.read(range(2, 8), 1) if isinstance(batch, Batch)] == [
        [2, 3, 4],
        [5, 6, 7],
    ]
    assert [source.path_of(i) for i in (0, 10, 11)] == ["a.npy#0", "a.npy#10", "b.npy#0"]
    (batch,) = source.read(range(12, 14), 1)
    assert isinstance(batch, Batch)
    assert np.array_equal(batch.images, pixels(3, 5, 4, 3, seed=2)[1:].transpose(0, 3, 1, 2))
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    with pytest.raises(StoreError, match="changed since the job began"):
        list(source.read(range(2), 1))


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        NpySource(tmp_path / "x")
    with pytest.raises(StoreError, match=r"no \.npy file"):
        NpySource(tmp_path)
    assert not looks_like_npy(tmp_path)
    assert not looks_like_npy(tmp_path / "x")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.npy").touch()
    assert looks_like_npy(tmp_path / "mixed")
    (tmp_path / "mixed" / "photo.JPG").touch()  # a folder of images, which refuses a.npy by name
    assert not looks_like_npy(tmp_path / "mixed")


# the writer


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float16"])
@pytest.mark.parametrize("name", SHAPES)
def test_written_files_are_numpys_own(name: str, dtype: str, tmp_path: Path) -> None:
    values = pixels(*SHAPES[name]).astype(dtype)
    images = nchw(values, name)
    writer = SlicedWriter(tmp_path, "0" * 32, 0, "x.npy", npy_file("x.npy", dtype, values.shape))
    with pytest.raises(StoreError, match=r"images came for places range\(3, 7\), and 0 is the next"):
        writer.write(range(3, 7), [], images[3:])
    writer.write(range(3), [], images[:3])
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".tmp-"]
    writer.write(range(3, 7), [], images[3:])
    published = writer.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert (published.size, published.sha256) == file_digest(tmp_path / "x.npy")
    found = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    assert np.array_equal(found, values)
    assert found.dtype == dtype
    assert read_array_header(tmp_path / "x.npy").data_start % 64 == 0


def test_a_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    class NoRename(FileOps):
        def rename(self, old: Path, new: Path) -> None:
            raise OSError("no")

    writer = SlicedWriter(tmp_path, "0" * 32, 0, "x.npy", npy_file("x.npy", "uint8", (2, 3, 4)), NoRename())
    writer.write(range(2), [], pixels(2, 1, 3, 4))
    with pytest.raises(OSError, match="no"):
        writer.publish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
