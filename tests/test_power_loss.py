"""A job survives a power cut at any moment: a disk that forgets what was not synced, run at every step of a job."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import threading
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import StoreError
from dlmt_fast.pipeline import JobOptions, decrypt_store, encrypt_store, verify_store
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import FileOps

SCHEME = dlmt.DLMT("mat_mmt")
LOSSES = ("bytes and names", "bytes", "nothing")  # the last is a kill: the system goes on and writes all back


def long(*values: str) -> Any:
    """A case of the long run."""
    return pytest.param(*values, marks=pytest.mark.long)


class PowerLoss(BaseException):
    """The machine is off. No clean-up of the job catches it or does anything after it."""


@dataclass
class Node:
    """A file or folder: what is on the disk for sure."""

    folder: bool
    data: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    now: dict[str, Node] = field(default_factory=dict)  # a folder's entries as the running system sees them


class Disk(FileOps):
    """Works on real files under `root` and keeps beside them what a power cut would leave.

    Args:
        root: holds everything that the job writes.
        last: how many operations succeed; the power fails at the next.
    """

    def __init__(self, root: Path, last: int = 1 << 30) -> None:
        self.root, self.last, self.steps, self.off = root, last, 0, False
        self._lock = threading.Lock()  # a shard's files are written in several threads
        self._open: dict[int, Node] = {}
        self._tree = self._as_it_is(root)

    def _as_it_is(self, path: Path) -> Node:
        if not path.is_dir():
            return Node(False, path.read_bytes())
        names = {child.name: self._as_it_is(child) for child in path.iterdir() if child.name != "locks"}
        return Node(True, names=dict(names), now=names)

    def _node(self, path: Path) -> Node:
        node = self._tree
        for part in path.relative_to(self.root).parts:
            node = node.now[part]
        return node

    def _step(self) -> None:
        with self._lock:
            if self.off or self.steps == self.last:
                self.off = True
                raise PowerLoss
            self.steps += 1

    def create(self, path: Path, mode: int = 0o666) -> int:
        self._step()
        descriptor = super().create(path, mode)
        self._open[descriptor] = self._node(path.parent).now[path.name] = Node(False)
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        self._step()
        super().write(descriptor, data)

    def allocate(self, descriptor: int, size: int) -> None:
        self._step()
        super().allocate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        self._step()
        self._open[descriptor].data = os.pread(descriptor, 1 << 24, 0)

    def datasync(self, descriptor: int) -> None:
        self.fsync(descriptor)

    def reopen(self, path: Path) -> int:
        self._step()
        descriptor = super().reopen(path)
        self._open[descriptor] = self._node(path)
        return descriptor

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        self._step()

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)
        self._node(new.parent).now[new.name] = self._node(old.parent).now.pop(old.name)

    def link(self, old: Path, new: Path) -> None:
        self._step()
        super().link(old, new)
        self._node(new.parent).now[new.name] = self._node(old)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
        with suppress(KeyError):  # its folder is gone too
            self._node(path.parent).now.pop(path.name, None)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._step()
        super().mkdir(path, mode)
        self._node(path.parent).now[path.name] = Node(True)

    def rmdir(self, path: Path) -> None:
        self._step()
        super().rmdir(path)
        del self._node(path.parent).now[path.name]

    def fsync_directory(self, path: Path) -> None:
        self._step()
        node = self._node(path)
        node.names = dict(node.now)

    def restart(self, lost: str) -> None:
        """Make the files those that are found after the cut."""
        if lost != "nothing":
            shutil.rmtree(self.root)
            self._write(self._tree, self.root, lost == "bytes")

    def _write(self, node: Node, path: Path, names_survive: bool) -> None:
        if not node.folder:
            path.write_bytes(node.data)
            return
        path.mkdir()
        for name, child in (node.now if names_survive else node.names).items():
            self._write(child, path / name, names_survive)


class Place:
    """A source of two classes in three shards, beside a folder for all that the job writes."""

    def __init__(self, root: Path, key: dlmt.Key, kind: str = "folder") -> None:
        self.kind = kind
        self.key, self.source, self.disk = key, root / "source", root / "disk"
        rng = np.random.default_rng(0)
        for name in ("a/1.png", "a/2.png", "a/3.png", "b/4.png", "b/5.png"):
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_bytes(encode_png(rng.integers(0, 256, (1, 2, 3), np.uint8)))
        self.disk.mkdir()

    def encrypt(self, ops: FileOps, normalize: str = "minmax", **options: bool) -> None:
        chosen = JobOptions(normalize=normalize, shard_size=2, **options)
        store = self.disk / "new" / "store"
        encrypt_store(self.source, store, self.key, SCHEME, self.owner, chosen, ops=ops, target_named=self.kind)

    def owner(self, store_id: str) -> Path:
        return self.disk / "own" / store_id

    def verify(self) -> None:
        verify_store(self.disk / "new" / "store", self.key, self.owner)

    def found(self) -> dict[str, bytes]:
        """Every file. Those with fresh nonces (manifest, ledgers) by name alone; `verify` opens them."""
        sealed = ("dlmt-store.json", ".bin")
        paths = [path for path in self.disk.rglob("*") if path.is_file() and path.parent.name != "locks"]
        return {str(path): b"" if path.name.endswith(sealed) else path.read_bytes() for path in paths}

    def folders(self) -> list[Path]:
        """Those of the store."""
        return sorted(path for path in (self.disk / "new").rglob("*") if path.is_dir())


def steps_of(place: Place, **options: bool) -> tuple[int, dict[str, bytes]]:
    disk = Disk(place.disk)
    place.encrypt(disk, **options)
    return disk.steps, place.found()


@pytest.mark.parametrize("lost", LOSSES)
@pytest.mark.parametrize(("kind", "shards"), [("folder", "dlmt-shard-"), ("webdataset", ".tar")])
def test_a_cut_at_every_step(lost: str, kind: str, shards: str, tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, kind)
    steps, whole = steps_of(place)
    assert steps > 100
    assert sum(shards in name for name in whole) == 3
    for last in range(steps):
        shutil.rmtree(place.disk)
        place.disk.mkdir()
        disk = Disk(place.disk, last)
        with pytest.raises(PowerLoss):
            place.encrypt(disk)
        disk.restart(lost)
        place.encrypt(Disk(place.disk), resume=True)
        assert place.found() == whole, f"after a cut at step {last} of {steps}"
        place.verify()


@pytest.mark.parametrize("lost", LOSSES[:2])
@pytest.mark.parametrize(("kind", "package", "shards"), [("parquet", "pyarrow", ".parquet"), ("zarr", "zarr", "/c.")])
def test_a_cut_at_every_step_of_columns(
    kind: str, package: str, shards: str, lost: str, tmp_path: Path, key: dlmt.Key
) -> None:
    pytest.importorskip(package)
    place = Place(tmp_path, key, kind)
    steps, whole = steps_of(place)
    assert sum(shards in name for name in whole) == (3 if kind == "parquet" else 4)  # and the labels
    for last in range(steps):
        shutil.rmtree(place.disk)
        place.disk.mkdir()
        disk = Disk(place.disk, last)
        with pytest.raises(PowerLoss):
            place.encrypt(disk)
        disk.restart(lost)
        place.encrypt(Disk(place.disk), resume=True)
        assert place.found() == whole, f"after a cut at step {last} of {steps}"
        place.verify()


@pytest.mark.parametrize(
    ("kind", "lost"),
    [("npy", LOSSES[0]), ("idx.gz", LOSSES[1])] + [long(k, lost) for k in ("npy", "idx.gz") for lost in LOSSES],
)
def test_a_cut_at_every_step_of_segments(kind: str, lost: str, tmp_path: Path, key: dlmt.Key) -> None:
    """One file in three segments: what counts is not lost, and nothing is left beside it."""
    disk, pixels = tmp_path / "disk", np.random.default_rng(0).integers(0, 256, (6, 2, 3), np.uint8)
    source = tmp_path / ("a.npy" if kind == "npy" else "a-idx3-ubyte.gz")
    if kind == "npy":
        np.save(source, pixels)
    else:
        source.write_bytes(gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes()))

    def start() -> None:
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir()

    def encrypt(ops: FileOps, resume: bool) -> None:
        options = JobOptions(normalize="minmax", segment_bytes=12, resume=resume)
        encrypt_store(source, disk / "new" / source.name, key, SCHEME, owner, options, ops=ops)

    def owner(store_id: str) -> Path:
        return disk / "own"

    def found() -> dict[str, bytes]:
        sealed = ("dlmt-store.json", ".bin")
        paths = [path for path in disk.rglob("*") if path.is_file() and path.parent.name != "locks"]
        return {str(path): b"" if path.name.endswith(sealed) else path.read_bytes() for path in paths}

    start()
    ops = Disk(disk)
    encrypt(ops, False)
    steps, whole = ops.steps, found()
    assert not [name for name in whole if ".part-" in name or "segment-" in name]
    entered = 0
    for last in range(steps):
        start()
        ops = Disk(disk, last)
        with pytest.raises(PowerLoss):
            encrypt(ops, False)
        ops.restart(lost)
        entered += len(list(disk.glob("own/segment-*")))
        encrypt(Disk(disk), True)
        assert found() == whole, f"after a cut at step {last} of {steps}"
        verify_store(disk / "new" / source.name, key, owner)
    assert entered > steps


@pytest.mark.parametrize("lost", [LOSSES[0], long(LOSSES[1]), long(LOSSES[2])])
def test_a_cut_at_every_step_of_a_decrypt_in_segments(lost: str, tmp_path: Path, key: dlmt.Key) -> None:
    disk, pixels = tmp_path / "disk", np.random.default_rng(0).integers(0, 256, (6, 2, 3), np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    encrypt_store(tmp_path / "a.npy", tmp_path / "b.npy", key, SCHEME, lambda _: tmp_path / "own")

    def start() -> None:
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir()

    def decrypt(ops: FileOps, resume: bool) -> None:
        back, owner = disk / "new" / "c.npy", lambda _: tmp_path / "own"
        decrypt_store(tmp_path / "b.npy", back, key, owner, resume=resume, segment_bytes=12, ops=ops)

    def left() -> list[str]:
        return [path.name for path in disk.rglob("*") if path.parent.name != "locks"]

    start()
    ops = Disk(disk)
    decrypt(ops, False)
    steps, whole = ops.steps, (disk / "new" / "c.npy").read_bytes()
    assert sorted(left()) == ["c.npy", "new"]
    entered = 0
    for last in range(steps):
        start()
        ops = Disk(disk, last)
        with pytest.raises(PowerLoss):
            decrypt(ops, False)
        ops.restart(lost)
        entered += len(list(disk.glob("new/.*/segment-*")))
        if sorted(left()) != ["c.npy", "new"]:
            decrypt(Disk(disk), True)
        assert sorted(left()) == ["c.npy", "new"], f"after a cut at step {last} of {steps}"
        assert (disk / "new" / "c.npy").read_bytes() == whole
    assert entered > steps / 2


@pytest.mark.parametrize("lost", LOSSES)
def test_cuts_while_it_resumes(lost: str, tmp_path: Path, key: dlmt.Key) -> None:
    """Cut again and again, each time a little after what was reached, until a run ends."""
    place = Place(tmp_path, key)
    _, whole = steps_of(place)
    for stride in (23, 31, 47):
        shutil.rmtree(place.disk)
        place.disk.mkdir()
        cuts = 0
        while True:
            disk = Disk(place.disk, stride + cuts)
            try:
                place.encrypt(disk, resume=True)
                break
            except PowerLoss:
                disk.restart(lost)
                cuts += 1
        assert cuts > 2
        assert place.found() == whole
        place.verify()


@pytest.mark.parametrize("lost", LOSSES)
def test_a_cut_while_an_old_store_is_replaced(lost: str, tmp_path: Path, key: dlmt.Key) -> None:
    """Until the first shard is visible the old store is whole; resuming removes the old files and no unknown one. A
    class of the old store is no more. Cut after the last step, all that is done stays done."""
    place = Place(tmp_path, key)
    gone = place.source / "c" / "6.png"
    gone.parent.mkdir()
    shutil.copy(place.source / "b" / "5.png", gone)
    place.encrypt(FileOps(), "none")
    place.verify()
    shutil.rmtree(gone.parent)
    shutil.copytree(place.disk, tmp_path / "before")
    steps, whole = steps_of(place, overwrite=True)
    folders = place.folders()
    for last in (*range(0, steps - 20, 3), *range(steps - 20, steps + 1)):
        shutil.rmtree(place.disk)
        shutil.copytree(tmp_path / "before", place.disk)
        disk = Disk(place.disk, last)
        with pytest.raises(PowerLoss) if last < steps else nullcontext():
            place.encrypt(disk, overwrite=True)
        disk.restart(lost)
        if last < steps:
            try:
                place.encrypt(Disk(place.disk), resume=True)
            except StoreError:  # another job's finished store: cut before the marker was whole, so nothing was begun
                place.encrypt(Disk(place.disk), overwrite=True)
        assert place.found() == whole, f"after a cut at step {last} of {steps}"
        assert place.folders() == folders, f"after a cut at step {last} of {steps}"
        place.verify()


@pytest.mark.parametrize(
    ("kind", "lost"),
    [("folder", LOSSES[0]), ("webdataset", LOSSES[1])]
    + [long(k, lost) for k in ("folder", "webdataset") for lost in LOSSES],
)
def test_a_cut_at_every_step_of_a_decrypt(lost: str, kind: str, tmp_path: Path, key: dlmt.Key) -> None:
    """Also while it clears up: in the end nothing but the images is there."""
    place = Place(tmp_path, key, kind)
    place.encrypt(FileOps())
    store = tmp_path / "store"
    (place.disk / "new" / "store").rename(store)
    owner = tmp_path / "owner"
    (place.disk / "own").rename(owner)

    def decrypt(ops: FileOps, resume: bool) -> None:
        back = place.disk / "new" / "back"
        decrypt_store(store, back, key, lambda store_id: owner / store_id, resume=resume, ops=ops)

    def start() -> None:
        shutil.rmtree(place.disk)
        place.disk.mkdir()

    start()
    disk = Disk(place.disk)
    decrypt(disk, False)
    steps, whole = disk.steps, place.found()
    assert steps > 70
    assert len(whole) == (5 if kind == "folder" else 3)
    for last in range(steps):
        start()
        disk = Disk(place.disk, last)
        with pytest.raises(PowerLoss):
            decrypt(disk, False)
        disk.restart(lost)
        if list(place.disk.rglob(".dlmt*")) or place.found() != whole:  # else it had come to its end
            decrypt(Disk(place.disk), True)
        assert place.found() == whole, f"after a cut at step {last} of {steps}"
        assert not list(place.disk.rglob(".*")), f"after a cut at step {last} of {steps}"
