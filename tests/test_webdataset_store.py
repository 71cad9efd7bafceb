"""Tars of samples: what is read, what is refused, and stores of them as other readers see them."""

from __future__ import annotations

import gc
import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import ImageError, ParameterError, StoreDamagedError, StoreError, UsageError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.stores.contract import Batch
from dlmt_fast.stores.decode import decode, decode_bytes
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import FileOps
from dlmt_fast.stores.tar_writer import TarWriter
from dlmt_fast.stores.webdataset import WebdatasetSource, looks_like_webdataset

SCHEME = dlmt.DLMT("mat_mmt")
ID = "0" * 32


def pixels(seed: int, shape: tuple[int, int, int] = (3, 4, 5)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(seed: int) -> bytes:
    return encode_png(pixels(seed))


def tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], **options: Any) -> Path:
    """As tar(1) writes it: with times and users."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1234567890, "secret-user"
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


class Place:
    """Two tars of samples with class numbers, and what a job makes of them."""

    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key = root, key
        self.source, self.store, self.back = root / "source", root / "store", root / "back"
        self.originals = {
            "a.tar": {f"{i:03d}": (i, i % 3) for i in range(5)},
            "b.tar": {f"deep/x{i}": (10 + i, i) for i in range(3)},
        }
        for name, samples in self.originals.items():
            members: dict[str, bytes] = {}
            for sample, (seed, label) in samples.items():
                members |= {f"{sample}.png": png(seed), f"{sample}.cls": b"%d" % label, f"{sample}.json": b'{"a": 1}'}
            tar(self.source / name, members)

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, to: str | None = None, **options: Any) -> Summary:
        chosen = JobOptions(**options)
        return encrypt_store(self.source, self.store, self.key, SCHEME, self.owner, chosen, target_named=to)

    def decrypt(self) -> Summary:
        return decrypt_store(self.store, self.back, self.key, self.owner)

    def verify(self) -> Summary:
        return verify_store(self.store, self.key, self.owner)


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


# round trips


@pytest.mark.parametrize(
    ("normalize", "dtype"),
    [("none", None), ("none", "narrowest"), ("range", None), ("range", "float32"), ("minmax", "float16")],
)
def test_tars_there_and_back(place: Place, normalize: str, dtype: str | None) -> None:
    done = place.encrypt(normalize=normalize, dtype=dtype)
    assert (done.kind, done.inputs, done.outputs) == ("webdataset", 8, 8)
    assert "the fields json of the samples" in done.notes[-1]
    assert sorted(p.name for p in place.store.iterdir()) == [
        *("dlmt-store.json", "shard-000000.tar", "shard-000001.tar"),
    ]
    assert "8 images decrypt" in place.verify().notes[0]
    assert place.decrypt().notes == []
    limit = SCHEME.plan(place.key, (3, 4, 5), normalize, dtype).worst_error
    assert sorted(p.name for p in place.back.iterdir()) == sorted(place.originals)
    for name, samples in place.originals.items():
        found = contents(place.back / name)
        assert set(found) == {f"{sample}.{field}" for sample in samples for field in ("png", "cls")}
        for sample, (seed, label) in samples.items():
            assert found[f"{sample}.cls"] == b"%d" % label
            assert np.abs(decode_bytes(found[f"{sample}.png"]).astype(int) - pixels(seed)).max() <= limit


def test_one_tar_is_one_file(place: Place) -> None:
    place.source /= "a.tar"
    place.store, place.back = place.root / "out" / "t.tar", place.root / "out" / "u.tar"
    place.encrypt(normalize="none")
    place.verify()
    place.decrypt()
    assert sorted(p.name for p in place.store.parent.iterdir()) == ["t.tar", "t.tar.dlmt-store.json", "u.tar"]
    assert decode_bytes(contents(place.back)["002.png"]).tolist() == pixels(2).tolist()


def test_a_store_is_ordered_by_names_that_tell_nothing(place: Place) -> None:
    place.encrypt()
    for shard in sorted(place.store.glob("*.tar")):
        names = [name for name in contents(shard) if name.endswith(".png")]
        assert names == sorted(names)
        assert all(len(name) == 36 and set(name[:32]) <= set("0123456789abcdef") for name in names)
        with tarfile.open(shard) as archive:
            for info in archive:
                assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)


def test_names_may_be_kept(place: Place) -> None:
    place.encrypt(names="keep")
    assert set(contents(place.store / "shard-000001.tar")) >= {"deep/x0.png", "deep/x0.cls"}
    place.verify()


def test_workers_and_resuming_change_no_byte(place: Place) -> None:
    place.encrypt()
    whole = {p.name: p.read_bytes() for p in place.store.glob("*.tar")}
    (place.store / "shard-000001.tar").unlink()
    assert "1 of 2 shards" in place.encrypt(resume=True).notes[0]
    for path in place.store.iterdir():
        path.unlink()
    place.encrypt(workers=2)
    assert {p.name: p.read_bytes() for p in place.store.glob("*.tar")} == whole


def test_a_folder_becomes_tars_and_comes_back(place: Place) -> None:
    place.source = place.root / "photos"
    for seed, name in enumerate(("cats/a.png", "cats/b.c.png", "dogs/a.png", "dogs/deep/d.png")):
        (place.source / name).parent.mkdir(parents=True, exist_ok=True)
        (place.source / name).write_bytes(png(seed))
    done = place.encrypt("webdataset", normalize="none", shard_size=3)
    assert "classes by number: 0 cats, 1 dogs" in done.notes
    stored = contents(place.store / "shard-000000.tar") | contents(place.store / "shard-000001.tar")
    assert sorted(data for name, data in stored.items() if name.endswith(".cls")) == [b"0", b"0", b"1", b"1"]
    place.verify()
    place.decrypt()
    back = {name: data for path in sorted(place.back.iterdir()) for name, data in contents(path).items()}
    assert set(back) == {
        f"{name}.{field}" for name in ("cats/a", "cats/b_c", "dogs/a", "dogs/deep/d") for field in ("png", "cls")
    }
    assert back["dogs/a.cls"] == b"1"
    assert decode_bytes(back["dogs/a.png"]).tolist() == pixels(2).tolist()


def test_tars_become_a_folder(place: Place) -> None:
    place.encrypt("folder", normalize="none")
    assert sorted(p.name for p in place.store.iterdir() if p.is_dir()) == ["0", "1", "2"]
    place.verify()
    place.decrypt()
    assert decode(place.back / "1" / "b.tar" / "deep" / "x1.png").tolist() == pixels(11).tolist()


# other readers


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset closes no tar
def test_webdataset_reads_a_store(place: Place) -> None:
    webdataset = pytest.importorskip("webdataset")
    place.encrypt(normalize="none", dtype="narrowest", names="keep")
    plan = SCHEME.plan(place.key, (3, 4, 5), "none", "narrowest")
    shards = [str(place.store / f"shard-00000{i}.tar") for i in range(2)]
    data = webdataset.WebDataset(shards, shardshuffle=False).decode()
    found = {sample["__key__"]: (sample["npy"], sample["cls"]) for sample in data}
    expected = {key: value for samples in place.originals.values() for key, value in samples.items()}
    assert set(found) == set(expected)
    for key, (seed, label) in expected.items():
        assert found[key][1] == label
        assert np.array_equal(found[key][0], dlmt.encrypt(pixels(seed), plan))
    del data
    gc.collect()  # here, where it is expected


def test_datasets_reads_a_store(place: Place) -> None:
    datasets = pytest.importorskip("datasets")
    place.encrypt()
    files = [str(path) for path in sorted(place.store.glob("*.tar"))]
    rows = list(
        datasets.load_dataset(
            "webdataset", data_files=files, split="train", streaming=True, cache_dir=str(place.root / "cache")
        )
    )
    assert len(rows) == 8
    assert sorted(row["cls"] for row in rows) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert all(row["png"].size == (5, 4) for row in rows)


# the source


def test_samples_and_their_paths(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar",
        {
            "./a/b.JPG.x": b"",  # another field
            "./a/b.left.png": png(1),
            "__meta__.json": b"{}",
            ".hidden": b"",
            "c.png": png(2),
        },
    )
    source = WebdatasetSource(path)
    assert [source.path_of(i) for i in range(2)] == ["x.tar//a/b.left.png", "x.tar//c.png"]
    assert source.left_alone == "2 members whose names are not KEY.FIELD and the fields jpg.x of the samples"
    batch = next(source.read([1, 0], 1))
    assert isinstance(batch, Batch)
    assert list(batch.indices) == [1, 0]
    assert np.array_equal(batch.images, [pixels(2), pixels(1)])
    assert source.label_of(0) is None


@pytest.mark.parametrize(("field", "content", "label"), [("cls", b"12\n", 12), ("txt", b"7", 7), ("json", b" 3 ", 3)])
def test_labels_are_numbers_alone(tmp_path: Path, field: str, content: bytes, label: int) -> None:
    members = {"a.png": png(1), f"a.{field}": content, "b.png": png(2), f"b.{field}": b"0"}
    source = WebdatasetSource(tar(tmp_path / "x.tar", members))
    assert [source.label_of(0), source.label_of(1)] == [label, 0]
    assert source.left_alone == ""


def test_texts_are_dropped_and_named(tmp_path: Path) -> None:
    source = WebdatasetSource(tar(tmp_path / "x.tar", {"a.png": png(1), "a.txt": b"7", "b.png": png(2), "b.txt": b"x"}))
    assert source.label_of(0) is None
    assert source.left_alone == "the fields txt of the samples"


@pytest.mark.parametrize("content", [b"cat", b"-1", b"1.0", b"", b"1" * 30])
def test_a_class_that_is_no_number_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(StoreError, match="1 of 2 samples have a class number"):
        WebdatasetSource(tar(tmp_path / "x.tar", {"a.png": png(1), "a.cls": b"1", "b.png": png(2), "b.cls": content}))


def test_samples_without_their_one_image(place: Place) -> None:
    members = {"a.png": png(1), "b.txt": b"x", "c.png": png(2), "c.jpg": b"", "d.png": b"no image"}
    tar(place.source / "a.tar", members)
    (place.source / "b.tar").unlink()
    with pytest.raises(ImageError, match=r"a.tar//b: its sample has no image; one was expected \(and 2 more\)"):
        place.encrypt()
    done = place.encrypt(on_error="quarantine")
    assert (done.inputs, done.outputs) == (4, 1)
    assert sorted(item["path"] for item in done.quarantined) == ["a.tar//b", "a.tar//c", "a.tar//d.png"]
    place.verify()


def altered(change: Callable[[tarfile.TarInfo], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("a.png")
            change(info)
            archive.addfile(info, io.BytesIO(bytes(info.size)))

    return write


def named(name: str) -> Callable[[Path], None]:
    return altered(lambda info: setattr(info, "name", name))


def of_type(kind: bytes) -> Callable[[Path], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, "/etc/passwd"

    return altered(change)


def cut(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(tar(path, {"a.png": png(1), "b.png": png(2)}).read_bytes()[:size])

    return write


def two(*members: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tar(path, [(name, b"1") for name in members])

    return write


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress(tar(path, {"a.png": png(1)}).read_bytes()))


def garbled(path: Path) -> None:
    data = bytearray(tar(path, {"a.png": png(1), "b.png": png(2)}).read_bytes())
    data[1024 + 100] ^= 1  # in the second header
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (of_type(tarfile.SYMTYPE), "which is a link"),
        (of_type(tarfile.LNKTYPE), "which is a link"),
        (of_type(tarfile.CHRTYPE), "neither a file nor a folder"),
        (of_type(tarfile.FIFOTYPE), "neither a file nor a folder"),
        (named("../a.png"), "not one of a file inside"),
        (named("/a.png"), "not one of a file inside"),
        (named("a/../../b.png"), "not one of a file inside"),
        (named("a\\b.png"), "not one of a file inside"),
        (named("a\nb.png"), "not one of a file inside"),
        (two("a.png", "b.png", "a.cls"), "the key a in two places"),
        (two("a.png", "a.png"), "a.png twice"),
        (cut(600), "truncated inside a.png|damaged one"),
        (cut(1024), "does not end with 1024 zero bytes"),
        (cut(1024 + 100), "follows its member|damaged one"),
        (cut(2048), "does not end with 1024 zero bytes"),
        (cut(2048 + 512), "does not end with 1024 zero bytes"),
        (garbled, "no header"),
        (packed, "is compressed; unpack it"),
        (lambda path: path.write_bytes(b""), "no tar, or a damaged one"),
        (lambda path: path.write_bytes(b"no tar" * 400), "no tar, or a damaged one"),
        (lambda path: path.write_bytes(bytes(10240)), "holds no samples"),
    ],
)
def test_tars_that_are_refused(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path / "x.tar")
    with pytest.raises(StoreError, match=message) as caught:
        WebdatasetSource(tmp_path / "x.tar")
    assert "x.tar" in str(caught.value)


def test_a_tar_that_changes_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": png(1)})
    source = WebdatasetSource(path)
    tar(path, {"b.png": png(2), "c.png": png(2)})
    with pytest.raises(StoreError, match="changed since"):
        source.path_of(0)


def test_which_paths_are_tars(tmp_path: Path, place: Place) -> None:
    assert looks_like_webdataset(place.source)
    assert looks_like_webdataset(place.source / "a.tar")
    (tmp_path / "empty").mkdir()
    assert not looks_like_webdataset(tmp_path / "empty")
    with pytest.raises(StoreError, match="holds no tar"):
        WebdatasetSource(tmp_path / "empty")
    with pytest.raises(StoreError, match="does not exist"):
        WebdatasetSource(tmp_path / "nowhere.tar")
    with pytest.raises(ParameterError, match="--shard-size does not apply"):
        place.encrypt(shard_size=3)
    with pytest.raises(UsageError, match="can become webdataset or folder"):
        place.encrypt("idx")


# the writer and damaged stores


def test_the_writer_leaves_nothing_after_a_failure(tmp_path: Path) -> None:
    class NoSync(FileOps):
        def fsync(self, descriptor: int) -> None:
            raise OSError("the disk failed")

    writer = TarWriter(tmp_path, ID, 0, "x.tar", NoSync())
    writer.write(range(1), ["a.png"], pixels(1)[None])
    with pytest.raises(OSError, match="the disk failed"):
        writer.publish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_one_key_is_one_sample(tmp_path: Path) -> None:
    writer = TarWriter(tmp_path, ID, 0, "x.tar")
    with pytest.raises(StoreError, match="two samples would have the key a"):
        writer.write(range(2), ["a.png", "a.png"], np.stack([pixels(1)] * 2))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [600, -1])
def test_a_damaged_store_is_found(place: Place, where: int) -> None:
    place.encrypt()
    path = place.store / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    for work in (place.verify, place.decrypt):
        with pytest.raises(StoreDamagedError, match=r"shard-000001\.tar is damaged"):
            work()
    assert not list(place.back.glob("shard-000001.tar"))
    data[where] ^= 1
    path.write_bytes(data)
    decrypt_store(place.store, place.back, place.key, place.owner, resume=True)
    assert len(list(place.back.iterdir())) == len(list(place.store.glob("*.tar")))
    path.unlink()
    with pytest.raises(StoreDamagedError, match="is missing"):
        place.verify()
