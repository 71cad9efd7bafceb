"""Folder stores: what a source takes, how a writer publishes, and that a failure at any step leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dlmt_fast.errors import StoreDamagedError, StoreError
from dlmt_fast.stores.contract import Batch, Refused
from dlmt_fast.stores.folder import FolderSource, Options
from dlmt_fast.stores.folder_writer import FolderWriter
from dlmt_fast.stores.listing import read_listed, read_listing
from dlmt_fast.stores.publish import FileOps, file_digest, make_directories, publish_bytes

ID = "0" * 32


def photo(path: Path, shape: tuple[int, ...] = (4, 5, 3), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path, "PNG")
    return path


class Faults(FileOps):
    """The disk, with the call of number `fail_at` failing halfway, among all or those of one operation; removing
    always works."""

    def __init__(self, fail_at: int = -1, operation: str | None = None) -> None:
        self.fail_at, self.operation, self.calls, self._lock = fail_at, operation, list[str](), threading.Lock()

    def _run(self, name: str, work: Callable[[], Any], half: Callable[[], object] = lambda: None) -> Any:
        with self._lock:  # the writer's threads call too
            fails = self.operation in (None, name) and len(self.calls) == self.fail_at
            self.calls += [name] if self.operation in (None, name) else []
        if fails:
            half()
            raise OSError(errno.ENOSPC, f"no space left ({name})")
        return work()

    def create(self, path: Path, mode: int = 0o666) -> int:
        return int(self._run("create", lambda: FileOps.create(self, path, mode)))

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        half = memoryview(data).cast("B")[: len(data) // 2]
        self._run("write", lambda: FileOps.write(self, descriptor, data), lambda: os.write(descriptor, half))

    def allocate(self, descriptor: int, size: int) -> None:
        self._run("allocate", lambda: FileOps.allocate(self, descriptor, size))

    def fsync(self, descriptor: int) -> None:
        self._run("fsync", lambda: FileOps.fsync(self, descriptor))

    def close(self, descriptor: int) -> None:
        self._run("close", lambda: os.close(descriptor), lambda: os.close(descriptor))

    def rename(self, old: Path, new: Path) -> None:
        self._run("rename", lambda: FileOps.rename(self, old, new))

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._run("mkdir", lambda: FileOps.mkdir(self, path, mode))

    def fsync_directory(self, path: Path) -> None:
        self._run("fsync_directory", lambda: FileOps.fsync_directory(self, path))


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


def paths(source: FolderSource) -> list[str]:
    return [stamp.path for stamp in source.stamps()]


# sources


def test_files_are_listed_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a.png", "a/ä.png", "B.PNG", "a/b/c/d.jpeg", "a b.png", "10.png", "9.png"]
    for name in names:
        photo(tmp_path / name)
    assert paths(FolderSource(tmp_path)) == sorted(names, key=os.fsencode)


def test_hidden_files_and_folders_are_counted_and_left(tmp_path: Path) -> None:
    for name in ("a.png", ".DS_Store", ".git/b.png", "c/.thumbs/d.png", "c/._e.png"):
        photo(tmp_path / name)
    source = FolderSource(tmp_path)
    assert paths(source) == ["a.png"]
    assert source.left_alone == "4 hidden files and folders"


def test_ignored_files_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "notes.txt", "c/notes.txt", "c/Notes.TXT"):
        photo(tmp_path / name)
    source = FolderSource(tmp_path, Options(ignore=("*.txt",)))
    assert paths(source) == ["a.png", "c/Notes.TXT"]
    assert source.left_alone == "2 files that --ignore names"
    assert paths(FolderSource(tmp_path, Options(ignore=("c/*", "notes.*")))) == ["a.png"]


def test_unknown_suffixes_are_refused_by_name(tmp_path: Path) -> None:
    photo(tmp_path / "a.png"), photo(tmp_path / "b.gif"), photo(tmp_path / "README")
    source = FolderSource(tmp_path)
    survey = source.survey()
    assert survey.shapes == {(3, 4, 5): (1, "a.png")}
    assert [(item.index, item.path) for item in survey.refused] == [(0, "README"), (2, "b.gif")]
    found = list(source.read(range(3), 2))
    assert [type(item) for item in found] == [Refused, Refused, Batch]
    assert all("--ignore" in item.reason for item in found if isinstance(item, Refused))


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "hidden only"])
def test_what_is_no_folder_of_images(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "source"
    if kind == "file":
        photo(root)
    elif kind != "missing":
        root.mkdir()
    if kind == "hidden only":
        photo(root / ".a.png")
    with pytest.raises(StoreError):
        FolderSource(root)


@pytest.mark.parametrize("link", ["loop", "a", "zz", "deep/er/link"])
@pytest.mark.parametrize("to", ["", "real"])
def test_a_folder_reached_twice_is_refused(link: str, to: str, tmp_path: Path) -> None:
    photo(tmp_path / "real" / "a.png")
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / to, target_is_directory=True)
    with pytest.raises(StoreError, match="is read already"):
        FolderSource(tmp_path)


def test_links_elsewhere_are_followed(tmp_path: Path) -> None:
    photo(tmp_path / "elsewhere" / "a.png"), photo(tmp_path / "b.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "c.png").symlink_to(tmp_path / "b.png")
    assert paths(FolderSource(root)) == ["c.png", "link/a.png"]


@pytest.mark.parametrize("kind", ["dangling", "fifo"])
def test_what_cannot_be_read_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(tmp_path / "a.png")
    else:
        (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(StoreError, match="neither a file nor a folder"):
        FolderSource(tmp_path)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(StoreError, match="not valid UTF-8"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_file_changed_since_it_was_listed_stops_the_job(change: str, tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    source = FolderSource(tmp_path)
    photo(path, (4, 6, 3)) if change == "content" else os.utime(path, ns=(1, 1))
    with pytest.raises(StoreError, match="changed since the job began"):
        list(source.read([0], 1))


def test_a_vanished_file_is_no_bad_image(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    source = FolderSource(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(source.read([0], 1))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reading_keeps_order_and_splits_by_shape(workers: int, tmp_path: Path) -> None:
    shapes = [(4, 5, 3)] * 3 + [(5, 4, 3)] * 2 + [(4, 5)] + [(4, 5, 3)] * 9
    for i, shape in enumerate(shapes):
        photo(tmp_path / f"{i:02d}.png", shape, seed=i)
    order = list(range(len(shapes)))[::-1]
    got = list(FolderSource(tmp_path).read(order, workers))
    assert [index for batch in got if isinstance(batch, Batch) for index in batch.indices] == order
    for batch in got:
        assert isinstance(batch, Batch)
        for index, image in zip(batch.indices, batch.images, strict=True):
            expected = np.random.default_rng(index).integers(0, 256, shapes[index], np.uint8)
            assert np.array_equal(image.transpose(1, 2, 0).squeeze(), expected.squeeze())


# listings


def test_a_listing_reads_back(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path, ID, 0)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 4), np.uint8)
    writer.write(range(3), ["b/2.png", "a/ö x.png", "1.png"], images)
    assert [name for name in files(tmp_path) if not name.rpartition("/")[2].startswith(".tmp-")] == []
    published = writer.publish()
    assert files(tmp_path) == ["1.png", "a/ö x.png", "b/2.png", "dlmt-shard-00000.txt"]
    data = (tmp_path / "dlmt-shard-00000.txt").read_bytes()
    entries = read_listing(data, "x")
    assert published == type(published)(
        "dlmt-shard-00000.txt", 3, sum(e.size for e in entries), hashlib.sha256(data).hexdigest()
    )
    assert [entry.name for entry in entries] == ["1.png", "a/ö x.png", "b/2.png"]
    for entry in entries:
        assert file_digest(tmp_path / entry.name) == (entry.size, entry.sha256)
        assert read_listed(tmp_path, entry) == (tmp_path / entry.name).read_bytes()


LINE = "a" * 64 + " 12 b.png\n"


@pytest.mark.parametrize(
    "text",
    [
        LINE[:-1],
        LINE + "x",
        LINE + LINE,
        LINE + LINE.replace("b.png", "a.png"),
        LINE[1:],
        LINE.replace("12", "012"),
        LINE.replace("12", "+12"),
        LINE.replace("12", "twelve"),
        LINE.replace("12", "1" * 5000),
        *(LINE.replace("b.png", name) for name in ("../b", "/b", "a/../b", "./b", "a//b", "a\\b", "a\0b", "a/", "")),
        "\ufeff" + LINE,
        "\n",
    ],
)
def test_other_listings_are_damage(text: str) -> None:
    assert len(read_listing(LINE.encode(), "x")) == 1
    with pytest.raises(StoreDamagedError, match="x is not a shard's listing"):
        read_listing(text.encode(), "x")


def test_a_listing_is_utf8() -> None:
    assert read_listing(b"", "x") == []
    with pytest.raises(StoreDamagedError):
        read_listing(LINE.encode().replace(b"b", b"\xff"), "x")


@pytest.mark.parametrize("what", ["gone", "folder", "longer", "altered", "under a file"])
def test_a_listed_file_must_be_as_it_was(what: str, tmp_path: Path) -> None:
    data = b"0123"
    (tmp_path / "d").mkdir()
    entry = read_listing(f"{hashlib.sha256(data).hexdigest()} 4 d/b.png\n".encode(), "x")[0]
    path = tmp_path / entry.name
    path.write_bytes(data)
    assert read_listed(tmp_path, entry) == data
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "under a file":
        path.parent.rmdir()
        path.parent.write_bytes(data)
    elif what != "gone":
        path.write_bytes(data + b"4" if what == "longer" else b"0124")
    with pytest.raises(StoreDamagedError, match=r"b\.png is"):
        read_listed(tmp_path, entry)


# writers


def test_the_order_of_publishing(tmp_path: Path) -> None:
    ops = Faults()
    publish_bytes(tmp_path / "a", b"data", ID, ops=ops)
    assert ops.calls == ["create", "write", "fsync", "close", "rename", "fsync_directory"]
    ops = Faults()
    writer = FolderWriter(tmp_path / "s", ID, 0, ops)
    writer.write([0, 1], ["c/a.png", "c/b.png"], np.zeros((2, 1, 2, 2), np.uint8))
    writer.publish()
    one_file = ["create", "write", "fsync", "close"]
    made, written = ["mkdir", "fsync_directory"] * 2, len(one_file) * 2
    assert ops.calls[: len(made)] == made
    assert sorted(ops.calls[len(made) :][:written]) == sorted(one_file * 2)  # in threads, so in any order
    assert ops.calls[len(made) + written :] == ["rename"] * 2 + ["fsync_directory"] * 2 + one_file + [
        "rename",
        "fsync_directory",
    ]


def test_every_file_is_synced_before_the_first_rename(tmp_path: Path) -> None:
    class Slow(Faults):
        def fsync(self, descriptor: int) -> None:
            time.sleep(0.002)
            super().fsync(descriptor)

    ops, count = Slow(), 50
    writer = FolderWriter(tmp_path, ID, 0, ops)
    writer.write(range(count), [f"{n:02d}.png" for n in range(count)], np.zeros((count, 1, 2, 2), np.uint8))
    writer.publish()
    assert ops.calls.index("rename") == 4 * count
    assert ops.calls[: 4 * count].count("fsync") == count


def test_what_waits_for_the_disk_is_bounded(tmp_path: Path) -> None:
    """Large files one by one; of small ones a few at once, with a few descriptors."""
    most, now, lock, go = 0, 0, threading.Lock(), threading.Semaphore(0)

    class Stuck(FileOps):
        def create(self, path: Path, mode: int = 0o666) -> int:
            nonlocal most, now
            with lock:
                now += 1
                most = max(most, now)
            return super().create(path, mode)

        def close(self, descriptor: int) -> None:
            nonlocal now
            super().close(descriptor)
            with lock:
                now -= 1

        def fsync(self, descriptor: int) -> None:
            assert go.acquire(timeout=60)

    for shape, count, at_once in (((1, 2, 2), 40, 4), ((1, 3000, 3000), 3, 1)):
        most = 0
        writer = FolderWriter(tmp_path, ID, 0, Stuck())
        images = np.broadcast_to(np.uint8(0), (count, *shape))
        names = [f"{count}-{n:02d}.png" for n in range(count)]
        thread = threading.Thread(target=writer.write, args=(range(count), names, images))
        thread.start()
        for _ in range(count + 1):  # and one for the listing
            time.sleep(0.002)
            go.release()
        thread.join()
        writer.publish()
        assert most == at_once


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path, ID, 0)
    with pytest.raises(StoreError, match=r"two samples would be written as a\.png"):
        writer.write([0, 1], ["a.png", "a.png"], np.zeros((2, 1, 2, 2), np.uint8))
    writer.abort()
    assert files(tmp_path) == []


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path, ID, 0)
    writer.write([0, 1], ["a.png", "c/b.npy"], np.zeros((2, 1, 2, 2), np.uint8))
    writer.abort()
    writer.abort()
    assert files(tmp_path) == []


def write_all(root: Path, ops: FileOps) -> None:
    writer = FolderWriter(root, ID, 0, ops)
    try:
        writer.write([0, 1], ["a.png", "c/b.png"], np.zeros((2, 1, 2, 2), np.uint8))
        writer.publish()
    except BaseException:
        writer.abort()
        raise


@pytest.mark.parametrize("operation", ["mkdir", "create", "write", "fsync", "close", "rename", "fsync_directory"])
def test_a_failure_of_any_call_leaves_no_file(tmp_path: Path, operation: str) -> None:
    """Counted for each operation alone, since threads call in any order."""
    for number in itertools.count():
        root = tmp_path / str(number)
        root.mkdir()
        ops = Faults(number, operation)
        try:
            write_all(root, ops)
        except OSError:
            assert len(ops.calls) > number
            assert files(root) == [], f"after a failure of {operation} number {number}"
            continue
        assert len(ops.calls) == number >= 1
        assert files(root) == ["a.png", "c/b.png", "dlmt-shard-00000.txt"]
        break


def test_publish_bytes_keeps_the_old_file_until_the_rename(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for step in range(5):
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="no space"):
            publish_bytes(path, b"new", ID, ops=Faults(step))
        assert path.read_bytes() == b"old"
        assert files(tmp_path) == ["a"]
    publish_bytes(path, b"new", ID)
    assert path.read_bytes() == b"new"


def test_a_temporary_is_made_anew_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    for name in ("a", "c"):
        (tmp_path / "c").touch()
        with pytest.raises(FileExistsError):
            FileOps().create(tmp_path / name)
    assert not (tmp_path / "b").exists()


def test_make_directories(tmp_path: Path) -> None:
    ops = Faults()
    assert make_directories(tmp_path / "a" / "b", ops) == [tmp_path / "a", tmp_path / "a" / "b"]
    assert ops.calls == ["mkdir", "fsync_directory"] * 2
    assert make_directories(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is in the way"):
        make_directories(tmp_path / "file" / "c")


def test_a_folder_that_another_worker_makes_at_this_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = tmp_path / "class", Path.is_dir

    def asked(path: Path) -> bool:
        found = real(path)
        if path == folder:
            os.makedirs(folder, exist_ok=True)
        return found

    monkeypatch.setattr(Path, "is_dir", asked)
    assert make_directories(folder) == []
