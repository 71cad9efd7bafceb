"""IDX stores: headers, damage, labels, and that a failure at any step of the writer leaves nothing."""

from __future__ import annotations

import errno
import gc
import gzip
import itertools
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlmt_fast.errors import StoreDamagedError, StoreError
from dlmt_fast.stores.contract import Batch
from dlmt_fast.stores.gzipped import pack
from dlmt_fast.stores.idx import IdxSource
from dlmt_fast.stores.idx_format import (
    SLICE_BYTES,
    checked_header,
    encode_labels,
    idx_file,
    looks_like_idx,
    read_labels,
    read_slices,
)
from dlmt_fast.stores.publish import FileOps, file_digest
from dlmt_fast.stores.sliced import SlicedWriter

ID = "0" * 32
CODES = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}


def idx(values: np.ndarray[Any, Any], code: int = 0x08) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape) + values.tobytes()


def images(count: int, height: int = 4, width: int = 5, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), np.uint8)


def whole(path: Path) -> np.ndarray[Any, Any]:
    """All values of a file, read as the pipeline reads it."""
    header = checked_header(path)
    parts = [values for _, values in read_slices(path, header)]
    return np.concatenate(parts)[:, 0] if parts else np.zeros((0, *header.sizes[1:]))


def read_all(source: IdxSource) -> dict[int, np.ndarray[Any, Any]]:
    found = {}
    for shard in source.shards():
        for batch in source.read(shard.samples, 1):
            assert isinstance(batch, Batch)
            found |= dict(zip(batch.indices, batch.images, strict=True))
    return found


def test_plain_and_gzip_are_told_by_content(tmp_path: Path) -> None:
    values = images(7)
    for name, data in (("x", idx(values)), ("y", gzip.compress(idx(values))), ("z.gz", idx(values))):
        (tmp_path / name).write_bytes(data)
        assert looks_like_idx(tmp_path / name)
        source = IdxSource(tmp_path / name)
        assert source.survey().shapes == {(1, 4, 5): (7, name)}
        found = read_all(source)
        assert list(found) == list(range(7))
        assert all(np.array_equal(found[i][0], values[i]) for i in range(7))


def test_slices_of_bounded_size(tmp_path: Path) -> None:
    values = images(11, 500, 500)
    (tmp_path / "x").write_bytes(idx(values))
    slices = list(read_slices(tmp_path / "x", checked_header(tmp_path / "x")))
    assert [start for start, _ in slices] == [0, 4, 8]
    assert all(part.nbytes <= SLICE_BYTES for _, part in slices)
    assert np.array_equal(np.concatenate([part[:, 0] for _, part in slices]), values)


@pytest.mark.parametrize("packed", [False, True])
def test_truncated_at_every_byte(packed: bool, tmp_path: Path) -> None:
    data = idx(images(2, 2, 3))
    data = gzip.compress(data) if packed else data
    path = tmp_path / "x"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(StoreDamagedError, match=r"x is|x ends"):
            whole(path)
        with pytest.raises(StoreDamagedError):
            read_all(IdxSource(path))
    path.write_bytes(data)
    assert np.array_equal(whole(path), images(2, 2, 3))


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 100, b"garbage"])
def test_trailing_bytes(tail: bytes, tmp_path: Path) -> None:
    data = idx(images(2))
    none = idx(images(0))
    for name, content in (("x", data + tail), ("y", gzip.compress(data + tail)), ("v", none + tail)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreDamagedError, match="longer than its header says"):
            whole(tmp_path / name)
    (tmp_path / "w").write_bytes(gzip.compress(none + tail))
    with pytest.raises(StoreDamagedError, match="longer than its header says"):
        IdxSource(tmp_path / "w")
    if tail.strip(b"\0"):
        (tmp_path / "z").write_bytes(gzip.compress(data) + tail)
        with pytest.raises(StoreDamagedError, match="damaged gzip"):
            whole(tmp_path / "z")


