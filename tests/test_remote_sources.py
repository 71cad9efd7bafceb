"""Sources on S3 and other fsspec stores: the bytes that the same files on a disk give, and what is told when not."""

from __future__ import annotations

import errno
import gzip
import http.server
import io
import json
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import dlmt_fast as dlmt
from dlmt_fast.cli import main
from dlmt_fast.errors import ImageError, RemoteError, StoreDamagedError, StoreError, UsageError
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, preview_encrypt
from dlmt_fast.pipeline.open import open_source
from dlmt_fast.pipeline.target import Target
from dlmt_fast.stores import attempts, remote
from dlmt_fast.stores.folder import FolderSource
from dlmt_fast.stores.location import located
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.reading import RangedFile

pytest.importorskip("s3fs")

SCHEME = dlmt.DLMT("mat_mmt", max_v_add=1237, max_v_mul=1013)


def pixels(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(1, 256, shape, np.uint8)


def jpeg(seed: int) -> bytes:
    """A photograph that lies on its side."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels(seed, 7, 6, 3)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def folder(root: Path, count: int = 9) -> None:
    for i in range(count):
        data = jpeg(i) if i % 4 == 3 else encode_png(pixels(i, 3, 6, 7))
        put(root / ("cats" if i % 2 else "dogs/deep") / f"a b#{i}?%20.{'jpg' if i % 4 == 3 else 'png'}", data)
    put(root / ".hidden" / "x.png", b"no image")
    put(root / ".hidden" / "deep" / "y.png", b"no image")


def tar(path: Path, first: int, count: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i in range(first, first + count):
            for name, data in ((f"{i}.png", encode_png(pixels(i, 3, 6, 7))), (f"{i}.cls", str(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def tars(root: Path) -> None:
    tar(root / "b-0.tar", 0)
    tar(root / "a-1.tar", 4)
    put(root / "notes.txt", b"left alone")


def parquet(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": jpeg(i), "path": f"{path.stem}/{i}.jpg"}, "label": i} for i in range(5)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def parquets(root: Path) -> None:
    parquet(root / "train" / "0.parquet")
    parquet(root / "test-1.parquet")


def zarr(root: Path) -> None:
    group = pytest.importorskip("zarr").create_group(root)
    group.create_array("anna", data=pixels(0, 5, 3, 6, 7), chunks=(2, 3, 6, 7))
    group.create_array("anna-labels", data=np.arange(5) + 10)


def idx(path: Path, count: int = 6, zipped: bool = False) -> None:
    data = struct.pack(">4B3I", 0, 0, 8, 3, count, 5, 4) + pixels(1, count, 5, 4).tobytes()
    put(path, gzip.compress(data) if zipped else data)


def mnist(root: Path) -> None:
    idx(root / "train-images-idx3-ubyte")
    idx(root / "t10k-images-idx3-ubyte.gz", 3, True)
    put(root / "train-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, 6) + bytes(range(6)))


def npy(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, pixels(2, 6, 5, 4, 3))


def npys(root: Path) -> None:
    npy(root / "x_train.npy")
    np.save(root / "y_train.npy", np.arange(6))


def cifar(root: Path) -> None:
    for i, name in enumerate([f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]):
        rows = np.concatenate([np.full((2, 1), i, np.uint8), pixels(i, 2, 3072)], axis=1)
        put(root / name, rows.tobytes())


def cifar_archive(path: Path) -> None:
    cifar(path.parent / "unpacked")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(path.parent / "unpacked", "cifar-10-batches-bin")


#: What makes each source, its place below `source`, and whether its names can be kept.
SOURCES: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "folder": (folder, "photos", True),
    "tars": (tars, "tars", True),
    "tar": (lambda path: tar(path, 0), "one.tar", True),
    "parquet files": (parquets, "rows", True),
    "parquet file": (parquet, "rows.parquet", True),
    "zarr": (zarr, "arrays", False),
    "idx files": (mnist, "mnist", False),
    "idx file": (idx, "images-idx3-ubyte", False),
    "idx file, zipped": (lambda path: idx(path, 6, True), "images-idx3-ubyte.gz", False),
    "npy files": (npys, "numbers", True),
    "npy file": (npy, "x.npy", True),
    "cifar": (cifar, "cifar", False),
    "cifar archive": (cifar_archive, "deep/cifar-10-binary.tar.gz", False),
}


class Place:
    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.bucket = root, key, root.name.replace("_", "-").lower()

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, source: str | Path, store: str, to: str | None = None, **options: Any) -> Summary:
        return encrypt_store(
            source, self.root / store, self.key, SCHEME, self.owner, JobOptions(**options), target_named=to
        )

    def files(self, store: str) -> dict[str, bytes]:
        """Name and content of what a store holds; its manifest has an id of its own."""
        path = self.root / store
        found = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        return {
            each.name if path.is_file() else each.relative_to(path).as_posix(): each.read_bytes()
            for each in found
            if not each.name.endswith("dlmt-store.json")
        }


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the attempts at a shard."""
    monkeypatch.setattr(attempts, "_PAUSE", 0.01)


def photos(place: Place, server: Any, count: int = 9) -> str:
    """A folder of images in a bucket of its own."""
    folder(place.root / "source", count)
    server.upload(place.root / "source", place.bucket, "photos")
    return f"s3://{place.bucket}/photos"


@pytest.mark.parametrize("name", SOURCES)
def test_a_url_gives_the_bytes_that_a_disk_gives(name: str, place: Place, on_s3: Any) -> None:
    make, where, keeps = SOURCES[name]
    make(place.root / "source" / where)
    on_s3.upload(place.root / "source", place.bucket, "data")
    options = {"names": "keep"} if keeps else {}
    local = place.encrypt(place.root / "source" / where, "local", **options)
    summary = place.encrypt(f"s3://{place.bucket}/data/{where}", "remote", **options)
    assert summary.inputs == local.inputs == summary.outputs > 0
    assert summary.notes == local.notes
    ours, theirs = place.files("remote"), place.files("local")
    if name == "zarr":  # whose arrays have hidden names, here and in the metadata
        ours, theirs = ({n.partition("/")[2]: d for n, d in f.items() if "zarr" not in n} for f in (ours, theirs))
    if (place.root / "remote").is_file():  # which is called as the target
        ours, theirs = {"": ours["remote"]}, {"": theirs["local"]}
    assert ours == theirs
    assert ours


@pytest.mark.parametrize(("name", "to"), [("folder", "parquet"), ("tars", "folder"), ("npy files", "parquet")])
def test_other_kinds_come_of_a_url_too(name: str, to: str, place: Place, on_s3: Any) -> None:
    make, where, _ = SOURCES[name]
    make(place.root / "source" / where)
    on_s3.upload(place.root / "source", place.bucket, "data")
    url = f"s3://{place.bucket}/data/{where}"
    options = {} if name == "npy files" else {"names": "keep"}
    assert place.encrypt(url, "remote", to, **options).outputs > 0
    assert place.encrypt(place.root / "source" / where, "local", to, **options).outputs > 0
    ours, theirs = place.files("remote"), place.files("local")
    assert sorted(ours.values()) == sorted(theirs.values())
    assert options == {} or ours.keys() == theirs.keys()


def test_memory_is_a_place(place: Place) -> None:
    folder(place.root / "source")
    store = located(f"memory://{place.bucket}/photos")
    for path in (place.root / "source").rglob("*"):
        if path.is_file():
            copy = store / path.relative_to(place.root / "source").as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    assert place.encrypt(str(store), "remote", names="keep").notes == ["left alone: 1 hidden files and folders"]
    assert place.encrypt(place.root / "source", "local", names="keep").outputs == 9
    assert place.files("remote") == place.files("local")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The files of `tmp_path / "source"` on a server that shows folders as pages of links, and knows no ranges."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(tmp_path / "source"))

        def log_message(self, *words: object) -> None:
            """Nothing is logged."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server_that_lists_is_a_place(place: Place, web: str) -> None:
    pytest.importorskip("aiohttp")
    folder(place.root / "source" / "photos")
    npy(place.root / "source" / "x.npy")
    assert place.encrypt(f"{web}/photos", "remote").outputs == 9
    place.encrypt(place.root / "source" / "photos", "local")
    images = [
        {data for name, data in place.files(store).items() if name.endswith("png")} for store in ("remote", "local")
    ]
    assert images[0] == images[1]
    with pytest.raises(StoreError, match="whole files where a part was asked for"):
        place.encrypt(f"{web}/x.npy", "x.npy")
    with pytest.raises(StoreError, match="does not exist"):
        place.encrypt(f"{web}/nothing", "nothing")
    with pytest.raises(RemoteError, match="cannot be reached"):
        place.encrypt("http://127.0.0.1:9/photos", "nothing")


def test_a_whole_bucket_and_a_dry_run(place: Place, on_s3: Any) -> None:
    folder(place.root / "source")
    on_s3.upload(place.root / "source", place.bucket, "")
    preview = preview_encrypt(f"s3://{place.bucket}", place.root / "store", place.key, SCHEME, place.owner)
    assert (preview.inputs, preview.source_kind) == (9, "folder")
    assert place.encrypt(f"s3://{place.bucket}/", "store").outputs == 9


def test_worker_processes_read_from_s3(place: Place, on_s3: Any) -> None:
    summary = place.encrypt(photos(place, on_s3), "remote", names="keep", workers=2, shard_size=3)
    place.encrypt(place.root / "source", "local", names="keep", shard_size=3)
    assert summary.outputs == 9
    assert place.files("remote") == place.files("local")


def test_a_strict_server_serves_all_kinds_of_requests(
    place: Place, seaweed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seaweed.use(monkeypatch)
    for name in ("folder", "tars", "npy files"):
        SOURCES[name][0](place.root / "source" / SOURCES[name][1])
    seaweed.upload(place.root / "source", place.bucket, "data")
    for name in ("folder", "tars", "npy files"):
        where = SOURCES[name][1]
        assert place.encrypt(f"s3://{place.bucket}/data/{where}", f"remote-{where}", names="keep").outputs > 0
        place.encrypt(place.root / "source" / where, f"local-{where}", names="keep")
        assert place.files(f"remote-{where}") == place.files(f"local-{where}")


def test_a_job_goes_on_and_tells_what_changed(place: Place, on_s3: Any) -> None:
    url = photos(place, on_s3)
    one = place.encrypt(url, "store", shard_size=3)
    assert place.encrypt(url, "store", shard_size=3, resume=True).store_id == one.store_id
    name = "cats/a b#1?%20.png"
    on_s3.client().put_object(Bucket=place.bucket, Key=f"photos/{name}", Body=encode_png(pixels(99, 3, 6, 7)))
    with pytest.raises(StoreError, match=r"1 changed \(cats/a b#1"):
        place.encrypt(url, "store", shard_size=3, resume=True)


# --- listings --------------------------------------------------------------------------------------------------------


def test_a_listing_comes_in_pages(place: Place, on_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, files = photos(place, on_s3, 30), located(f"s3://{place.bucket}").fs  # type: ignore[attr-defined]
    asked = files.call_s3
    pages = []

    def small(method: str, **words: Any) -> Any:
        pages.append(method)
        return asked(method, MaxKeys=4, **words)

    monkeypatch.setattr(files, "call_s3", small)
    source = FolderSource(located(url))
    assert len(source) == 30
    assert len(pages) == 8  # 32 objects
    assert source.hidden == 1
    assert not files.dircache
    stamps = list(source.stamps())
    assert [stamp.path.encode() for stamp in stamps] == sorted(stamp.path.encode() for stamp in stamps)
    assert all(str(stamp.state).startswith('"') for stamp in stamps)


def test_marks_of_folders_are_no_files_and_other_names_are_refused(place: Place, on_s3: Any) -> None:
    url, client = photos(place, on_s3), on_s3.client()
    for key in ("photos/", "photos/cats/"):
        client.put_object(Bucket=place.bucket, Key=key, Body=b"")
    assert len(FolderSource(located(url))) == 9
    for key in ("photos//x.png", "photos/cats/../x.png", "photos/cats/full/"):
        client.put_object(Bucket=place.bucket, Key=key, Body=b"x")
        with pytest.raises(StoreError, match="no path of a file"):
            FolderSource(located(url))
        client.delete_object(Bucket=place.bucket, Key=key)


class Listing:
    """A file system that says what it is told to."""

    def __init__(self, *found: dict[str, Any]) -> None:
        self.found = found

    def ls(self, path: str, detail: bool) -> tuple[dict[str, Any], ...]:
        return self.found

    def invalidate_cache(self) -> None:
        """Nothing is kept."""


def test_listings_of_other_stores_are_understood_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    place = located("memory://bucket/photos")
    files = [
        {"name": "bucket/photos", "type": "directory", "size": 0},
        {"name": "bucket/photos/cats/", "type": "directory", "size": 0},
        {"name": "/bucket/photos/1.png", "type": "file", "size": 3, "etag": "CKih16GjycICEAE="},
        {"name": "bucket/photos/2.png", "type": "file", "size": 4, "mtime": datetime(2024, 1, 1, tzinfo=timezone.utc)},
    ]
    monkeypatch.setattr(remote, "file_system", lambda path: Listing(*files))
    assert list(remote.children(place)) == [
        remote.Listed("cats", True),
        remote.Listed("1.png", False, 3, "CKih16GjycICEAE="),
        remote.Listed("2.png", False, 4, "1704067200.0"),
    ]
    for odd, words in [
        ("bucket/other/3.png", "not in it"),
        ("bucket/photos/deep/3.png", "not in it"),
        ("", "not in it"),
    ]:
        files[3:] = [{"name": odd, "type": "file", "size": 1, "etag": "x"}]
        with pytest.raises(StoreError, match=words):
            list(remote.children(place))
    files[3:] = [{"name": "bucket/photos/3.png", "type": "file", "size": 1}]
    with pytest.raises(StoreError, match="neither a tag nor a time"):
        list(remote.children(place))


def test_a_survey_reads_headers_alone(place: Place, before_s3: Any) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels(0, 700, 700, 3)).save(buffer, "JPEG", quality=95)
    put(place.root / "source" / "large.jpg", buffer.getvalue())
    before_s3.server.upload(place.root / "source", place.bucket, "photos")
    source = FolderSource(located(f"s3://{place.bucket}/photos"))
    before_s3.asked.clear()
    before_s3.sent = 0
    assert source.survey().shapes == {(3, 700, 700): (1, "large.jpg")}
    assert before_s3.count("GET") == 1
    assert before_s3.count("HEAD") == 0
    assert before_s3.sent == 64 << 10 < len(buffer.getvalue()) // 4


def test_each_image_is_one_request_and_each_tar_is_read_once(place: Place, before_s3: Any) -> None:
    source = FolderSource(located(photos(place, before_s3.server)))
    before_s3.asked.clear()
    assert sum(len(batch.indices) for batch in source.part(range(9)).read(range(9), 2)) == 9  # type: ignore[union-attr]
    assert before_s3.asked == [("GET", path) for _, path in before_s3.asked]
    assert len(before_s3.asked) == 9
    tar(place.root / "one.tar", 0, 20)
    before_s3.server.client().upload_file(str(place.root / "one.tar"), place.bucket, "one.tar")
    before_s3.sent = 0
    assert place.encrypt(f"s3://{place.bucket}/one.tar", "store.tar").outputs == 20
    assert before_s3.sent < 3 * (place.root / "one.tar").stat().st_size


@pytest.mark.parametrize("first", [0, 1, 63 << 10, 200 << 10])
def test_a_ranged_file_is_a_file(first: int) -> None:
    data, asked = np.random.default_rng(0).bytes(300 << 10), []

    def fetch(start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return data[start:stop]

    file, plain = RangedFile(fetch, len(data)), io.BytesIO(data)
    rng = np.random.default_rng(first)
    for place in [first, *rng.integers(0, len(data) + 10, 50).tolist()]:
        for each in (file, plain):
            each.seek(place)
        size = int(rng.integers(0, 70 << 10))
        assert file.read(size) == plain.read(size)
        assert file.tell() == plain.tell()
    assert file.seek(-5, io.SEEK_END) == plain.seek(-5, io.SEEK_END)
    assert file.read() == plain.read()
    assert file.read(1) == b""
    assert max(asked) <= 256 << 10
    whole = io.BufferedReader(RangedFile(fetch, len(data)))
    assert whole.read() == data


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longer", [False, True])
def test_an_object_that_changes_after_the_listing_is_refused(longer: bool, place: Place, on_s3: Any) -> None:
    source = FolderSource(located(photos(place, on_s3)))
    name = source.path_of(2)
    body = encode_png(pixels(99, 3, 6, 9 if longer else 7))
    on_s3.client().put_object(Bucket=place.bucket, Key=f"photos/{name}", Body=body)
    with pytest.raises(StoreError, match="changed since the job began") as caught:
        list(source.part(range(9)).read(range(9), 2))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["tar", "parquet file", "npy file", "idx file", "zarr"])
def test_other_files_that_change_are_refused(name: str, place: Place, on_s3: Any) -> None:
    make, where, _ = SOURCES[name]
    make(place.root / "source" / where)
    on_s3.upload(place.root / "source", place.bucket, "data")
    source = open_source(f"s3://{place.bucket}/data/{where}", JobOptions())
    samples = source.shards()[0].samples
    key = f"data/{where}" + ("/anna/c/0/0/0/0" if name == "zarr" else "")
    before = on_s3.client().get_object(Bucket=place.bucket, Key=key)["Body"].read()
    on_s3.client().put_object(Bucket=place.bucket, Key=key, Body=before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(StoreError, match="changed since the job began"):
        list(source.part(samples).read(samples, 1))


def test_a_file_of_another_store_that_changes_is_refused(place: Place) -> None:
    store = located(f"memory://{place.bucket}/photos")
    store.mkdir(parents=True)
    (store / "x.png").write_bytes(encode_png(pixels(0, 3, 6, 7)))
    source = FolderSource(store)
    (store / "x.png").write_bytes(encode_png(pixels(1, 3, 6, 7)))
    with pytest.raises(StoreError, match=r"x.png changed since the job began"):
        list(source.read([0], 1))


@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut", "short"])
def test_failures_that_pass_are_tried_again(fault: str, place: Place, before_s3: Any) -> None:
    url = photos(place, before_s3.server)
    failed: list[str] = []

    def decide(method: str, path: str) -> str | None:
        if method == "GET" and "a%20b%231" in path and before_s3.count("GET", "a%20b%231") == 2 and not failed:
            failed.append(path)  # the first request was the survey's
            return fault
        return None

    before_s3.fault = decide
    summary = place.encrypt(url, "remote", names="keep")
    assert failed
    assert (summary.outputs, summary.quarantined) == (9, [])
    place.encrypt(place.root / "source", "local", names="keep")
    assert place.files("remote") == place.files("local")


@pytest.mark.parametrize(("fault", "number"), [("500", errno.EREMOTEIO), ("503", errno.EIO), ("short", errno.EIO)])
def test_failures_that_stay_fail_the_job_and_quarantine_nothing(
    fault: str, number: int, place: Place, before_s3: Any
) -> None:
    url = photos(place, before_s3.server)
    seen: list[str] = []

    def decide(method: str, path: str) -> str | None:
        seen.extend([path] * (method == "GET" and "a%20b%231" in path))
        return fault if len(seen) > 1 and path == seen[0] else None

    before_s3.fault = decide
    with pytest.raises(RemoteError, match=r"a b#1") as caught:
        place.encrypt(url, "store", on_error="quarantine")
    assert caught.value.errno in (number, errno.EREMOTEIO)
    assert len(seen) == 4  # one of the survey, three attempts
    assert not (place.root / "store").exists()


def test_an_object_that_vanishes_fails_the_job(place: Place, before_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = photos(place, before_s3.server)
    survey = FolderSource.survey

    def then_gone(source: FolderSource) -> Any:
        found = survey(source)
        before_s3.server.client().delete_object(Bucket=place.bucket, Key=f"photos/{source.path_of(0)}")
        return found

    monkeypatch.setattr(FolderSource, "survey", then_gone)
    with pytest.raises(FileNotFoundError, match="cats/a b#1"):
        place.encrypt(url, "store", on_error="quarantine")


def test_what_cannot_be_decoded_is_quarantined(place: Place, on_s3: Any) -> None:
    url, client = photos(place, on_s3), on_s3.client()
    client.put_object(Bucket=place.bucket, Key="photos/cats/bad.png", Body=b"no image")
    client.put_object(Bucket=place.bucket, Key="photos/cats/cut.png", Body=encode_png(pixels(1, 3, 6, 7))[:-30])
    client.put_object(Bucket=place.bucket, Key="photos/cats/empty.png", Body=b"")
    client.put_object(Bucket=place.bucket, Key="photos/notes.txt", Body=b"text")
    with pytest.raises(ImageError, match="--on-error quarantine"):
        place.encrypt(url, "store")
    summary = place.encrypt(url, "store", on_error="quarantine")
    found = {item["path"] for item in summary.quarantined}
    assert found == {"cats/bad.png", "cats/cut.png", "cats/empty.png", "notes.txt"}
    assert summary.outputs == 9


def test_a_truncated_array_is_damaged(place: Place, on_s3: Any) -> None:
    npy(place.root / "x.npy")
    data = (place.root / "x.npy").read_bytes()[:-9]
    on_s3.client().create_bucket(Bucket=place.bucket)
    on_s3.client().put_object(Bucket=place.bucket, Key="x.npy", Body=data)
    with pytest.raises(StoreDamagedError, match=r"s3://.*x.npy is truncated"):
        place.encrypt(f"s3://{place.bucket}/x.npy", "x.npy")


def test_a_readers_pickle_holds_no_secret(place: Place, on_s3: Any) -> None:
    url = photos(place, on_s3)
    source = FolderSource(located(url))
    data = pickle.dumps(source.part(range(9)))
    assert on_s3.secret.encode() not in data
    assert on_s3.access.encode() not in data
    again = pickle.loads(data)
    assert sum(len(batch.indices) for batch in again.read(range(9), 2)) == 9


@pytest.fixture(scope="module")
def keyfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "k"
    dlmt.Key(bytes(range(32))).save(path, params=SCHEME.params)
    return path


FAULTS = {
    "no credentials": ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "", 1, "AWS_SECRET_ACCESS_KEY"),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "another-secret"}, "", 1, "access was denied"),
    "an unknown id": ({"AWS_ACCESS_KEY_ID": "another-id"}, "", 1, "access was denied"),
    "no such bucket": ({}, "s3://nonesuch/photos", 1, "no such bucket"),
    "no such bucket at all": ({}, "s3://nonesuch", 1, "does not exist"),
    "nothing there": ({}, "s3://ready/nothing", 1, "does not exist"),
    "no server": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "", 1, "cannot be reached"),
    "no endpoint": ({"AWS_ENDPOINT_URL": "nonsense"}, "", 1, "Invalid endpoint: nonsense"),
    "a bad name": ({}, "s3://Bad!bucket/x", 1, "named wrongly"),
    "a secret in the URL": ({}, "s3://id:another-secret@ready/x", 2, "holds a password"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_command_says_in_one_line_what_is_wrong(
    name: str, place: Place, seaweed: Any, keyfile: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    changes, url, code, words = FAULTS[name]
    seaweed.use(monkeypatch, **changes)
    arguments = ["encrypt", url or "s3://ready/photos", str(place.root / "store"), "--key", str(keyfile), "--json"]
    monkeypatch.setattr(sys, "argv", ["dlmt", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code == code
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert json.loads(said.out)["exit_code"] == code
    for secret in (seaweed.secret, "another-secret", "another-id", seaweed.access):
        assert secret not in said.out + said.err
    assert not (place.root / "store").exists()


def test_an_interrupt_does_not_wait_for_a_server(place: Place, before_s3: Any, keyfile: Path) -> None:
    url, release, asked = photos(place, before_s3.server), threading.Event(), threading.Event()

    def hang(method: str, path: str) -> None:
        if path.endswith("png"):
            asked.set()
            release.wait(60)

    before_s3.fault = hang
    words = [sys.executable, "-c", "from dlmt_fast.cli import main; main()", "encrypt", url, str(place.root / "store")]
    process = subprocess.Popen([*words, "--key", str(keyfile)], stderr=subprocess.PIPE, text=True, cwd=place.root)
    try:
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "stopped by SIGINT" in process.communicate()[1]
    finally:
        release.set()
        process.kill()
        process.wait()


def test_overlap_is_told_of_urls_too(place: Place) -> None:
    (place.root / "source").mkdir()
    with pytest.raises(UsageError, match="inside each other"):
        Target(place.root / "source", False, located(f"file://{place.root}/source"), False)
    assert Target(place.root / "store", False, located("s3://bucket/store"), False).old == set()
