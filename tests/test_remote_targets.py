"""Stores on S3: written, resumed, replaced, verified and decrypted there as on a disk."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.cli import main
from dlmt_fast.errors import DlmtError, RemoteError, StoreDamagedError, StoreError, UsageError
from dlmt_fast.pipeline import (
    JobOptions,
    Slice,
    Summary,
    decrypt_store,
    encrypt_store,
    verify_store,
)
from dlmt_fast.stores import bucket as bucket_module
from dlmt_fast.stores.location import located
from dlmt_fast.stores.objects import objects_at
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import file_digest
from dlmt_fast.stores.staging import remove_dead_staging, staging

pytest.importorskip("s3fs")

SCHEME = dlmt.DLMT("mat_mmt")


class Remote:
    """A part of a bucket, and jobs into it from a local source; the environment of the process leads there."""

    def __init__(self, root: Path, server: Any, key: dlmt.Key) -> None:
        self.root, self.server, self.bucket, self.key = root, server, "ready", key
        self.client = server.client()
        with suppress(self.client.exceptions.BucketAlreadyExists, self.client.exceptions.BucketAlreadyOwnedByYou):
            self.client.create_bucket(Bucket=self.bucket)
        self.base = f"{next(_NUMBER)}/"  # each further bucket would take volumes of SeaweedFS
        self.source, self.url = root / "source", f"s3://{self.bucket}/{self.base}a/store"

    def images(self, count: int, size: int = 8) -> None:
        rng = np.random.default_rng(0)
        for i in range(count):
            (self.source / f"{i % 3}").mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (3, size, size), np.uint8)
            (self.source / f"{i % 3}" / f"anna-{i}.png").write_bytes(encode_png(pixels))

    def owner(self, store_id: str) -> Path:
        return self.root / "k.stores" / store_id

    def encrypt(self, target: str | Path | None = None, to: str | None = None, **options: Any) -> Summary:
        chosen = JobOptions(**{"shard_size": 2, **options})
        where = self.url if target is None else target
        return encrypt_store(self.source, where, self.key, SCHEME, self.owner, chosen, target_named=to)

    def verify(self) -> Summary:
        return verify_store(self.url, self.key, self.owner)

    def decrypt(self, target: Path) -> dict[str, bytes]:
        decrypt_store(self.url, target, self.key, self.owner)
        return files(target)

    def objects(self, prefix: str = "a/store/") -> dict[str, bytes]:
        """Every object below a prefix, by its name there."""
        below = self.base + prefix
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below)
        keys = [entry["Key"][len(below) :] for page in pages for entry in page.get("Contents", ())]
        return {key: self.get(prefix + key) for key in keys}

    def key_of(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.base + name}

    def get(self, name: str) -> bytes:
        return bytes(self.client.get_object(**self.key_of(name))["Body"].read())

    def head(self, name: str) -> Any:
        return self.client.head_object(**self.key_of(name), ChecksumMode="ENABLED")

    def put(self, name: str, data: bytes, **fields: Any) -> None:
        self.client.put_object(**self.key_of(name), Body=data, **fields)

    def remove(self, name: str) -> None:
        self.client.delete_object(**self.key_of(name))

    def uploads(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.base).get("Uploads", ())
        return [entry["Key"][len(self.base) :] for entry in found]

    def check_clean(self) -> None:
        """Nothing is left over: no marker, no upload, nothing staged."""
        assert not [name for name in self.objects("") if "dlmt-job" in name or ".tmp-" in name]
        assert not self.uploads()
        assert not list(Path(tempfile.gettempdir()).glob("dlmt-staging-*"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_manifest(found: dict[str, bytes]) -> dict[str, bytes]:
    """The sealed header of a manifest has a fresh nonce."""
    return {name: data for name, data in found.items() if not name.endswith("dlmt-store.json")}


_NUMBER = iter(range(10**6))


@pytest.fixture
def own_temporaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else stages where this test looks."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def remote_on(server: Any, root: Path, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> Remote:
    server.use(monkeypatch)
    return Remote(root, server, key)


@pytest.fixture
def remote(moto: Any, tmp_path: Path, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch, own_temporaries: None) -> Remote:
    """On moto's server."""
    return remote_on(moto, tmp_path, key, monkeypatch)