@pytest.mark.parametrize("sizes", [(1 << 31, 28, 28), (2**32 - 1,) * 3, (1, 2**32 - 1, 2**32 - 1), (60000, 28, 28)])
@pytest.mark.parametrize("packed", [False, True])
def test_absurd_sizes_allocate_nothing(sizes: tuple[int, int, int], packed: bool, tmp_path: Path) -> None:
    data = struct.pack(">BBBB3I", 0, 0, 8, 3, *sizes) + bytes(100)
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(data) if packed else data)
    tracemalloc.start()
    try:
        with pytest.raises(StoreDamagedError, match="truncated"):
            IdxSource(path)
        with pytest.raises(StoreDamagedError, match="truncated"):
            list(read_slices(path, header_of(data)))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def header_of(data: bytes) -> Any:
    from dlmt_fast.stores.idx_format import Header

    return Header(np.dtype(np.uint8), struct.unpack(">3I", data[4:16]))


@pytest.mark.parametrize("sizes", [(2, 0, 5), (2, 5, 0), (0, 0, 0)])
def test_images_without_pixels(sizes: tuple[int, int, int], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *sizes))
    with pytest.raises(StoreDamagedError, match="claims images of"):
        IdxSource(tmp_path / "x")


@pytest.mark.parametrize("head", [b"\0\0\x08\x01", b"\0\0\x08\x04", b"\0\0\x09\x03", b"\0\0\x0e\x03", b"\0\0\x0b\x03"])
def test_other_types_and_axes_are_refused(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(head + bytes(64))
    with pytest.raises(StoreDamagedError, match="images have type"):
        IdxSource(tmp_path / "x")


@pytest.mark.parametrize("code", [0x0C, 0x0D])
def test_only_bytes_are_transformed(code: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx(np.zeros((1, 2, 2), ">i4"), code))
    with pytest.raises(StoreError, match="images to transform are uint8"):
        IdxSource(tmp_path / "x")


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\0\0\x08", b"\x89PNG", b"\x1f\x8b", b"\x1f\x8b\x08\0", b"\0\0\x08\x07"]
)
def test_what_does_not_look_like_idx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert not looks_like_idx(tmp_path / "x")
    assert not looks_like_idx(tmp_path)
    with pytest.raises(StoreDamagedError):
        IdxSource(tmp_path / "x")


def test_a_folder_of_files(tmp_path: Path) -> None:
    for name, data in {
        "t10k-images-idx3-ubyte": idx(images(3, seed=1)),
        "train-images.idx3-ubyte.gz": gzip.compress(idx(images(4, seed=2))),
        "t10k-labels-idx1-ubyte": idx(np.arange(3, dtype=np.uint8)),
        "readme.txt": b"x",
    }.items():
        (tmp_path / name).write_bytes(data)
    assert looks_like_idx(tmp_path)
    source = IdxSource(tmp_path)
    assert source.images == ["t10k-images-idx3-ubyte", "train-images.idx3-ubyte.gz"]
    assert source.extras == ["t10k-labels-idx1-ubyte"]
    assert "readme.txt" in source.left_alone
    assert [stamp.path for stamp in source.stamps()] == sorted(source.images + source.extras)
    assert [shard.samples for shard in source.shards()] == [range(3), range(3, 7)]
    assert [source.path_of(i) for i in (0, 2, 3, 6)] == [
        "t10k-images-idx3-ubyte#0",
        "t10k-images-idx3-ubyte#2",
        "train-images.idx3-ubyte.gz#0",
        "train-images.idx3-ubyte.gz#3",
    ]
    found = np.stack([image[0] for image in read_all(source).values()])
    assert np.array_equal(found, np.concatenate([images(3, seed=1), images(4, seed=2)]))


