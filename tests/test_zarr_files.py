"""Zarr arrays of images: zarr-python reads what is written, and sources of every cut and codec are read."""

from __future__ import annotations

import errno
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlmt_fast.errors import DlmtError, StoreDamagedError, StoreError
from dlmt_fast.stores.contract import Batch
from dlmt_fast.stores.listing import read_listed, read_listing
from dlmt_fast.stores.publish import FileOps
from dlmt_fast.stores.zarr_arrays import ZarrSource, looks_like_zarr
from dlmt_fast.stores.zarr_format import ArrayPlan, metadata_files, rows_of_objects
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


def written(root: Path, values: np.ndarray[Any, Any], plan: ArrayPlan, shard_rows: int, step: int = 7) -> list[Any]:
    """Write `values` in shards of `shard_rows`, each in calls of `step` images; labels are 1000, 1001, ..."""
    root.mkdir(exist_ok=True)
    published = []
    for shard, start in enumerate(range(0, len(values), shard_rows)):
        rows = range(start, min(start + shard_rows, len(values)))
        writer = ZarrWriter(root, ID, shard, plan, rows)
        for first in range(rows.start, rows.stop, step):
            part = range(first, min(first + step, rows.stop))
            labels = None if plan.labels is None else [1000 + i for i in part]
            writer.write(part, [""] * len(part), nchw(values)[part.start : part.stop], labels)
        published.append(writer.publish())
    for name, data in metadata_files([plan]):
        (root / name).write_bytes(data)
    return published


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(20, 5, 4), (20, 3, 5, 4), (20, 5, 4, 3), (20, 1, 5, 4), (1, 5, 4)], ids=str)
def test_zarr_reads_what_is_written(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    values = pixels(*shape).astype(dtype)
    plan = ArrayPlan("images", "labels", shape, dtype, 8)
    published = written(tmp_path / "s", values, plan, 8)
    assert sum(shard.count for shard in published) == len(values)
    group = zarr.open_group(tmp_path / "s", mode="r")
    assert [name for name, _ in group.members()] == ["images", "labels"]
    assert group["images"].dtype == np.dtype(dtype)
    assert np.array_equal(group["images"][:], values)
    assert group["labels"][:].tolist() == [1000 + i for i in range(len(values))]
    assert np.array_equal(zarr.open_array(tmp_path / "s" / "images", mode="r")[len(values) - 1], values[-1])
    for shard in published:
        for entry in read_listing((tmp_path / "s" / shard.name).read_bytes(), shard.name):
            read_listed(tmp_path / "s", entry)


def test_the_bytes_depend_on_the_images_alone(tmp_path: Path) -> None:
    values, plan = pixels(50, 5, 4), ArrayPlan("images", None, (50, 5, 4), "uint8", 20)
    digests = {
        tuple(shard.sha256 for shard in written(tmp_path / str(step), values, plan, 20, step)) for step in (1, 7, 50)
    }
    assert len(digests) == 1
    blank = written(tmp_path / "blank", np.zeros_like(values), plan, 20)
    assert [shard.size for shard in blank] == [shard.size for shard in written(tmp_path / "1b", values, plan, 20)]
    assert np.array_equal(zarr.open_array(tmp_path / "blank" / "images", mode="r")[:], np.zeros_like(values))


def test_objects_of_many_chunks(tmp_path: Path) -> None:
    """Chunks of several images, several objects a shard, and a last chunk that no image fills."""
    shape = (50, 3, 64, 80)
    plan = ArrayPlan("images", "labels", shape, "uint8", 12)
    assert plan.chunk_rows == 4
    values = pixels(*shape)
    written(tmp_path / "s", values, plan, 24)
    array = zarr.open_group(tmp_path / "s", mode="r")["images"]
    assert (array.shards, array.chunks) == ((12, 3, 64, 80), (4, 3, 64, 80))
    assert np.array_equal(array[:], values)
    assert np.array_equal(array[np.array([3, 49, 13])], values[[3, 49, 13]])


@pytest.mark.parametrize("count", [1, 999, 100_000])
@pytest.mark.parametrize("shape", [(28, 28), (3, 224, 224), (3, 4000, 4000)])
def test_objects_have_a_bounded_size(shape: tuple[int, ...], count: int) -> None:
    plan = ArrayPlan("images", None, (count, *shape), "float32", rows_of_objects((count, *shape), "float32"))
    assert plan.object_rows % plan.chunk_rows == 0
    assert plan.object_rows * plan.item_bytes <= max(64 << 20, plan.item_bytes)
    assert plan.object_rows < count + plan.chunk_rows


def test_a_flipped_byte_is_seen_by_zarr_itself(tmp_path: Path) -> None:
    plan = ArrayPlan("images", "labels", (6, 5, 4), "uint8", 6)
    written(tmp_path / "s", pixels(6, 5, 4), plan, 6)
    for name in (plan.object_name(0), plan.labels_name(0)):
        path = tmp_path / "s" / name
        data = path.read_bytes()
        for at in range(0, len(data), 5):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            source = ZarrSource(tmp_path / "s")
            with pytest.raises(StoreDamagedError):
                list(source.read(range(6), 1))
        path.write_bytes(data)


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "close", "rename", "fsync_directory"])
def test_a_failure_leaves_nothing(operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FileOps):
        calls = 0

    def fail(self: Full, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls < 2:
            return getattr(FileOps, operation)(self, *arguments)
        if operation == "close":
            FileOps.close(self, *arguments)
        raise OSError(errno.ENOSPC, "the disk is full")

    ops = Full()
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    monkeypatch.setattr(Full, operation, fail)
    writer = ZarrWriter(tmp_path, ID, 0, ArrayPlan("images", "labels", (4, 5, 4), "uint8", 2), range(4), ops)

    def work() -> None:
        writer.write(range(4), [""] * 4, pixels(4, 1, 5, 4), range(4))
        writer.publish()

    with pytest.raises(OSError, match="full"):
        work()
    writer.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_shard_is_whole_or_not_published(tmp_path: Path) -> None:
    plan = ArrayPlan("images", None, (4, 5, 4), "uint8", 4)
    writer = ZarrWriter(tmp_path, ID, 0, plan, range(4))
    writer.write(range(3), [""] * 3, pixels(3, 1, 5, 4))
    with pytest.raises(StoreError, match="1 of 4 images did not come"):
        writer.publish()
    with pytest.raises(StoreError, match="more images came"):
        writer.write(range(2), [""] * 2, pixels(2, 1, 5, 4))
    with pytest.raises(StoreError, match="some have none"):
        writer.write(range(1), [""], pixels(1, 1, 5, 4), [1])
    writer.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# sources


def read_all(source: ZarrSource) -> dict[str, tuple[Any, list[int] | None]]:
    found = {}
    for shard in source.shards():
        batches = [batch for batch in source.read(shard.samples, 1) if isinstance(batch, Batch)]
        labels = [label for batch in batches for label in batch.labels or []]
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
