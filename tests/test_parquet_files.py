"""Parquet files of images: what is written is read back by pyarrow and `datasets`, and every form of source is read."""

from __future__ import annotations

import errno
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dlmt_fast.errors import DlmtError, StoreDamagedError, StoreError
from dlmt_fast.stores.contract import Batch, Refused
from dlmt_fast.stores.npy import decode_npy
from dlmt_fast.stores.parquet import Decoding, ParquetSource, looks_like_parquet
from dlmt_fast.stores.parquet_format import read_footer, read_rows
from dlmt_fast.stores.parquet_writer import GROUP_ROWS, ParquetWriter
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import FileOps, file_digest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ID = "0123456789abcdef" * 2
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def written(
    root: Path, images: np.ndarray[Any, Any], name: str = "train-00000-of-00001.parquet", **options: Any
) -> Any:
    labels = options.pop("numbers", None)
    step = options.pop("step", 7)
    writer = ParquetWriter(root, ID, 0, name, str(images.dtype), labels=labels is not None, **options)
    for start in range(0, len(images), step):
        part = range(start, min(start + step, len(images)))
        chosen = None if labels is None else labels[part.start : part.stop]
        writer.write(part, [f"a/{i}.png" for i in part], images[part.start : part.stop], chosen)
    return writer.publish()