def test_an_empty_file_before_a_full_one(tmp_path: Path) -> None:
    for name, count in (("a", 0), ("b", 0), ("c", 5), ("d", 0), ("e", 2)):
        (tmp_path / f"{name}-idx3-ubyte").write_bytes(idx(images(count, seed=count)))
    source = IdxSource(tmp_path)
    found = read_all(source)
    assert sorted(found) == list(range(7))
    assert np.array_equal(np.stack([found[i][0] for i in range(5)]), images(5, seed=5))
    assert [source.path_of(i) for i in (0, 4, 5, 6)] == [
        "c-idx3-ubyte#0",
        "c-idx3-ubyte#4",
        "e-idx3-ubyte#0",
        "e-idx3-ubyte#1",
    ]


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_change_since_the_listing_stops_the_job(name: str, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images(2)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    source = IdxSource(tmp_path)
    os.utime(tmp_path / name, ns=(1, 1))
    with pytest.raises(StoreError, match="changed since the job began"):
        list(source.read(range(2), 1)) if "images" in name else source.read_labels(name)


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        IdxSource(tmp_path / "none")
    with pytest.raises(StoreError, match="holds no images file"):
        IdxSource(tmp_path)


# labels


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_labels_than_of_images(count: int, ending: str, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images(3)))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(images(count)))
    labels = idx(np.zeros(count, np.uint8))
    for name in ("t10k-labels", "other"):  # the first fits its images, the second has none
        (tmp_path / f"{name}-idx1-ubyte{ending}").write_bytes(gzip.compress(labels) if ending else labels)
    assert sum(count for count, _ in IdxSource(tmp_path).survey().shapes.values()) == 3 + count
    (tmp_path / f"train-labels-idx1-ubyte{ending}").write_bytes(gzip.compress(labels) if ending else labels)
    with pytest.raises(StoreDamagedError, match=f"holds {count} labels, and train-images-idx3-ubyte 3 images"):
        IdxSource(tmp_path).survey()


