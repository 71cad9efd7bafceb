"""Uploads to S3 that go wrong: answers that are lost, bytes that are altered, processes that are killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import RemoteError, StoreError
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, verify_store
from dlmt_fast.stores import bucket as bucket_module
from dlmt_fast.stores.location import located
from dlmt_fast.stores.objects import objects_at
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import file_digest

pytest.importorskip("s3fs")

SCHEME = dlmt.DLMT("mat_mmt")
BUCKET = "ready"  # each further one would take volumes of SeaweedFS
TYPES = ("application/octet-stream", "image/png", "text/plain")  # SeaweedFS does not keep the first, and looks itself


class Place:
    """A source of small images and a prefix of a bucket, each of its own."""

    def __init__(self, root: Path, server: Any, key: dlmt.Key, count: int) -> None:
        self.root, self.key, self.source, self.server = root, key, root / "source", server
        self.client = server.client()
        exceptions = self.client.exceptions
        with suppress(exceptions.BucketAlreadyExists, exceptions.BucketAlreadyOwnedByYou):
            self.client.create_bucket(Bucket=BUCKET)
        self.prefix = f"{root.name}-{time.monotonic_ns()}/"
        self.url = f"s3://{BUCKET}/{self.prefix}store"
        rng = np.random.default_rng(0)
        for i in range(count):
            (self.source / f"{i % 3}").mkdir(parents=True, exist_ok=True)
            (self.source / f"{i % 3}" / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (3, 8, 8), np.uint8)))

    def owner(self, store_id: str) -> Path:
        return self.root / "k.stores" / store_id

    def encrypt(self, target: str | Path | None = None, to: str | None = None, **options: Any) -> Summary:
        chosen = JobOptions(**{"shard_size": 2, **options})
        where = self.url if target is None else target
        return encrypt_store(self.source, where, self.key, SCHEME, self.owner, chosen, target_named=to)

    def objects(self) -> dict[str, bytes]:
        """Every object but the manifest, whose sealed header has a fresh nonce."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        found = {key: self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
        below = f"{self.prefix}store/"
        assert all(key.startswith(below) for key in found)
        return {key[len(below) :]: data for key, data in found.items() if not key.endswith("dlmt-store.json")}

    def uploads(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.prefix).get("Uploads", ())
        return [entry["Key"] for entry in found]

    def locally(self, **options: Any) -> dict[str, bytes]:
        """What an undisturbed job writes into a folder."""
        for path in (self.root / "k.stores").rglob("*.*"):
            path.unlink()
        local = self.root / "local"
        self.encrypt(local, **options)
        found = (path for path in local.rglob("*") if path.is_file() and path.name != "dlmt-store.json")
        return {path.relative_to(local).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def behind(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What stands between this process and the server: a `s3_server.Between`."""
    with sys.modules["s3_server"].between(seaweed) as (server, state):
        server.use(monkeypatch, AWS_MAX_ATTEMPTS="2")
        yield state


@pytest.fixture
def place(seaweed: Any, behind: Any, tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, seaweed, key, 6)


# --- one object ------------------------------------------------------------------------------------------------------


def publish(place: Place, content: bytes, name: str = "x", conditional: bool = True) -> None:
    path = place.root / "file"
    path.write_bytes(content)
    objects_at(located(place.url), conditional).publish(name, path, file_digest(path)[1])


@pytest.mark.parametrize("times", [1, 50])
def test_an_answer_that_is_lost(times: int, place: Place, behind: Any) -> None:
    """Once: the second attempt finds the object. Always: nothing but a look at the object tells that it is there."""
    behind.once("lost", "PUT", "store/x", times)
    publish(place, b"content")
    assert place.objects() == {"x": b"content"}
    if times == 1:
        assert behind.count("PUT", "store/x") == 2
        assert behind.count("HEAD", "store/x") == 1


def test_a_request_that_is_lost_is_sent_again(place: Place, behind: Any) -> None:
    behind.once("reset", "PUT", "store/x")
    publish(place, b"content")
    assert place.objects() == {"x": b"content"}
    behind.once("503", "PUT", "store/y")
    publish(place, b"content", "y")
    assert set(place.objects()) == {"x", "y"}


def test_a_server_that_stays_unwell_fails_the_upload(place: Place, behind: Any) -> None:
    behind.fault = lambda method, path: "500" if method == "PUT" else None
    with pytest.raises(RemoteError, match="store/x"):
        publish(place, b"content")
    assert not place.objects()


def test_another_object_behind_a_lost_answer_is_seen(place: Place, behind: Any) -> None:
    publish(place, b"content")
    behind.once("lost", "PUT", "store/x")
    with pytest.raises(StoreError, match="there already with other content"):
        publish(place, b"another")
    assert place.objects() == {"x": b"content"}


def test_altered_bytes_are_refused_by_the_server(place: Place, behind: Any) -> None:
    behind.fault = lambda method, path: "altered" if method == "PUT" else None
    with pytest.raises(RemoteError, match=r"other bytes than were sent|XAmzContentSHA256Mismatch|does not match"):
        publish(place, b"content")
    assert not place.objects()
    behind.once("altered", "PUT", "dlmt-shard-00001")
    place.encrypt()
    assert behind.count("PUT", "dlmt-shard-00001") == 2
    assert place.objects() == place.locally()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "MULTIPART_FROM", 6 << 20)
    monkeypatch.setattr(bucket_module, "PART", 5 << 20)


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        *(("begin", "503"), ("part", "reset"), ("complete", "lost"), ("complete", "503")),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (("begin", "lost"), ("part", "lost"))),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (("begin", "reset"), ("complete", "reset"))),
    ],
)
def test_uploads_in_parts(request_: str, fault: str, place: Place, behind: Any, small_parts: None) -> None:
    method, part = {"begin": ("POST", "uploads"), "part": ("PUT", "partNumber=2"), "complete": ("POST", "uploadId")}[
        request_
    ]
    behind.once(fault, method, part)
    content = bytes(11 << 20)
    publish(place, content)
    assert place.objects() == {"x": content}
    if (request_, fault) != ("begin", "lost"):  # of that one nobody knows the id; the job aborts it when it goes on
        assert not place.uploads()


def test_altered_parts_are_refused_by_the_server(place: Place, behind: Any, small_parts: None) -> None:
    behind.fault = lambda method, path: "altered" if "partNumber=2" in path else None
    with pytest.raises(RemoteError, match=r"other bytes than were sent|XAmzContentSHA256Mismatch|does not match"):
        publish(place, bytes(11 << 20))
    assert not place.objects()
    assert not place.uploads()


def test_a_server_without_conditions(place: Place, behind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers 501 to If-None-Match, and one that takes no notice of it: both are told in the summary."""
    asked = bucket_module.Bucket._request
    answers: list[str] = []

    def unconditional(self: Any, method: str, name: str, **fields: Any) -> Any:
        if "IfNoneMatch" in fields:
            answers.append(name)
            if answers[0] == "501":
                raise RemoteError(errno.ENOSYS, "not implemented")
            del fields["IfNoneMatch"]
        return asked(self, method, name, **fields)

    monkeypatch.setattr(bucket_module.Bucket, "_request", unconditional)
    for kind in ("501", "ignored"):
        answers[:] = [kind]
        done = place.encrypt(overwrite=kind == "ignored")
        assert any("If-None-Match" in note for note in done.notes)
        assert set(answers[1:]) == {".dlmt-job"}
        verify_store(place.url, place.key, place.owner)
        publish(place, b"content", conditional=False)
        publish(place, b"content", conditional=False)
        with pytest.raises(StoreError, match="there already with other content"):
            publish(place, b"another", conditional=False)
        place.client.delete_object(Bucket=BUCKET, Key=f"{place.prefix}store/x")


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_goes_on_where_the_server_was_unwell(place: Place, behind: Any) -> None:
    """Every tenth upload fails, or its answer is lost."""
    numbers = iter(range(10**6))

    def fault(method: str, path: str) -> str | None:
        if method != "PUT":
            return None
        return {3: "503", 5: "lost", 8: "reset"}.get(next(numbers) % 10)

    behind.fault = fault
    place.encrypt()
    assert place.objects() == place.locally()


def test_a_job_stops_where_the_server_is_away(place: Place, behind: Any) -> None:
    """What is told is the first error, not that of clearing up; the job goes on later."""
    away: list[bool] = []

    def fault(method: str, path: str) -> str | None:
        if "dlmt-shard-00001" in path:
            away.append(True)
        return "503" if away else None

    behind.fault = fault
    left: list[str] = []
    with pytest.raises(RemoteError, match="store/"):
        encrypt_store(
            place.source, place.url, place.key, SCHEME, place.owner, JobOptions(shard_size=2), tell=left.append
        )
    assert "could not be removed; the same command with --resume does that" in left[0]
    behind.fault = lambda method, path: None
    assert "1 of 3 shards were done already" in place.encrypt(resume=True).notes[0]
    assert place.objects() == place.locally()


def test_work_that_is_not_deterministic_is_found(place: Place) -> None:
    """A shard was uploaded and not entered; made again, it has other bytes."""
    place.encrypt()
    (owned,) = (place.root / "k.stores").iterdir()
    (owned / "journal-00001.json").unlink()
    whole = place.objects()
    name = whole["dlmt-shard-00001.txt"].split(b"\n")[0].split(b" ")[2].decode()
    place.client.put_object(Bucket=BUCKET, Key=f"{place.prefix}store/{name}", Body=b"other bytes")
    with pytest.raises(StoreError, match="the work is not deterministic on these machines"):
        place.encrypt(resume=True)


def test_no_name_and_no_secret_is_uploaded(place: Place, behind: Any, secret: bytes) -> None:
    """Keys, headers and metadata: what else of an object's own tells something. Bodies are a local store's."""
    headers: list[dict[str, str]] = []
    place.encrypt(classes="index")
    for name in place.objects():
        head = place.client.head_object(Bucket=BUCKET, Key=f"{place.prefix}store/{name}")
        assert set(head["Metadata"]) == {"dlmt-sha256"}
        assert head["ContentType"].partition(";")[0] in TYPES
        headers.append(head["ResponseMetadata"]["HTTPHeaders"])
        assert not {"content-encoding", "content-disposition", "content-language", "cache-control"} & set(headers[-1])
    told = repr(headers) + repr(behind.asked) + repr(list(place.objects()))
    for word in (secret.hex(), place.key.fingerprint, str(place.root), os.uname().nodename):
        assert word not in told
    assert place.objects() == place.locally(classes="index")


def workers_of(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Job:
    """A command that is killed at a random moment."""

    def __init__(self, place: Place, to: str, seed: int) -> None:
        self.place, self.rng = place, random.Random(seed)
        (place.root / "tmp").mkdir()
        place.key.save(place.root / "k", params=SCHEME.params)
        self.environment = {**os.environ, **place.server.environment, "TMPDIR": str(place.root / "tmp")}
        self.words = ["encrypt", "source", place.url, "--resume", "--workers", "2", "--shard-size", "20", "--to", to]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from dlmt_fast.cli import main; main()", *words, "--key", "k"]

    def run(self, *words: str) -> bytes:
        line = self.command(*(words or self.words))
        return subprocess.run(
            line, cwd=self.place.root, env=self.environment, check=True, stdout=subprocess.PIPE
        ).stdout

    def entered(self, since: int) -> int:
        """How many shards were entered since then, in ns."""
        entries = (self.place.root / "k.stores").rglob("journal-*")
        return sum(path.stat().st_mtime_ns > since for path in entries)

    def start_and_kill(self) -> bool:
        """Kill parent or worker, at any moment from the start on or when some more shards count; False where the job
        ended before that."""
        rng, nowhere = self.rng, subprocess.DEVNULL
        end = time.monotonic() + rng.uniform(0.2, 3)
        shards, since = rng.randrange(1, 4) if rng.random() < 0.7 else 10**6, time.time_ns()
        line = self.command(*self.words)
        with subprocess.Popen(line, cwd=self.place.root, env=self.environment, stdout=nowhere, stderr=nowhere) as job:
            while job.poll() is None and self.entered(since) < shards and (time.monotonic() < end or shards < 10**6):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            victim = rng.choice([job.pid, *workers_of(job.pid)])
            killed = job.poll() is None
            if killed:
                os.kill(victim, signal.SIGKILL)
            if victim != job.pid:
                time.sleep(rng.uniform(0, 0.3))
                job.kill()
        return killed

    def lose_shards(self) -> None:
        """So that there is work again."""
        place = self.place
        shards = sorted(name for name in place.objects() if name.endswith((".tar", ".txt")))
        for name in self.rng.sample(shards, 40):
            place.client.delete_object(Bucket=BUCKET, Key=f"{place.prefix}store/{name}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("to", ["folder", pytest.param("webdataset", marks=pytest.mark.long)])
def test_kills(kills: int, to: str, seaweed: Any, tmp_path: Path, key: dlmt.Key) -> None:
    """A job of 1,000 images in 50 shards whose parent or workers are killed again and again ends with the objects of an
    undisturbed one, and with nothing else."""
    place = Place(tmp_path, seaweed, key, 1000)
    job, done, ended = Job(place, to, kills), 0, 0
    while done < kills:
        if job.start_and_kill():
            done += 1
        else:
            ended += 1
            job.lose_shards()
    assert ended <= kills // 2
    assert b"1000 inputs = 1000 outputs + 0 quarantined" in job.run()
    assert not list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "k.stores").rglob(".tmp-*"))
    assert not place.uploads()
    assert b"1000 inputs = 1000 outputs + 0 quarantined" in job.run("verify", place.url)
    assert place.objects() == place.locally(shard_size=20, to=to)