def table(rows: list[dict[str, Any]], path: Path, kinds: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write rows as somebody else would."""
    metadata = options.pop("metadata", None)
    schema = pa.schema(list(({"image": IMAGE, "label": pa.int64()} if kinds is None else kinds).items()))
    schema = schema if metadata is None else schema.with_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)
    return path


def row(seed: int, path: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"image": {"bytes": encode_png(pixels(3, 4, 5, seed=seed)), "path": path}, "label": seed % 3, **fields}


def read_all(source: Any, workers: int = 2) -> tuple[dict[int, Any], dict[int, int], list[Refused]]:
    images, labels, refused = {}, {}, []
    for shard in source.shards():
        for item in source.part(shard.samples).read(shard.samples, workers):
            if isinstance(item, Refused):
                refused.append(item)
                continue
            assert isinstance(item, Batch)
            images |= dict(zip(item.indices, item.images, strict=True))
            labels |= dict(zip(item.indices, item.labels or [], strict=bool(item.labels)))
    return images, labels, refused


# what is written


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [None, ["ant", "bee"]])
def test_a_file_as_others_read_it(channels: int, classes: list[str] | None, tmp_path: Path) -> None:
    images, labels = pixels(2 * GROUP_ROWS + 3, channels, 4, 5), [i % 2 for i in range(2 * GROUP_ROWS + 3)]
    published = written(tmp_path, images, numbers=labels, classes=classes)
    path = tmp_path / published.name
    assert (published.size, published.sha256) == file_digest(path)
    assert published.count == len(images)
    assert [entry.name for entry in tmp_path.iterdir()] == [published.name]
    found = pq.read_table(path)
    assert found.column("label").to_pylist() == labels
    for image, expected in zip(found.column("image").to_pylist(), images, strict=True):
        assert image["path"] is None
        with PIL.Image.open(io.BytesIO(image["bytes"])) as opened:
            assert np.array_equal(np.asarray(opened).reshape(4, 5, channels).transpose(2, 0, 1), expected)


def test_datasets_reads_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "store").mkdir()
    images = pixels(12, 3, 4, 5)
    for shard in range(2):
        part = slice(6 * shard, 6 * shard + 6)
        written(tmp_path / "store", images[part], f"train-{shard:05d}-of-00002.parquet", numbers=[shard] * 6)
    (tmp_path / "store" / "dlmt-store.json").write_text("{}")
    for way in ((str(tmp_path / "store"),), ("parquet",)):
        files = {"data_files": str(tmp_path / "store" / "*.parquet")} if way == ("parquet",) else {}
        found = datasets.load_dataset(*way, split="train", cache_dir=str(tmp_path / "cache"), **files)
        assert found["label"][:] == [0] * 6 + [1] * 6
        for image, expected in zip(found["image"], images, strict=True):
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1), expected)


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint16", "float16"])
def test_other_dtypes_are_npy_files(dtype: str, tmp_path: Path) -> None:
    images = pixels(5, 3, 4, 5).astype(dtype)
    path = tmp_path / written(tmp_path, images).name
    assert pq.read_schema(path).names == ["image"]
    found = [np.load(io.BytesIO(image["bytes"])) for image in pq.read_table(path).column("image").to_pylist()]
    assert np.array_equal(np.stack(found), images)
    assert found[0].dtype == np.dtype(dtype)


def test_the_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    images, digests = pixels(GROUP_ROWS + 20, 1, 4, 5), set()
    for step in (1, 7, 1000):
        digests.add(written(tmp_path, images, step=step, numbers=[0] * len(images)).sha256)
    assert len(digests) == 1
    flat = written(tmp_path, np.zeros_like(images), numbers=[7] * len(images))
    assert flat.size == written(tmp_path, images, numbers=list(range(len(images)))).size


def test_nothing_but_pixels_and_labels_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / written(tmp_path, pixels(GROUP_ROWS + 1, 1, 4, 5), numbers=[1] * (GROUP_ROWS + 1)).name
    metadata = pq.read_metadata(path)
    assert set(metadata.metadata) == {b"huggingface"}
    assert metadata.num_row_groups == 2
    for group in range(2):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            assert (chunk.compression, chunk.is_stats_set, chunk.has_dictionary_page) == ("UNCOMPRESSED", False, False)
    assert b"ARROW:schema" not in path.read_bytes()


def test_names_where_they_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / written(tmp_path, pixels(3, 1, 4, 5), paths=True).name
    assert [image["path"] for image in pq.read_table(path).column("image").to_pylist()] == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
    ]


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / written(tmp_path, pixels(0, 1, 4, 5), numbers=[]).name
    assert pq.read_table(path).num_rows == 0
    assert list(read_rows(path, read_footer(path).columns, [], range(0))) == []


@pytest.mark.parametrize("operation", ["write", "fsync", "close", "rename", "fsync_directory"])
def test_a_failure_leaves_nothing(operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FileOps):
        calls = 0

    def fail(self: Full, *arguments: Any) -> None:
        self.calls += 1
        if operation != "write" or self.calls == 3:
            if operation == "close":
                FileOps.close(self, *arguments)
            raise OSError(errno.ENOSPC, "the disk is full")
        FileOps.write(self, *arguments)

    monkeypatch.setattr(Full, operation, fail)
    writer = ParquetWriter(tmp_path, ID, 0, "a.parquet", "uint8", ops=Full())
    writer.write(range(1), [""], pixels(1, 1, 4, 5))
    with pytest.raises(OSError, match="full") as caught:
        writer.publish()
    assert caught.value.errno == errno.ENOSPC
    writer.abort()
    assert list(tmp_path.iterdir()) == []


# what is read


def test_what_we_wrote_is_read(tmp_path: Path) -> None:
    images = pixels(30, 3, 4, 5)
    written(tmp_path, images, numbers=range(30), classes=[f"c{i}" for i in range(30)])
    source = ParquetSource(tmp_path)
    assert source.columns.classes == tuple(f"c{i}" for i in range(30))
    assert dict.fromkeys(source.survey().shapes) == {(3, 4, 5): None}
    found, labels, refused = read_all(source)
    assert np.array_equal(np.stack([found[i] for i in range(30)]), images)
    assert labels == {i: i for i in range(30)}
    assert refused == []
    assert source.path_of(17) == "train-00000-of-00001.parquet//17"
    assert source.left_alone == ""


def test_a_folder_of_files_in_shards_of_whole_row_groups(tmp_path: Path) -> None:
    for number, name in enumerate(("data/b.parquet", "data/a.parquet", "c.parquet")):
        table([row(10 * number + i, f"{number}/{i}.png") for i in range(10)], tmp_path / name, row_group_size=4)
    (tmp_path / "README.md").write_text("x")
    source = ParquetSource(tmp_path, shard_rows=5)
    assert source.left_alone == "README.md (no Parquet by name)"
    assert [len(shard.samples) for shard in source.shards()] == [8, 6, 6, 8, 2]
    assert [shard.index for shard in source.shards()] == list(range(5))
    order = [20, *range(21, 30), *range(10, 20), *range(10)]
    assert [source.path_of(i) for i in (0, 12)] == ["c.parquet#0//2/0.png", "data/a.parquet#2//1/2.png"]
    assert [source.path_of(i).rpartition("//")[2] for i in range(30)] == [f"{n // 10}/{n % 10}.png" for n in order]
    found, labels, _ = read_all(source)
    assert [labels[i] for i in range(30)] == [n % 3 for n in order]
    assert all(np.array_equal(found[i], pixels(3, 4, 5, seed=n)) for i, n in enumerate(order))
    for shard in source.shards():
        part = source.part(shard.samples)
        assert [part.path_of(i) for i in shard.samples] == [source.path_of(i) for i in shard.samples]
        assert [part.label_of(i) for i in shard.samples] == [labels[i] for i in shard.samples]


@pytest.mark.parametrize("path", [None, "", "../b.png", "/b", "a//b", "a\\b", "a\nb", "x/."])
def test_paths_that_no_image_can_have(path: str | None, tmp_path: Path) -> None:
    source = ParquetSource(table([row(0, path)], tmp_path / "x.parquet"))
    assert source.path_of(0) == "x.parquet//0"


def test_a_shard_is_of_one_split(tmp_path: Path) -> None:
    for name in ("train-0.parquet", "test/0.parquet", "cats.parquet", "t10k-images.parquet"):
        table([row(0), row(1)], tmp_path / name)
    found = [(shard.name, len(shard.samples)) for shard in ParquetSource(tmp_path).shards()]
    assert found == [("train-00000.parquet", 2), ("test-00001.parquet", 4), ("train-00002.parquet", 2)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_without_a_struct(kind: Any, tmp_path: Path) -> None:
    rows = [{"image": encode_png(pixels(1, 4, 5)), "fine": 3, "note": "x"}]
    path = table(rows, tmp_path / "x.parquet", {"image": kind, "fine": pa.int8(), "note": pa.string()})
    source = ParquetSource(path)
    assert source.left_alone == "the columns fine, note"
    assert np.array_equal(read_all(source)[0][0], pixels(1, 4, 5))
    assert read_all(source)[1] == {}


def test_labels_by_the_metadata(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": ["a", "b"]}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    rows = [{"img": {"bytes": encode_png(pixels(1, 4, 5)), "path": None}, "fine": 1}]
    source = ParquetSource(table(rows, tmp_path / "x.parquet", {"img": IMAGE, "fine": pa.int64()}, metadata=told))
    assert (source.columns.image, source.columns.label, source.columns.classes) == ("img", "fine", ("a", "b"))
    assert read_all(source)[1] == {0: 1}


def test_rows_that_cannot_be_taken(tmp_path: Path) -> None:
    rows = [row(0), {"image": None, "label": 1}, {"image": {"bytes": None, "path": "x"}, "label": 1}, row(3)]
    rows += [{"image": {"bytes": b"nothing", "path": None}, "label": 2}, {**row(5), "label": None}]
    source = ParquetSource(table(rows, tmp_path / "x.parquet"))
    found, labels, refused = read_all(source)
    assert sorted(found) == [0, 3]
    assert labels == {0: 0, 3: 0}
    reasons = {item.index: item.reason for item in refused}
    assert [item.path for item in refused] == ["x.parquet//1", "x.parquet#2//x", "x.parquet//4", "x.parquet//5"]
    assert reasons[1] == reasons[2] == "its image is null"
    assert "no PNG" in reasons[4]
    assert reasons[5] == "its label is null"
    assert {item.index: item.reason for item in source.survey().refused} == reasons


def test_sizes_and_channels(tmp_path: Path) -> None:
    path = table([row(0), row(1)], tmp_path / "x.parquet")
    source = ParquetSource(path, Decoding(1, (2, 3), "stretch"))
    assert set(source.survey().shapes) == {(1, 2, 3)}
    assert read_all(source)[0][1].shape == (1, 2, 3)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    table([row(0)], tmp_path / "a.parquet")
    table([{"image": row(0)["image"]}], tmp_path / "b.parquet", {"image": IMAGE})
    with pytest.raises(StoreError, match="other columns"):
        ParquetSource(tmp_path)


@pytest.mark.parametrize(
    "kinds", [{"text": pa.string()}, {"a": IMAGE, "b": IMAGE}, {"image": pa.list_(pa.uint8())}], ids=str
)
def test_files_without_images(kinds: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="column of images"):
        ParquetSource(table([], tmp_path / "x.parquet", kinds))


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no rows"):
        ParquetSource(table([], tmp_path / "x.parquet"))
    with pytest.raises(StoreError, match="does not exist"):
        ParquetSource(tmp_path / "y")
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(StoreError, match="no Parquet file"):
        ParquetSource(tmp_path)


def test_a_file_that_changes(tmp_path: Path) -> None:
    path = table([row(0)], tmp_path / "x.parquet")
    source = ParquetSource(path)
    table([row(0), row(1)], path)
    with pytest.raises(StoreError, match="changed since"):
        read_all(source)


def test_which_paths_are_parquet(tmp_path: Path) -> None:
    assert not looks_like_parquet(tmp_path / "none")
    assert not looks_like_parquet(tmp_path)
    path = table([row(0)], tmp_path / "deep" / "x.parquet")
    assert looks_like_parquet(tmp_path)
    path.rename(tmp_path / "named-otherwise")
    assert looks_like_parquet(tmp_path / "named-otherwise")
    assert not looks_like_parquet(tmp_path)


# damage


def test_truncated_files(tmp_path: Path) -> None:
    path = table([row(i) for i in range(3)], tmp_path / "x.parquet")
    data = path.read_bytes()
    for size in range(0, len(data), 11):
        path.write_bytes(data[:size])
        with pytest.raises(StoreDamagedError, match=r"no Parquet file|damaged"):
            ParquetSource(path)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, set, cut out or repeated."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, kind = rng.randrange(len(result)), rng.randrange(4)
        if kind == 0:
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\xfe\xff\xff\xff"])
        elif kind == 2:
            del result[at : at + rng.randint(1, 8)]
        else:
            result[at:at] = result[at : at + rng.randint(1, 64)]
    return bytes(result)


def test_random_damage(tmp_path: Path) -> None:
    """Only our own errors come out, and where pages have checksums no other pixels."""
    images, rng, read = pixels(3, 1, 4, 5), random.Random(0), 0
    path = tmp_path / written(tmp_path, images, numbers=[0, 1, 2]).name
    whole = path.read_bytes()
    for _ in range(200):
        path.write_bytes(damaged(whole, rng))
        try:
            source = ParquetSource(path)
            source.survey()
            found, _, _ = read_all(source)
        except DlmtError:
            continue
        read += 1
        assert all(any(np.array_equal(image, expected) for expected in images) for image in found.values())
    assert read < 100


def test_absurd_numbers_of_rows(tmp_path: Path) -> None:
    path = tmp_path / written(tmp_path, pixels(3, 1, 4, 5)).name
    data = path.read_bytes()
    for old, new in ((b"\x16\x06", b"\x16\x7e"),):  # three rows as a zigzag number, and sixty-three
        path.write_bytes(data.replace(old, new))
        with pytest.raises(StoreDamagedError):
            ParquetSource(path).survey()


def test_stored_arrays_are_checked(tmp_path: Path) -> None:
    path = tmp_path / written(tmp_path, pixels(3, 1, 4, 5).astype(np.int32)).name
    (first, *_) = read_rows(path, read_footer(path).columns, [0], range(3))
    assert first.image is not None
    with pytest.raises(StoreDamagedError):
        decode_npy(first.image, np.dtype(np.float32), "x")