def test_labels_read_back_from_both_forms(tmp_path: Path) -> None:
    data = idx(np.arange(200, dtype=np.uint8))
    path = tmp_path / "x"
    for content in (data, gzip.compress(data)):
        path.write_bytes(content)
        assert read_labels(path) == data
    assert encode_labels(data, "x") == data
    assert gzip.decompress(encode_labels(data, "x.gz")) == data
    assert encode_labels(data, "x.gz")[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08\x01\0\0",
        idx(np.zeros((2, 2), np.uint8)),
        idx(np.zeros(2, ">i4"), 0x0C),
        idx(np.zeros(5, np.uint8)) + b"x",
        idx(np.zeros(5, np.uint8))[:-1],
        b"\0\0\x08\x01\xff\xff\xff\xff" + bytes(9),
        gzip.compress(idx(np.zeros(5, np.uint8)))[:-3],
    ],
)
def test_other_labels_are_damage(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(StoreDamagedError):
        read_labels(tmp_path / "x")


# writers


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("name", ["x-idx3-ubyte", "x-idx3-ubyte.gz"])
def test_written_files_read_back(name: str, dtype: str, tmp_path: Path) -> None:
    values = (np.random.default_rng(1).integers(0, 200, (5, 1, 3, 4))).astype(dtype) * (1 if dtype == "uint8" else 3)
    writer = SlicedWriter(tmp_path, ID, 0, name, idx_file(name, dtype, (5, 3, 4)))
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".tmp-"]
    writer.write(range(2), [], values[:2])
    writer.write(range(2, 5), [], values[2:])
    published = writer.publish()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (published.name, published.count) == (name, 5)
    assert (published.size, published.sha256) == file_digest(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    if name.endswith(".gz"):
        assert data[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
        data = gzip.decompress(data)
    swapped = values.astype(values.dtype.newbyteorder(">"))
    assert data == struct.pack(">BBBB3I", 0, 0, CODES[dtype], 3, 5, 3, 4) + swapped.tobytes()
    assert np.array_equal(whole(tmp_path / name), values[:, 0])


@pytest.mark.parametrize("size", [0, 1, 0xFFFE, 0xFFFF, 0x10000, 200_000])
@pytest.mark.parametrize("level", [0, 6])
def test_gzip(size: int, level: int) -> None:
    content = np.random.default_rng(size).integers(0, 4, size, np.uint8).tobytes()
    packs = []
    for pieces in ([content], [content[:100], content[100:]]):
        parts: list[bytes] = []
        pack(pieces, parts.append, level)
        packs.append(b"".join(parts))
        assert gzip.decompress(packs[-1]) == content
    assert packs[0] == packs[1]
    if level == 0:
        assert len(packs[0]) == 10 + size + 5 * (size // 0xFFFF + 1) + 8


@pytest.mark.parametrize("dtype", ["uint16", "float16", "int64"])
def test_what_idx_cannot_hold(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="IDX files hold uint8, int32 or float32"):
        idx_file("x", dtype, (1, 1, 1))
    assert list(tmp_path.iterdir()) == []


def test_missing_images_are_never_published(tmp_path: Path) -> None:
    writer = SlicedWriter(tmp_path, ID, 0, "x", idx_file("x", "uint8", (5, 3, 4)))
    writer.write(range(4), [], np.zeros((4, 1, 3, 4), np.uint8))
    with pytest.raises(StoreError, match="4 of 5 images"):
        writer.publish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


class Faults(FileOps):
    """The disk, with the call of number `fail_at` failing halfway; removing always works."""

    def __init__(self, fail_at: int) -> None:
        self.fail_at, self.calls = fail_at, list[str]()

    def _run(self, name: str, work: Callable[[], Any], half: Callable[[], object] = lambda: None) -> Any:
        self.calls.append(name)
        if len(self.calls) - 1 == self.fail_at:
            half()
            raise OSError(errno.ENOSPC, f"no space left ({name})")
        return work()

    def create(self, path: Path, mode: int = 0o666) -> int:
        return int(self._run("create", lambda: FileOps.create(self, path, mode)))

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        self._run("write", lambda: FileOps.write(self, descriptor, data))

    def allocate(self, descriptor: int, size: int) -> None:
        self._run("allocate", lambda: FileOps.allocate(self, descriptor, size))

    def fsync(self, descriptor: int) -> None:
        self._run("fsync", lambda: FileOps.fsync(self, descriptor))

    def close(self, descriptor: int) -> None:
        self._run("close", lambda: os.close(descriptor), lambda: os.close(descriptor))

    def rename(self, old: Path, new: Path) -> None:
        self._run("rename", lambda: FileOps.rename(self, old, new))

    def fsync_directory(self, path: Path) -> None:
        self._run("fsync_directory", lambda: FileOps.fsync_directory(self, path))


def open_descriptors() -> int:
    gc.collect()  # what earlier tests left open in reference cycles
    return len(os.listdir("/proc/self/fd"))


def write_all(root: Path, name: str, ops: FileOps) -> None:
    writer = SlicedWriter(root, ID, 0, name, idx_file(name, "uint8", (2, 3, 4)), ops)
    try:
        writer.write(range(2), [], np.zeros((2, 1, 3, 4), np.uint8))
        writer.publish()
    except BaseException:
        writer.abort()
        raise


@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_a_failure_at_any_step_leaves_no_file(name: str, tmp_path: Path) -> None:
    failed = []
    before = open_descriptors() if os.path.isdir("/proc/self/fd") else None
    for step in itertools.count():
        root = tmp_path / str(step)
        root.mkdir()
        ops = Faults(step)
        try:
            write_all(root, name, ops)
        except OSError:
            failed.append(ops.calls[step])
            assert list(root.iterdir()) == [], f"after a failure of step {step} ({ops.calls[step]})"
            continue
        assert [path.name for path in root.iterdir()] == [name]
        break
    assert set(failed) == {"create", "write", "allocate", "fsync", "close", "rename", "fsync_directory"}
    if before is not None:
        assert open_descriptors() == before
    assert ops.calls[-4:] == ["fsync", "close", "rename", "fsync_directory"]
