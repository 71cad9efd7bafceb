"""The marker of a job in its target: seen whole or not at all, and never taken from another, however old it is."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import StoreError, UsageError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, preview_encrypt, verify_store
from dlmt_fast.stores.publish import FileOps

SCHEME = dlmt.DLMT("mat_mmt")


class Place:
    """Arrays in a folder, or one alone, and jobs of two owners on them."""

    def __init__(self, root: Path, key: dlmt.Key, single: bool) -> None:
        self.root, self.key, self.out = root, key, root / "out"
        (root / "source").mkdir()
        for name in "ab":
            np.save(root / "source" / f"{name}.npy", np.zeros((5, 4, 4), np.uint8))
        self.source = root / "source" / "a.npy" if single else root / "source"
        self.store = self.out / "store.npy" if single else self.out
        self.marker = self.out / (".store.npy.dlmt-job" if single else ".dlmt-job")

    def encrypt(self, ops: FileOps | None = None, owner: str = "own", key: dlmt.Key | None = None, **o: Any) -> Summary:
        key, folder, ops = key or self.key, self.root / owner, ops or FileOps()
        return encrypt_store(self.source, self.store, key, SCHEME, lambda _: folder, JobOptions(**o), ops=ops)

    def hidden(self) -> list[str]:
        return [path.name for path in self.out.iterdir() if path.name.startswith(".")]


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, key, getattr(request, "param", False))


BOTH = pytest.mark.parametrize("place", [False, True], indirect=True, ids=["a folder", "a file"])


class Watching(FileOps):
    """Tells the marker before and after each operation."""

    def __init__(self, marker: Path) -> None:
        self.marker, self.seen = marker, set[bytes]()

    def look(self) -> None:
        if self.marker.exists():
            self.seen.add(self.marker.read_bytes())

    def create(self, path: Path, mode: int = 0o666) -> int:
        descriptor = super().create(path, mode)
        self.look()
        return descriptor

    def write(self, descriptor: int, data: bytes | bytearray | memoryview) -> None:
        for byte in bytes(data[:64]):
            super().write(descriptor, bytes([byte]))
            self.look()
        super().write(descriptor, data[64:])

    def link(self, old: Path, new: Path) -> None:
        super().link(old, new)
        self.look()


class NoLinks(FileOps):
    """A file system without hard links."""

    def __init__(self, error: int = errno.EPERM) -> None:
        self.error = error

    def link(self, old: Path, new: Path) -> None:
        raise OSError(self.error, os.strerror(self.error), str(new))


@BOTH
def test_it_is_seen_whole_or_not_at_all(place: Place) -> None:
    ops = Watching(place.marker)
    store_id = place.encrypt(ops).store_id
    assert ops.seen == {store_id.encode()}
    assert place.hidden() == []


@BOTH
@pytest.mark.parametrize("begun", [0, 7])
def test_one_that_is_not_whole_is_told_and_stays(place: Place, begun: int) -> None:
    """Another owner may stall between making it and writing it."""
    store_id = place.encrypt().store_id
    shutil.rmtree(place.out)
    place.out.mkdir()
    place.marker.write_text(store_id[:begun])
    os.utime(place.marker, (0, 0))
    with pytest.raises(StoreError, match=r"dlmt-job is not whole: a job begins there .* remove that file and give"):
        place.encrypt(resume=True)
    if not begun:
        with pytest.raises(StoreError, match="is not whole"):
            place.encrypt()
    assert place.marker.read_text() == store_id[:begun]
    place.marker.unlink()
    place.encrypt(resume=True)
    assert place.hidden() == []


@BOTH
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_hard_links_it_is_exclusive_too(place: Place, error: int) -> None:
    other, told = dlmt.Key(bytes(32)), []

    class Meanwhile(NoLinks):
        """The other owner begins at the last moment."""

        def link(self, old: Path, new: Path) -> None:
            new.write_bytes(b"f" * 32)
            told.append(new)
            super().link(old, new)

    assert place.encrypt(NoLinks(error)).outputs > 0
    assert place.hidden() == []
    shutil.rmtree(place.out)
    with pytest.raises(StoreError, match="is marked by a job that runs"):
        place.encrypt(Meanwhile(error), "theirs", other)
    assert told == [place.marker]
    assert place.marker.read_bytes() == b"f" * 32
    assert place.hidden() == [place.marker.name]


@BOTH
def test_two_that_begin_at_once_do_not_mix(place: Place) -> None:
    """With hard links: the other's marker is there when this one is to be."""
    other = dlmt.Key(bytes(32))

    class Meanwhile(FileOps):
        def link(self, old: Path, new: Path) -> None:
            new.write_bytes(b"f" * 32)
            super().link(old, new)

    with pytest.raises(StoreError, match="is marked by a job that runs"):
        place.encrypt(Meanwhile(), "theirs", other)
    assert place.hidden() == [place.marker.name]
    assert place.marker.read_bytes() == b"f" * 32