@pytest.fixture
def strict(
    seaweed: Any, tmp_path: Path, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch, own_temporaries: None
) -> Remote:
    """On a server that compares secrets and checksums."""
    return remote_on(seaweed, tmp_path, key, monkeypatch)


def idx_source(root: Path) -> None:
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    (root / "train-images-idx3-ubyte").write_bytes(
        b"\0\0\x08\3" + np.array([6, 5, 4], ">i4").tobytes() + images.tobytes()
    )
    (root / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1" + np.array([6], ">i4").tobytes() + bytes(range(6)))


def npy_source(root: Path) -> None:
    root.mkdir()
    for name in "ab":
        np.save(root / f"{name}.npy", np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8))
    np.save(root / "a-labels.npy", np.arange(5))


KINDS = ("folder", "webdataset", "parquet", "zarr", "idx", "npy")


def make(remote: Remote, kind: str) -> dict[str, Any]:
    """Makes a source; gives the options that make a store of this kind."""
    if kind in ("idx", "npy"):
        {"idx": idx_source, "npy": npy_source}[kind](remote.source)
        return {"shard_size": 1000, "normalize": "none"}
    remote.images(7)
    return {"to": kind, "normalize": "none", "classes": "index"}


# --- every kind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_there_and_back(kind: str, strict: Remote) -> None:
    """The objects are the files that a local job makes, and come back as these do."""
    options = make(strict, kind)
    done = strict.encrypt(**options)
    local = strict.root / "local"
    strict.encrypt(local, **options)
    assert without_manifest(strict.objects()) == without_manifest(files(local))
    assert done.notes == [note for note in done.notes if "If-None-Match" not in note]
    checked = strict.verify()
    assert checked.outputs == done.outputs
    assert any("the owner's folder agrees" in note for note in checked.notes)
    plain = strict.decrypt(strict.root / "plain")
    decrypt_store(local, strict.root / "plain-local", strict.key, strict.owner)
    assert plain == files(strict.root / "plain-local")
    assert plain
    strict.check_clean()


def test_one_file_goes_to_one_object(remote: Remote) -> None:
    np.save(remote.root / "x.npy", np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8))
    remote.source, remote.url = remote.root / "x.npy", f"s3://{remote.bucket}/{remote.base}a/y.npy"
    remote.encrypt(normalize="none", shard_size=1000)
    assert set(remote.objects("a/")) == {"y.npy", "y.npy.dlmt-store.json"}
    remote.verify()
    decrypt_store(remote.url, remote.root / "back.npy", remote.key, remote.owner)
    assert (remote.root / "back.npy").read_bytes() == (remote.root / "x.npy").read_bytes()
    with pytest.raises(UsageError, match="not empty"):
        remote.encrypt(normalize="none", shard_size=1000)


def test_a_whole_bucket_is_a_target(remote: Remote) -> None:
    remote.images(3)
    remote.url, remote.bucket, remote.base = "s3://whole", "whole", ""
    remote.client.create_bucket(Bucket="whole")
    remote.encrypt()
    assert "dlmt-store.json" in remote.objects("")
    remote.verify()


