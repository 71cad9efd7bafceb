"""Zarr arrays of images: zarr-python reads what is written, and sources of every cut and codec are read."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlmt_fast.errors import DlmtError, StoreDamagedError, StoreError
from dlmt_fast.stores.contract import Batch
from dlmt_fast.stores.publish import FileOps, file_digest
from dlmt_fast.stores.zarr_arrays import ZarrSource, looks_like_zarr
from dlmt_fast.stores.zarr_format import ArrayPlan, encode_labels, metadata_files, object_name, rows_of_objects
from dlmt_fast.stores.zarr_writer import ZarrWriter

zarr = pytest.importorskip("zarr")

ID = "0123456789abcdef" * 2
DTYPES = ("uint8", "uint16", "int32", "float32", "float16")


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def nchw(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if values.ndim == 3:
        return values[:, None]
    return values.transpose(0, 3, 1, 2) if values.shape[3] in (1, 3) else values


def plan_of(values: np.ndarray[Any, Any], rows: int, labelled: bool = True) -> ArrayPlan:
    return ArrayPlan("images", labelled, values.shape, str(values.dtype), rows)


def written(root: Path, values: np.ndarray[Any, Any], plan: ArrayPlan, step: int = 7) -> list[Any]:
    """Write `values`, each object in calls of `step` images; labels are 1000, 1001, ..."""
    published = []
    root.mkdir()
    for number, start in enumerate(range(0, len(values), plan.object_rows)):
        rows = range(start, min(start + plan.object_rows, len(values)))
        writer = ZarrWriter(root, ID, number, object_name("images", number), plan, len(rows))
        for first in range(rows.start, rows.stop, step):
            part = values[first : min(first + step, rows.stop)]
            writer.write(range(len(part)), [""] * len(part), part)
        published.append(writer.publish())
    if plan.labelled:
        (root / plan.labels_name).mkdir()
        (root / plan.labels_object).write_bytes(encode_labels([1000 + i for i in range(len(values))]))
    for name, data in metadata_files([plan]):
        (root / name).write_bytes(data)
    return published


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 8, 20])
def test_zarr_reads_what_is_written(count: int, dtype: str, tmp_path: Path) -> None:
    values = pixels(count, 3, 5, 4).astype(dtype)
    published = written(tmp_path / "s", values, plan_of(values, 8))
    assert sum(shard.count for shard in published) == count
    group = zarr.open_group(tmp_path / "s", mode="r")
    assert [name for name, _ in group.members()] == ["images", "labels"]
    assert group["images"].dtype == np.dtype(dtype)
    assert np.array_equal(group["images"][:], values)
    assert group["labels"][:].tolist() == [1000 + i for i in range(count)]
    assert np.array_equal(zarr.open_array(tmp_path / "s" / "images", mode="r")[count - 1], values[-1])
    for shard in published:
        assert file_digest(tmp_path / "s" / shard.name) == (shard.size, shard.sha256)


def test_the_bytes_depend_on_the_images_alone(tmp_path: Path) -> None:
    values = pixels(50, 1, 5, 4)
    plan = plan_of(values, 20)
    digests = {tuple(shard.sha256 for shard in written(tmp_path / str(n), values, plan, n)) for n in (1, 7, 50)}
    assert len(digests) == 1
    blank = written(tmp_path / "blank", np.zeros_like(values), plan)
    assert [shard.size for shard in blank] == [shard.size for shard in written(tmp_path / "busy", values, plan)]
    assert np.array_equal(zarr.open_array(tmp_path / "blank" / "images", mode="r")[:], np.zeros_like(values))


def test_objects_of_many_chunks(tmp_path: Path) -> None:
    """Chunks of several images, and a last chunk that its images do not fill."""
    values = pixels(50, 3, 64, 80)
    plan = plan_of(values, 12)
    assert plan.chunk_rows == 4
    written(tmp_path / "s", values, plan)
    array = zarr.open_group(tmp_path / "s", mode="r")["images"]
    assert (array.shards, array.chunks) == ((12, 3, 64, 80), (4, 3, 64, 80))
    assert np.array_equal(array[:], values)
    assert np.array_equal(array.oindex[np.array([3, 13, 49])], values[[3, 13, 49]])


@pytest.mark.parametrize("count", [0, 1, 83, 59_999])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 224, 224)])
def test_chunks_of_an_object_alone_have_a_good_size(shape: tuple[int, int, int], count: int) -> None:
    rows = rows_of_objects(count, False, shape, "float32")
    plan = ArrayPlan("images", False, (count, *shape), "float32", rows)
    assert plan.chunk_rows == (1 if shape[0] == 3 or count < 2 else min(count, 20))
    assert count <= rows < max(1, count) + plan.chunk_rows
    assert rows_of_objects(count, True, shape, "float32") == count


def test_a_flipped_byte_is_seen_by_zarr_itself(tmp_path: Path) -> None:
    values = pixels(6, 1, 5, 4)
    plan = plan_of(values, 6)
    written(tmp_path / "s", values, plan)
    for name in (object_name("images", 0), plan.labels_object):
        path = tmp_path / "s" / name
        data = path.read_bytes()
        for at in range(0, len(data), 5):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            source = ZarrSource(tmp_path / "s")
            with pytest.raises(StoreDamagedError):
                [*source.read(range(6), 1), source.label_of(0)]
        path.write_bytes(data)


@pytest.mark.parametrize("operation", ["write", "fsync", "close", "rename", "fsync_directory"])
def test_a_failure_leaves_nothing(operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FileOps, *arguments: Any) -> Any:
        if operation == "close":
            os.close(arguments[0])
        raise OSError(errno.ENOSPC, "the disk is full")

    (tmp_path / "images").mkdir()
    values = pixels(4, 1, 5, 4)
    ops = type("Full", (FileOps,), {operation: fail})()
    writer = ZarrWriter(tmp_path, ID, 0, "images/c.0.0.0.0", plan_of(values, 4), 4, ops)

    def work() -> None:
        writer.write(range(4), [""] * 4, values)
        writer.publish()

    with pytest.raises(OSError, match="full"):
        work()
    writer.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("count", [3, 5])
def test_an_object_has_as_many_images_as_it_was_made_for(count: int, tmp_path: Path) -> None:
    values = pixels(count, 1, 5, 4)
    writer = ZarrWriter(tmp_path, ID, 0, "images/c.0.0.0.0", plan_of(values, 4), 4)
    writer.write(range(count), [""] * count, values)
    with pytest.raises(StoreError, match=f"{count} of 4 images came"):
        writer.publish()
    writer.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# sources


def read_all(source: ZarrSource) -> dict[str, tuple[Any, list[int] | None]]:
    found = {}
    for shard in source.shards():
        batches = [batch for batch in source.read(shard.samples, 1) if isinstance(batch, Batch)]
        labels = [label for label in map(source.label_of, shard.samples) if label is not None]
        found[shard.name] = np.concatenate([batch.images for batch in batches]), labels
    return found


@pytest.mark.parametrize("options", [{}, {"compressors": None}, {"shards": (6, 5, 4, 3)}, {"zipped": True}], ids=str)
def test_arrays_of_every_cut(options: dict[str, Any], tmp_path: Path) -> None:
    values = pixels(10, 5, 4, 3)
    if options.pop("zipped", False):
        options["compressors"] = zarr.codecs.GzipCodec()
    group = zarr.create_group(tmp_path / "g")
    for name in ("train/images", "test/x_all", "alone"):
        array = group.create_array(name, shape=values.shape, dtype="uint8", chunks=(2, 5, 4, 3), **options)
        array[:] = values
    group.create_array("train/labels", data=np.arange(10, dtype=np.int16), chunks=(3,))
    group.create_array("test/y_all", data=np.arange(10, 20), chunks=(3,))
    group.create_array("other", data=np.arange(4.0), chunks=(4,))
    assert looks_like_zarr(tmp_path / "g")
    source = ZarrSource(tmp_path / "g")
    found = read_all(source)
    assert sorted(found) == ["alone", "test/x_all", "train/images"]
    assert all(np.array_equal(images, nchw(values)) for images, _ in found.values())
    assert [found[name][1] for name in sorted(found)] == [[], list(range(10, 20)), list(range(10))]
    assert source.left_alone == "the arrays other (neither images nor their labels)"
    assert set(source.survey().shapes) == {(3, 5, 4)}
    assert source.array_shape(0) == (10, 5, 4, 3)
    assert source.path_of(12) == "test/x_all#2"


def test_one_array_alone(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(9, 5, 4), dtype="uint8", chunks=(2, 5, 4))
    array[:] = pixels(9, 5, 4)
    source = ZarrSource(tmp_path / "a")
    assert np.array_equal(read_all(source)["images"][0][:, 0], pixels(9, 5, 4))
    parts = [batch.images for batch in source.read(range(3, 8), 1) if isinstance(batch, Batch)]
    assert np.array_equal(np.concatenate(parts)[:, 0], pixels(9, 5, 4)[3:8])


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "bool"])
def test_only_bytes_are_transformed(dtype: str, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=np.ones((2, 5, 4), dtype))
    with pytest.raises(StoreError, match="uint8"):
        ZarrSource(tmp_path / "a")


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        ZarrSource(tmp_path / "a")
    with pytest.raises(StoreError, match="no Zarr array or group"):
        ZarrSource(tmp_path)
    zarr.create_group(tmp_path / "g").create_array("x", data=np.arange(3))
    with pytest.raises(StoreError, match="no array of images"):
        ZarrSource(tmp_path / "g")
    assert not looks_like_zarr(tmp_path)


def test_wrong_labels(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g")
    group.create_array("images", data=pixels(4, 5, 4) | 1)
    group.create_array("labels", data=np.arange(5))
    with pytest.raises(StoreError, match="labels are 4 integers"):
        ZarrSource(tmp_path / "g").survey()


def test_missing_chunks_are_no_black_images(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(9, 5, 4), dtype="uint8", chunks=(2, 5, 4))
    array[:] = pixels(9, 5, 4) | 1
    (tmp_path / "a" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(StoreDamagedError, match="lacks 1 of its 5"):
        ZarrSource(tmp_path / "a")


@pytest.mark.parametrize("field", ["shape", "chunk_shape"])
def test_absurd_headers(field: str, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=pixels(9, 5, 4) | 1, chunks=(2, 5, 4))
    path = tmp_path / "a" / "zarr.json"
    document = json.loads(path.read_text())
    if field == "shape":
        document["shape"][0] = 10**17
    else:
        document["chunk_grid"]["configuration"]["chunk_shape"] = [10**9, 10**9, 10**9]
    path.write_text(json.dumps(document))
    with pytest.raises(StoreDamagedError):
        ZarrSource(tmp_path / "a")


def test_a_source_that_changes(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=pixels(9, 5, 4) | 1, chunks=(2, 5, 4))
    source = ZarrSource(tmp_path / "a")
    path = tmp_path / "a" / "c" / "0" / "0" / "0"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StoreError, match="changed since"):
        read_all(source)


def test_random_damage(tmp_path: Path) -> None:
    """Only our own errors come out; data that zarr stored without checksums may be other pixels."""
    group = zarr.create_group(tmp_path / "g")
    group.create_array("images", data=pixels(6, 5, 4) | 1, chunks=(3, 5, 4))
    group.create_array("labels", data=np.arange(1, 7), chunks=(3,))
    shutil.copytree(tmp_path / "g", tmp_path / "whole")
    files = sorted(path.relative_to(tmp_path / "g") for path in (tmp_path / "g").rglob("*") if path.is_file())
    rng, refused = random.Random(0), 0
    for _ in range(120):
        name = rng.choice(files)
        data = bytearray((tmp_path / "whole" / name).read_bytes())
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 4)] = rng.choice([b"", b"\xff", b"0", b"-", b"9999", b"\0\0"])
        (tmp_path / "g" / name).write_bytes(data)
        try:
            source = ZarrSource(tmp_path / "g")
            source.survey()
            read_all(source)
        except DlmtError:
            refused += 1
        shutil.copy(tmp_path / "whole" / name, tmp_path / "g" / name)
    assert refused > 40
