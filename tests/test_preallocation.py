"""Files of one array: their temporary has its blocks before any work, and what is published is what was written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, verify_store
from dlmt_fast.stores.idx_format import idx_file
from dlmt_fast.stores.publish import FileOps, file_digest
from dlmt_fast.stores.segments import PartFile
from dlmt_fast.stores.sliced import SlicedWriter

ID = "0" * 32
COUNT = 500
SIZE = 16 + COUNT * 48 * 64  # 1.5 MB
ARRAY = (COUNT, 48, 64)


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def can_allocate(folder: Path) -> bool:
    try:
        with open(folder / "probe", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE)
        return blocks(folder / "probe") >= SIZE
    except (AttributeError, OSError):
        return False
    finally:
        (folder / "probe").unlink()


def begin(root: Path, ops: FileOps | None = None, name: str = "x") -> SlicedWriter:
    return SlicedWriter(root, ID, 0, name, idx_file(name, "uint8", ARRAY), ops or FileOps())


def part(root: Path, ops: FileOps | None = None) -> PartFile:
    return PartFile(root, ID, 0, "x", idx_file("x", "uint8", ARRAY), ops or FileOps())


def write_all(writer: SlicedWriter) -> None:
    for start in range(0, COUNT, 100):
        writer.write(range(start, start + 100), [], np.full((100, 1, 48, 64), start // 100, np.uint8))


@pytest.mark.parametrize("segments", [False, True])
def test_the_blocks_are_there_before_the_images(segments: bool, tmp_path: Path) -> None:
    if not can_allocate(tmp_path):
        pytest.skip("the file system cannot give a file its blocks")
    begin(tmp_path) if not segments else part(tmp_path).begin()
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == SIZE
    assert blocks(path) >= SIZE


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_where_that_cannot_be_the_file_is_the_same(
    name: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(tmp_path, name=name)
    write_all(writer)
    whole = writer.publish()

    def refuse(descriptor: int, start: int, size: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    (tmp_path / "sparse").mkdir()
    writer = begin(tmp_path / "sparse", name=name)
    write_all(writer)
    assert writer.publish() == whole
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    (tmp_path / "none").mkdir()
    writer = begin(tmp_path / "none", name=name)
    write_all(writer)
    assert writer.publish() == whole


class Full(FileOps):
    """Has no room for a whole array."""

    def __init__(self, refused: int = 1 << 20) -> None:
        self.refused, self.most, self.written = refused, 0, 0

    def allocate(self, descriptor: int, size: int) -> None:
        if size >= self.refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(descriptor, size)

    def write(self, descriptor: int, data: bytes | bytearray | memoryview) -> None:
        self.written = max(self.written, len(data))
        super().write(descriptor, data)


@pytest.mark.parametrize("segment_bytes", [1 << 17, 1 << 24], ids=["segments", "one piece"])
def test_a_full_disk_is_told_at_the_start(segment_bytes: int, tmp_path: Path, key: dlmt.Key) -> None:
    """With its folder; what counts stays, and nothing is left that fills the disk."""
    (tmp_path / "source").mkdir()
    for name, count in (("a", 3), ("b", 500)):
        np.save(tmp_path / "source" / f"{name}.npy", np.zeros((count, 48, 64), np.uint8))
    store, disk = tmp_path / "store", Full()

    def encrypt(ops: FileOps, resume: bool) -> Summary:
        options = JobOptions(segment_bytes=segment_bytes, resume=resume)
        owner: Callable[[str], Path] = lambda _: tmp_path / "own"  # noqa: E731
        return encrypt_store(tmp_path / "source", store, key, dlmt.DLMT("mat_mmt"), owner, options, ops=ops)

    for resume in (False, True):
        with pytest.raises(OSError, match="No space left on device") as caught:
            encrypt(disk, resume)
        assert caught.value.filename == str(store)
        assert disk.written < 1 << 16  # no image of the large array
        assert not [path for path in store.glob(".*") if path.name != ".dlmt-job"]
        assert len(list(store.glob("*.npy"))) <= 1
    assert encrypt(FileOps(), True).outputs == 503
    verify_store(store, key, lambda _: tmp_path / "own")


@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_what_comes_back_otherwise_than_it_was_written_is_not_published(name: str, tmp_path: Path) -> None:
    writer = begin(tmp_path, name=name)
    write_all(writer)
    (path,) = tmp_path.iterdir()
    with open(path, "r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"\xff")
    with pytest.raises(OSError, match="is not on the disk as it was written"):
        writer.publish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_that_is_done_again(tmp_path: Path, key: dlmt.Key) -> None:
    """As any other error of a device."""
    np.save(tmp_path / "a.npy", np.arange(60, dtype=np.uint8).reshape(5, 3, 4))
    failed: list[Path] = []

    class Flipping(FileOps):
        def fsync(self, descriptor: int) -> None:
            super().fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.parent.name == "out" and path.stat().st_size > 100 and not failed:
                os.pwrite(descriptor, b"\xff\xfe", 150)
                failed.append(path)

    if not Path("/proc/self/fd").exists():
        pytest.skip("finds the file in /proc")
    (tmp_path / "out").mkdir()
    scheme, owner = dlmt.DLMT("mat_mmt"), tmp_path / "own"
    encrypt_store(tmp_path / "a.npy", tmp_path / "out" / "b.npy", key, scheme, lambda _: owner, ops=Flipping())
    assert failed
    encrypt_store(tmp_path / "a.npy", tmp_path / "c.npy", key, scheme, lambda _: tmp_path / "own2")
    assert file_digest(tmp_path / "out" / "b.npy") == file_digest(tmp_path / "c.npy")