def test_the_command(remote: Remote, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    remote.images(5)
    remote.key.save(remote.root / "k", params=SCHEME.params)
    monkeypatch.chdir(remote.root)

    def run(*words: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["dlmt", *words, "--key", "k", "--json"])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, json.loads(capsys.readouterr().out)

    code, facts = run("encrypt", "source", remote.url, "--dry-run")
    assert (code, facts["target"], facts["free_bytes"]) == (0, remote.url, None)
    assert not remote.objects()
    assert run("encrypt", "source", remote.url, "--workers", "2", "--shard-size", "2")[0] == 0
    assert run("verify", remote.url)[1]["outputs"] == 5
    assert run("inspect", remote.url)[1]["count"] == 5
    assert run("decrypt", remote.url, "plain")[1]["outputs"] == 5
    code, facts = run("decrypt", remote.url, remote.url + "-plain")
    assert (code, "to this machine alone" in facts["error"]) == (2, True)
    code, facts = run("encrypt", "source", remote.url + "2", "--owner", "s3://bucket/owner")
    assert (code, "--owner takes a folder of this machine" in facts["error"]) == (2, True)
    code, facts = run("encrypt", "source", "http://host/x")
    assert (code, "http" in facts["error"]) == (2, True)
    remote.check_clean()


def test_memory(tmp_path: Path, key: dlmt.Key, own_temporaries: None) -> None:
    """The plain way of fsspec, for servers that have no conditions."""
    place = Remote.__new__(Remote)
    place.root, place.key, place.source, place.url = tmp_path, key, tmp_path / "source", "memory://a/store"
    place.images(5)
    with pytest.raises(UsageError, match="one process alone"):
        place.encrypt(workers=2)
    done = place.encrypt()
    assert any("If-None-Match" in note for note in done.notes)
    place.verify()
    assert "3 of 3 shards" in place.encrypt(resume=True, check=True).notes[0]
    assert len(place.decrypt(tmp_path / "plain")) == 5
    place.encrypt(overwrite=True, normalize="none")
    place.verify()
    objects = objects_at(located("memory://a/other"))
    (tmp_path / "x").write_bytes(b"x")
    objects.publish("x", tmp_path / "x", file_digest(tmp_path / "x")[1])
    (tmp_path / "x").write_bytes(b"y")
    with pytest.raises(StoreError, match="other content"):
        objects.publish("x", tmp_path / "x", file_digest(tmp_path / "x")[1])
    objects.remove(iter(["x", "y"]))
    assert not list(objects.entries())


# --- what is refused at once -----------------------------------------------------------------------------------------


def refused(remote: Remote, words: str, kind: type[Exception] = StoreError) -> str:
    remote.images(1)
    with pytest.raises(kind, match=words) as caught:
        remote.encrypt()
    assert not (remote.root / "k.stores").exists()
    assert remote.server.secret not in str(caught.value)
    return str(caught.value)


def test_a_missing_bucket_is_not_made(strict: Remote) -> None:
    strict.url = "s3://bucket-of-nobody/store"
    refused(strict, "no such bucket")
    assert "bucket-of-nobody" not in str(strict.client.list_buckets())


def test_wrong_credentials(strict: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    strict.server.use(monkeypatch, AWS_SECRET_ACCESS_KEY="another-secret")
    assert "another-secret" not in refused(strict, "access was denied", RemoteError)


def test_no_credentials(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.server.use(monkeypatch, AWS_SECRET_ACCESS_KEY="", AWS_ACCESS_KEY_ID="")
    refused(remote, "AWS_ACCESS_KEY_ID")


def test_another_protocol(tmp_path: Path, key: dlmt.Key) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UsageError, match="local folders, s3, gs and az"):
        encrypt_store(tmp_path / "source", "http://host/x", key, SCHEME, lambda i: tmp_path / i)


def test_source_and_target_do_not_overlap(remote: Remote) -> None:
    remote.images(2)
    remote.server.upload(remote.source, remote.bucket, remote.base + "a")
    remote.source = f"s3://{remote.bucket}/{remote.base}a"  # type: ignore[assignment]
    with pytest.raises(UsageError, match="inside each other"):
        remote.encrypt()


# --- jobs that go on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["journal", "listing", "image", "damaged image", "manifest"])
def test_only_what_does_not_count_is_done_again(what: str, remote: Remote) -> None:
    remote.images(6)
    store_id = remote.encrypt().store_id
    whole = without_manifest(remote.objects())
    image = whole["dlmt-shard-00001.txt"].split(b"\n")[0].split(b" ")[2].decode()
    if what == "journal":
        (remote.owner(store_id) / "journal-00001.json").unlink()
    elif what == "damaged image":
        remote.put(f"a/store/{image}", b"damaged")
    else:
        name = {"listing": "dlmt-shard-00001.txt", "image": image, "manifest": "dlmt-store.json"}[what]
        remote.remove(f"a/store/{name}")
    if what == "manifest":  # its marker is gone: nobody can tell this from files of others
        with pytest.raises(UsageError, match="no stopped job is there"):
            remote.encrypt(resume=True)
        return
    assert "2 of 3 shards" in remote.encrypt(resume=True).notes[0]
    assert without_manifest(remote.objects()) == whole
    remote.verify()
    assert "3 of 3 shards" in remote.encrypt(resume=True).notes[0]
    remote.check_clean()


@pytest.mark.parametrize("to", ["folder", pytest.param("webdataset", marks=pytest.mark.long)])
def test_check_reads_every_byte(to: str, remote: Remote) -> None:
    remote.images(6)
    remote.encrypt(to=to)
    whole = without_manifest(remote.objects())
    name = next(name for name in whole if name.endswith((".png", ".tar")))
    metadata = remote.head(f"a/store/{name}")["Metadata"]
    # Bits that rotted: length and metadata are as they were.
    remote.put(f"a/store/{name}", bytes(len(whole[name])), Metadata=metadata)
    with pytest.raises(StoreDamagedError, match=rf"{remote.url}/{name} is damaged"):
        remote.verify()
    assert "3 of 3 shards" in remote.encrypt(to=to, resume=True).notes[0]
    assert "2 of 3 shards" in remote.encrypt(to=to, resume=True, check=True).notes[0]
    assert without_manifest(remote.objects()) == whole
    remote.verify()


def test_verify_finds_what_is_extra_and_missing(remote: Remote) -> None:
    remote.images(4)
    remote.encrypt()
    remote.put("a/store/stray", b"x")
    with pytest.raises(StoreDamagedError, match="does not name, first stray"):
        remote.verify()
    remote.remove("a/store/stray")
    listing = remote.get("a/store/dlmt-shard-00001.txt")
    remote.remove("a/store/dlmt-shard-00001.txt")
    with pytest.raises(StoreDamagedError, match=rf"{remote.url}/dlmt-shard-00001.txt is missing"):
        remote.verify()
    with pytest.raises(StoreDamagedError, match="missing"):
        remote.decrypt(remote.root / "plain")
    remote.put("a/store/dlmt-shard-00001.txt", listing)
    done = decrypt_store(remote.url, remote.root / "plain", remote.key, remote.owner, resume=True)
    assert "1 of 2 shards were done already" in done.notes[0]
    assert set(files(remote.root / "plain")) == set(files(remote.source))


def test_a_store_replaces_another(remote: Remote) -> None:
    remote.images(6)
    remote.encrypt(names="keep")
    first = remote.objects()
    with pytest.raises(UsageError, match="not empty"):
        remote.encrypt(normalize="none")
    remote.put("a/store/0/anna-x.png", b"unknown")
    remote.encrypt(names="keep", normalize="minmax", overwrite=True)
    second = remote.objects()
    assert second.pop("0/anna-x.png") == b"unknown"
    assert set(first) == set(second)
    assert without_manifest(first) != without_manifest(second)
    remote.remove("a/store/0/anna-x.png")
    remote.verify()
    remote.put("a/store/0/anna-9.png", b"unknown")
    remote.images(12)
    with pytest.raises(StoreError, match=r"0/anna-9.png is in the way"):
        remote.encrypt(names="keep", overwrite=True)
    remote.remove("a/store/0/anna-9.png")
    remote.verify()
    remote.encrypt(overwrite=True)
    assert not [name for name in remote.objects() if "anna" in name]
    remote.verify()
    remote.check_clean()


def test_slices(remote: Remote) -> None:
    remote.images(9)
    whole = without_manifest(files_of_local(remote))
    first = remote.encrypt(slice=Slice(1, 2))
    assert first.shards_left == 2
    assert remote.objects()[".dlmt-job"] == first.store_id.encode()
    with pytest.raises(StoreError, match="unfinished"):
        remote.verify()
    assert remote.encrypt(slice=Slice(2, 2)).shards_left == 0
    assert without_manifest(remote.objects()) == whole
    remote.verify()
    remote.check_clean()


def files_of_local(remote: Remote) -> dict[str, bytes]:
    remote.encrypt(remote.root / "local")
    for path in (remote.root / "k.stores").rglob("*.*"):
        path.unlink()
    return files(remote.root / "local")


def test_another_jobs_marker_refuses(remote: Remote) -> None:
    remote.images(4)
    remote.encrypt(slice=Slice(1, 2))
    before = remote.objects()
    with pytest.raises(StoreError, match="is marked by a job that runs or was stopped"):
        remote.encrypt()
    with pytest.raises(StoreError, match=r"belongs to another job.*normalize range then, none now"):
        remote.encrypt(slice=Slice(2, 2), normalize="none")
    remote.key = dlmt.Key(bytes(32))
    with pytest.raises(StoreError, match=r"belongs to another job.*the key is another"):
        remote.encrypt(resume=True)
    assert remote.objects() == before


def test_two_owners_cannot_begin_at_once(remote: Remote) -> None:
    objects = objects_at(located(remote.url))
    objects.create(".dlmt-job", b"1" * 32)
    with pytest.raises(FileExistsError):
        objects_at(located(remote.url)).create(".dlmt-job", b"2" * 32)
    assert remote.objects() == {".dlmt-job": b"1" * 32}
    assert objects.conditional


def test_a_job_that_fails_at_once_leaves_nothing(remote: Remote) -> None:
    remote.images(4)
    (remote.source / "0" / "broken.png").write_bytes(encode_png(np.zeros((3, 8, 8), np.uint8))[:-30])
    left: list[str] = []
    chosen = JobOptions(shard_size=9)
    with pytest.raises(DlmtError, match=r"broken.png"):
        encrypt_store(remote.source, remote.url, remote.key, SCHEME, remote.owner, chosen, tell=left.append)
    assert not left
    assert not remote.objects("")
    remote.check_clean()


def test_ctrl_c_leaves_a_state_to_resume(remote: Remote) -> None:
    remote.images(60)
    remote.key.save(remote.root / "k", params=SCHEME.params)
    line = [sys.executable, "-c", "from dlmt_fast.cli import main; main()", "encrypt", "source", remote.url]
    line += ["--key", "k", "--workers", "2", "--shard-size", "2", "--json"]
    with subprocess.Popen(line, cwd=remote.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        while not list((remote.root / "k.stores").rglob("journal-*")):
            time.sleep(0.05)
            assert job.poll() is None, job.communicate()
        job.send_signal(signal.SIGINT)
        out, told = job.communicate()
    assert job.returncode == 130, (out, told)
    assert b"with --resume goes on" in told
    left = remote.objects()
    listed = {line.split(b" ")[2].decode() for n, d in left.items() if n.endswith(".txt") for line in d.splitlines()}
    assert set(left) == listed | {n for n in left if n.endswith(".txt")} | {".dlmt-job"}
    done = remote.encrypt(resume=True)
    assert "were done already" in done.notes[0]
    assert without_manifest(remote.objects()) == without_manifest(files_of_local(remote))
    remote.check_clean()


def test_from_s3_to_s3(remote: Remote) -> None:
    remote.images(5)
    whole = without_manifest(files_of_local(remote))
    remote.server.upload(remote.source, remote.bucket, remote.base + "photos")
    remote.source = f"s3://{remote.bucket}/{remote.base}photos"  # type: ignore[assignment]
    remote.encrypt()
    found = without_manifest(remote.objects())
    assert sorted(found.values()) != sorted(whole.values())  # other stamps, so another job: other names
    assert {len(data) for data in found.values()} == {len(data) for data in whole.values()}
    remote.verify()


@pytest.mark.long
def test_ray(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks stage in their own processes, and upload from there."""
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)  # where Ray's workers look for packages first: not in the checkout
    monkeypatch.setenv("RAY_TMPDIR", tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    remote.images(9)
    whole = without_manifest(files_of_local(remote))
    assert remote.encrypt(engine="ray", workers=2).outputs == 9
    assert without_manifest(remote.objects()) == whole
    remote.remove("a/store/dlmt-shard-00001.txt")
    assert "4 of 5 shards" in remote.encrypt(engine="ray", workers=2, resume=True).notes[0]
    assert without_manifest(remote.objects()) == whole
    remote.verify()


# --- publishing one object -------------------------------------------------------------------------------------------


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"content")
    return tmp_path / "file"


def publish(remote: Remote, path: Path, **options: Any) -> None:
    objects_at(located(remote.url)).publish("x", path, file_digest(path)[1], **options)


def test_what_is_there_is_compared(strict: Remote, staged: Path) -> None:
    publish(strict, staged)
    head = strict.head("a/store/x")
    assert head["Metadata"] == {"dlmt-sha256": file_digest(staged)[1]}
    assert head["ContentType"] == "application/octet-stream"
    assert head["ChecksumSHA256"]
    publish(strict, staged)
    staged.write_bytes(b"another")
    with pytest.raises(StoreError, match="there already with other content"):
        publish(strict, staged)
    assert strict.get("a/store/x") == b"content"
    publish(strict, staged, replace=True)
    assert strict.get("a/store/x") == b"another"
    strict.put("a/store/x", b"another")  # somebody's, without our digest
    with pytest.raises(StoreError, match="there already with other content"):
        publish(strict, staged)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "MULTIPART_FROM", 6 << 20)
    monkeypatch.setattr(bucket_module, "PART", 5 << 20)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(np.random.default_rng(0).bytes(11 << 20))
    return tmp_path / "large"


def test_large_files_go_in_parts(strict: Remote, large: Path, small_parts: None) -> None:
    publish(strict, large)
    head = strict.head("a/store/x")
    assert head["ChecksumSHA256"].endswith("-3")
    assert head["Metadata"] == {"dlmt-sha256": file_digest(large)[1]}
    assert strict.get("a/store/x") == large.read_bytes()
    publish(strict, large)
    publish(strict, large, replace=True)
    large.write_bytes(bytes(11 << 20))
    with pytest.raises(StoreError, match="there already with other content"):
        publish(strict, large)
    assert not strict.uploads()


def test_a_file_that_changes_under_way_is_not_published(strict: Remote, large: Path, small_parts: None) -> None:
    for path in (large, Path(large.parent, "small")):
        path.write_bytes(bytes(7 << 20 if path == large else 7))
        with pytest.raises(OSError, match="not the one that was written"):
            objects_at(located(strict.url)).publish("x", path, "0" * 64)
    assert not strict.objects()
    assert not strict.uploads()


def test_unfinished_uploads_of_the_job_alone_are_aborted(strict: Remote) -> None:
    strict.images(4)
    strict.encrypt(to="webdataset", slice=Slice(1, 2))
    for key in ("a/store/shard-000001.tar", "a/store/other", "b/other"):
        strict.client.create_multipart_upload(**strict.key_of(key))
    strict.encrypt(to="webdataset", resume=True)
    assert sorted(strict.uploads()) == ["a/store/other", "b/other"]
    for name in strict.objects():
        strict.remove(f"a/store/{name}")
    strict.client.create_multipart_upload(**strict.key_of("a/store/shard-000001.tar"))
    strict.encrypt(to="webdataset")
    assert sorted(strict.uploads()) == ["a/store/other", "b/other"]


def test_an_upload_in_parts_that_fails_is_aborted(
    strict: Remote, large: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = bucket_module.Bucket._send_part

    def fail(self: Any, name: str, upload: str, number: int, data: bytes) -> Any:
        if number == 2:
            raise OSError(errno.EIO, "no")
        return sent(self, name, upload, number, data)

    monkeypatch.setattr(bucket_module.Bucket, "_send_part", fail)
    with pytest.raises(OSError, match="no"):
        publish(strict, large)
    assert not strict.uploads()
    assert not strict.objects()


# --- staging ---------------------------------------------------------------------------------------------------------


def test_staging_ends_with_its_process(own_temporaries: None, tmp_path: Path) -> None:
    words = "import sys, time; from dlmt_fast.stores.staging import staging\n"
    words += (
        "with staging() as folder:\n    (folder / 'x').write_bytes(b'x'); print(folder, flush=True); time.sleep(600)"
    )
    with staging() as mine:
        with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            theirs = Path(process.stdout.readline().decode().strip())
            remove_dead_staging()
            assert (theirs / "x").exists()
            process.kill()
        remove_dead_staging()
        assert not theirs.parent.exists()
        assert mine.exists()
    assert not list((tmp_path / "tmp").iterdir())