@BOTH
@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EIO])
def test_another_error_is_told(place: Place, full: int) -> None:
    with pytest.raises(OSError, match=os.strerror(full)):
        place.encrypt(NoLinks(full))
    assert not place.out.exists()


class Killed(BaseException):
    """As by SIGKILL: nothing cleans up."""


def kill_at(operation: str) -> FileOps:
    """Everything fails from this operation on."""
    dead: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(FileOps, name)

        def call(self: FileOps, *arguments: Any, **named: Any) -> Any:
            if dead or name == operation:
                dead.append(name)
                raise Killed
            return real(self, *arguments, **named)

        return call

    names = ("create", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir", "fsync_directory")
    return type("Kill", (FileOps,), {name: wrap(name) for name in names})()


@BOTH
def test_a_kill_before_it_is_there_is_gone_on_from(place: Place) -> None:
    with pytest.raises(Killed):
        place.encrypt(kill_at("link"))
    (left,) = place.hidden()
    assert left.startswith(".tmp-")
    if place.store == place.out:
        with pytest.raises(UsageError, match="go on with a job that was stopped there with --resume"):
            place.encrypt()
        with pytest.raises(UsageError, match="is not empty and no stopped job is there to resume"):
            place.encrypt(key=dlmt.Key(bytes(32)), owner="theirs", resume=True)
    assert place.encrypt(resume=True).outputs > 0
    assert place.hidden() == []
    verify_store(place.store, place.key, lambda _: place.root / "own")


@BOTH
def test_a_killed_decrypt_too(place: Place) -> None:
    place.encrypt()
    back = place.root / "back" / "x.npy" if place.store != place.out else place.root / "back"

    def decrypt(ops: FileOps, resume: bool) -> None:
        decrypt_store(place.store, back, place.key, lambda _: place.root / "own", resume=resume, ops=ops)

    with pytest.raises(Killed):
        decrypt(kill_at("link"), False)
    assert [path.name[:5] for path in (place.root / "back").iterdir()] == [".tmp-"]
    decrypt(FileOps(), True)
    assert not list((place.root / "back").glob(".*"))


@pytest.mark.parametrize("text", [b"", b"f" * 32])
@pytest.mark.parametrize("remote", [False, True])
def test_a_dry_run_leaves_it(place: Place, text: bytes, remote: bool) -> None:
    pytest.importorskip("upath")
    target = f"memory://marker-{uuid.uuid4().hex}/store" if remote else str(place.out)
    files = fsspec.filesystem("memory" if remote else "file")
    files.pipe_file(f"{target}/.dlmt-job", text) if remote else (place.out.mkdir(), place.marker.write_bytes(text))
    with pytest.raises(StoreError, match="is not whole" if not text else "belongs to another job"):
        preview_encrypt(place.source, target, place.key, SCHEME, lambda _: place.root / "own", JobOptions(resume=True))
    assert files.cat_file(f"{target}/.dlmt-job") == text
