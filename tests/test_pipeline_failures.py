"""Damage, failures and replacements: everything is found, and nothing half-done stays."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import DlmtError, ImageError, ParameterError, StoreDamagedError, StoreError, UsageError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.target import Target
from dlmt_fast.stores import publish
from dlmt_fast.stores.contract import Published
from dlmt_fast.stores.manifest import Manifest, read_manifest

SCHEME = dlmt.DLMT("mat_mmt", max_v_add=256, max_v_mul=10)


class Place:
    """A source, a key and an owner's folder in one directory."""

    def __init__(self, root: Path, key: dlmt.Key, single: bool = False) -> None:
        self.root, self.key = root, key
        self.source, self.store, self.back = root / "source", root / "out" / "store", root / "out" / "back"
        if single:
            self.source /= "train-images-idx3-ubyte"

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, **options: Any) -> Summary:
        return encrypt_store(self.source, self.store, self.key, SCHEME, self.owner, JobOptions(**options))

    def decrypt(self, target: Path | None = None, **options: Any) -> Summary:
        return decrypt_store(self.store, target or self.back, self.key, self.owner, **options)

    def verify(self) -> Summary:
        verify_store(self.store)
        return verify_store(self.store, self.key, self.owner)


def photo(path: Path, seed: int = 0, shape: tuple[int, ...] = (4, 5, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)


def photos(root: Path) -> None:
    for seed, name in enumerate(("cats/a.png", "cats/b.png", "c.png")):
        photo(root / name, seed)


def mnist(root: Path) -> None:
    root.mkdir()
    values = np.random.default_rng(0).integers(0, 256, 60, np.uint8).tobytes()
    images = struct.pack(">BBBB3I", 0, 0, 8, 3, 3, 4, 5) + values
    (root / "train-images-idx3-ubyte").write_bytes(images)
    (root / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"012"))


KINDS = {"folder": photos, "idx": mnist, "single": mnist}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, key: dlmt.Key) -> Place:
    KINDS[request.param](tmp_path / "source")
    return Place(tmp_path, key, request.param == "single")


@pytest.fixture
def folder(tmp_path: Path, key: dlmt.Key) -> Place:
    photos(tmp_path / "source")
    return Place(tmp_path, key)


def tree(root: Path) -> dict[str, bytes | None]:
    """Files with their bytes; folders with None."""
    return {p.relative_to(root).as_posix(): None if p.is_dir() else p.read_bytes() for p in root.rglob("*")}


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


# damage


def damages(data: bytes) -> dict[str, bytes | None]:
    middle, last = len(data) // 2, len(data) - 1
    found: dict[str, bytes | None] = {"gone": None, "empty": b"", "cut": data[:-1], "longer": data + b"\0"}
    for at in (0, middle, last):
        found[f"flip {at}"] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    return found


@pytest.mark.parametrize("options", [{}, {"normalize": "none"}], ids=str)
def test_every_damage_is_found(place: Place, options: dict[str, Any]) -> None:
    place.encrypt(**options)
    place.decrypt()
    whole = tree(place.back)
    shutil.rmtree(place.back) if place.back.is_dir() else place.back.unlink()
    before = tree(place.root / "out")
    found = files(place.root / "out")
    assert len(found) == {"folder": 5, "idx": 4 if place.source.is_dir() else 2}[read_manifest(place.store).kind]
    for path in found:
        original = path.read_bytes()
        for what, data in damages(original).items():
            path.unlink() if data is None else path.write_bytes(data)
            with pytest.raises(StoreError):
                verify_store(place.store)
            with pytest.raises(DlmtError):
                place.decrypt()
            left = {name for name in tree(place.back) if not name.startswith(".dlmt-decrypt")}
            path.write_bytes(original)
            if left:  # one of several shards was whole, and counts
                assert ".dlmt-job" in left, (path.name, what)
                assert left - {".dlmt-job"} < set(whole)
                assert "of 2 shards were done already" in place.decrypt(resume=True).notes[0]
                assert tree(place.back) == whole, (path.name, what)
                shutil.rmtree(place.back)
        path.unlink()
        path.mkdir()
        with pytest.raises((DlmtError, IsADirectoryError)):
            verify_store(place.store)
        with pytest.raises((DlmtError, IsADirectoryError)):
            place.decrypt()
        shutil.rmtree(place.back, ignore_errors=True)
        path.rmdir()
        path.write_bytes(original)
    assert tree(place.root / "out") == before
    place.verify()
    place.decrypt()


@pytest.mark.parametrize("name", ["extra.png", "cats/extra.png", ".DS_Store", ".dlmt-job", ".tmp-0-0-0", "new/extra"])
def test_extra_files_are_found(folder: Place, name: str) -> None:
    folder.encrypt()
    path = folder.store / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(StoreDamagedError, match="1 files that its manifest does not name, first"):
        verify_store(folder.store)


def test_swapped_files_are_found(folder: Place) -> None:
    folder.encrypt()
    one, two = sorted((folder.store / "cats").iterdir())
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(StoreDamagedError, match="is damaged"):
        verify_store(folder.store)


@pytest.mark.parametrize("name", ["journal-00000.json", "ledger-00000.bin"])
def test_a_damaged_owners_folder_is_found(folder: Place, name: str) -> None:
    store_id = folder.encrypt(normalize="minmax").store_id
    path = folder.owner(store_id) / name
    original = path.read_bytes()
    for at in range(0, len(original), 1 if name.startswith("journal") else 37):
        for mask in (1, 16, 0x80):
            path.write_bytes(original[:at] + bytes([original[at] ^ mask]) + original[at + 1 :])
            with pytest.raises(StoreDamagedError):
                folder.verify()
    for data in (b"", original[:-1], b"{}", b"[]", b'{"sha256": "x"}', b'{"a":1.5,"sha256":"x"}'):
        path.write_bytes(data)
        with pytest.raises(StoreDamagedError):
            folder.verify()


def reforge(place: Place, **changes: Any) -> None:
    """A manifest as someone without the key could write it: other public fields, the checksum right."""
    manifest = read_manifest(place.store)
    path = place.store / "dlmt-store.json" if place.store.is_dir() else Path(f"{place.store}.dlmt-store.json")
    path.write_bytes(Manifest(**(vars(manifest) | changes)).encode())


@pytest.mark.parametrize(
    "changes",
    [{"shape": (3, 5, 4)}, {"shape": (1, 4, 5)}, {"dtype": "int32"}, {"dtype": "float16"}, {"kind": "idx"}],
    ids=str,
)
def test_a_forged_folder_manifest_is_refused(folder: Place, changes: dict[str, Any]) -> None:
    folder.encrypt()
    reforge(folder, **changes)
    with pytest.raises(DlmtError):
        folder.decrypt()
    assert not folder.back.exists()


@pytest.mark.parametrize(
    "changes", [{"shape": (1, 5, 4)}, {"dtype": "int32"}, {"kind": "folder"}, {"count": 8}], ids=str
)
def test_a_forged_idx_manifest_is_refused(changes: dict[str, Any], tmp_path: Path, key: dlmt.Key) -> None:
    mnist(tmp_path / "source")
    place = Place(tmp_path, key)
    place.encrypt()
    reforge(place, **changes)
    with pytest.raises(DlmtError):
        place.verify()
    if "count" not in changes:
        with pytest.raises(DlmtError):
            place.decrypt()
        assert not place.back.exists()


def test_a_forged_count_is_refused(folder: Place) -> None:
    folder.encrypt()
    shard = read_manifest(folder.store).shards[0]
    reforge(folder, shards=(Published(shard.name, 2, shard.size, shard.sha256),), count=2)
    for work in (folder.verify, folder.decrypt):
        with pytest.raises(StoreDamagedError, match="lists 3 files, the manifest says 2"):
            work()
    reforge(folder, count=4)
    with pytest.raises(StoreDamagedError, match="another number of images"):
        folder.verify()


# failures


def failing(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Lets the call of number `step` fail; gives the calls so far. Removing always works."""
    calls: list[str] = []
    lock = threading.Lock()  # a shard's files are written in several threads

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(publish.FileOps, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                fails = len(calls) == step
                calls.append(name)
            if fails:
                if name == "close":
                    real(publish.OS, *args)
                if name == "write":
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(errno.ENOSPC, f"no space left ({name})")
            return real(publish.OS, *args, **kwargs)

        return call

    for name in ("create", "write", "allocate", "fsync", "close", "rename", "link", "mkdir", "fsync_directory"):
        monkeypatch.setattr(publish.OS, name, wrap(name), raising=True)
    return calls


def fail_everywhere(work: Callable[[], object], check: Callable[[str], None]) -> int:
    """Run `work` with each of its steps failing in turn, until it succeeds. Gives the number of steps."""
    for step in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            calls = failing(patch, step)
            try:
                work()
            except OSError as error:
                failure = error
            else:
                return len(calls)
        if failure.errno != errno.ENOSPC:
            raise failure
        check(f"step {step}, {calls[step]}")
    raise AssertionError


def test_encrypting_fails_resumably_at_every_step(place: Place) -> None:
    """Before the first shard counts the target is as it was; later it is marked, and resuming gives the same store."""
    place.encrypt(normalize="minmax")
    whole = {name: data for name, data in tree(place.root / "out").items() if not name.endswith("dlmt-store.json")}
    clean = 0

    def remove() -> None:
        for name in ("out", "owner"):
            shutil.rmtree(place.root / name)

    def check(step: str) -> None:
        nonlocal clean
        left = tree(place.root / "out") if (place.root / "out").exists() else {}
        clean += not left
        assert not [name for name in left if ".tmp-" in name], step
        assert [name for name in left if name.endswith("dlmt-job")] or not left or left == left | whole
        place.encrypt(normalize="minmax", resume=True)
        found = tree(place.root / "out")
        assert {name: data for name, data in found.items() if not name.endswith("dlmt-store.json")} == whole, step
        remove()

    remove()
    assert fail_everywhere(lambda: place.encrypt(normalize="minmax"), check) > 20
    assert clean > 10
    place.verify()
    assert not [path for path in files(place.root) if path.name.startswith((".tmp-", ".dlmt-job"))]
    place.decrypt()


def test_encrypting_into_an_empty_folder_leaves_it_empty_until_a_shard_counts(folder: Place) -> None:
    folder.store.mkdir(parents=True)
    left = []

    def check(step: str) -> None:
        left.append(sorted(path.name for path in folder.store.iterdir()))
        if left[-1]:
            folder.encrypt(resume=True)
            folder.verify()
            shutil.rmtree(folder.store)
            folder.store.mkdir()

    fail_everywhere(lambda: folder.encrypt(), check)
    assert left[:10] == [[]] * 10
    folder.verify()


def test_decrypting_fails_resumably_at_every_step(place: Place) -> None:
    """Before the first shard counts the target is as it was; later it is marked, and resuming gives the same files."""
    place.encrypt(normalize="none")
    before = tree(place.root)
    target = place.root / "new" / "back"
    place.decrypt(target)
    whole = tree(place.root)
    shutil.rmtree(target.parent)
    clean = resumed = 0

    def check(step: str) -> None:
        nonlocal clean, resumed
        left = tree(place.root)
        assert not [name for name in left if ".tmp-" in name], step
        if left == before:
            clean += 1
        elif [name for name in left if name.endswith("dlmt-job")]:
            resumed += 1
            place.decrypt(target, resume=True)
            assert tree(place.root) == whole, step
        else:
            assert left == whole, step  # the marker is gone, and its folder was not synced
        shutil.rmtree(target.parent, ignore_errors=True)

    assert fail_everywhere(lambda: place.decrypt(target), check) > 20
    assert tree(place.root) == whole
    assert clean > 10
    assert resumed > 5
    assert place.verify().outputs == read_manifest(place.store).count


def test_a_failure_while_decoding_leaves_nothing(folder: Place) -> None:
    (folder.source / "zz.png").write_bytes((folder.source / "c.png").read_bytes()[:-30])
    with pytest.raises(ImageError, match=r"zz\.png"):
        folder.encrypt()
    assert not (folder.root / "out").exists()


# taken targets


def test_a_taken_target_is_refused(place: Place) -> None:
    place.encrypt()
    before = tree(place.root / "out")
    with pytest.raises(UsageError, match="not empty"):
        place.encrypt()
    with pytest.raises(UsageError, match="not empty"):
        place.decrypt(place.root / "owner" if place.store.is_dir() else place.source)
    assert tree(place.root / "out") == before


def test_a_running_job_is_left_alone(place: Place) -> None:
    single = not place.source.is_dir()
    marker = place.store.with_name(".store.dlmt-job") if single else place.store / ".dlmt-job"
    marker.parent.mkdir(parents=True)
    marker.write_bytes(b"someone")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="marked by a job that runs or was stopped or killed"):
            place.encrypt(overwrite=overwrite)
    assert tree(place.root / "out") == {"store": None, "store/.dlmt-job": b"someone"} or single
    assert marker.read_bytes() == b"someone"


def test_a_job_that_starts_in_between_is_left_alone(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlmt_fast.pipeline import planned

    real = planned.job_record

    def start_another(*args: Any) -> Any:
        folder.store.mkdir(parents=True)
        (folder.store / ".dlmt-job").write_bytes(b"someone")
        return real(*args)

    monkeypatch.setattr(planned, "job_record", start_another)
    with pytest.raises(StoreError, match="marked by a job"):
        folder.encrypt()
    assert tree(folder.store) == {".dlmt-job": b"someone"}


@pytest.mark.parametrize("where", ["itself", "inside", "around", "by a link"])
def test_source_and_target_stay_apart(folder: Place, where: str) -> None:
    if where == "by a link":
        (folder.root / "link").symlink_to(folder.source, target_is_directory=True)
    folder.store = {
        "itself": folder.source,
        "inside": folder.source / "new",
        "around": folder.root,
        "by a link": folder.root / "link" / "new",
    }[where]
    with pytest.raises(UsageError, match="lie inside each other"):
        folder.encrypt(overwrite=True)
    assert len(files(folder.source)) == 3


def test_a_single_file_needs_a_file_name(tmp_path: Path, key: dlmt.Key) -> None:
    mnist(tmp_path / "source")
    place = Place(tmp_path, key, single=True)
    place.store.mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is a folder"):
            place.encrypt(overwrite=overwrite)


# --overwrite


def test_overwrite_replaces_a_store(place: Place) -> None:
    first = place.encrypt(normalize="none").store_id
    assert place.encrypt(overwrite=True).store_id != first
    place.verify()
    place.decrypt()
    with pytest.raises(UsageError):
        place.encrypt()


def test_overwrite_removes_old_files_and_empty_classes_but_nothing_unknown(folder: Place) -> None:
    folder.encrypt()
    old = {path.name for path in files(folder.store)}
    for name in ("mine.txt", "cats/mine.txt", "mine/mine.txt"):
        (folder.store / name).parent.mkdir(exist_ok=True)
        (folder.store / name).write_text("mine")
    (folder.source / "cats" / "a.png").rename(folder.source / "d.png")
    (folder.source / "cats").rename(folder.source / "dogs")
    folder.encrypt(overwrite=True)
    left = {path.relative_to(folder.store).as_posix() for path in files(folder.store)}
    assert {"mine.txt", "cats/mine.txt", "mine/mine.txt"} < left
    assert {name.rpartition("/")[2] for name in left} & old == {"dlmt-store.json", "dlmt-shard-00000.txt"}
    for name in ("mine.txt", "cats/mine.txt", "mine/mine.txt"):
        (folder.store / name).unlink()
    folder.verify()
    (folder.store / "mine").rmdir()
    (folder.store / "cats").rmdir()
    (folder.source / "dogs").rename(folder.source / "birds")
    folder.encrypt(overwrite=True)
    assert {path.name for path in folder.store.iterdir() if path.is_dir()} == {"birds"}
    folder.verify()


def test_overwrite_never_writes_over_an_unknown_file(folder: Place) -> None:
    folder.encrypt(names="keep")
    (folder.store / "mine.png").write_bytes(b"mine")
    photo(folder.source / "mine.png", 9)
    before = tree(folder.store)
    with pytest.raises(StoreError, match=r"mine\.png is in the way"):
        folder.encrypt(names="keep", overwrite=True)
    assert tree(folder.store) == before


@pytest.mark.parametrize("data", [b"", b'["a.png"', b"\xff", b"{}", b"null", b"[1]"])
def test_a_damaged_list_of_the_old_store_is_told(data: bytes, folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it listed is told by nothing else; what the message says to do ends with a whole store."""

    def full(place: Any, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    folder.encrypt(normalize="none")
    with monkeypatch.context() as patch:
        patch.setattr(Target, "keep", full)
        with pytest.raises(OSError, match="no space left"):
            folder.encrypt(overwrite=True)
    (path,) = (folder.root / "owner").rglob("replaced.json")
    path.write_bytes(data)
    before = tree(folder.root)
    with pytest.raises(StoreDamagedError, match=r"replaced\.json is damaged: .*; remove .* the same command without"):
        folder.encrypt(resume=True)
    assert {name: found for name, found in tree(folder.root).items() if "locks" not in name} == {
        name: found for name, found in before.items() if "locks" not in name
    }
    shutil.rmtree(folder.store)
    folder.encrypt(overwrite=True)
    folder.verify()
    assert not path.exists()


def test_a_failed_overwrite_leaves_the_old_store(folder: Place) -> None:
    folder.encrypt()
    before = tree(folder.store)
    (folder.source / "zz.png").write_bytes((folder.source / "c.png").read_bytes()[:-30])
    with pytest.raises(ImageError):
        folder.encrypt(overwrite=True)
    assert tree(folder.store) == before
    folder.verify()


@pytest.mark.parametrize("what", ["files", "unfinished", "damaged", "file"])
def test_overwrite_is_refused_on_what_is_no_store(folder: Place, what: str) -> None:
    if what == "file":
        folder.store.parent.mkdir()
        folder.store.write_bytes(b"x")
    elif what == "files":
        photo(folder.store / "mine.png")
    else:
        folder.encrypt()
        path = folder.store / "dlmt-store.json"
        path.unlink() if what == "unfinished" else path.write_bytes(path.read_bytes()[:-9])
    before = tree(folder.root / "out")
    with pytest.raises(StoreError, match="not a finished store, so --overwrite will not delete it"):
        folder.encrypt(overwrite=True)
    assert tree(folder.root / "out") == before


@pytest.mark.parametrize(
    "options",
    [{"size": (8, 8)}, {"fit": "pad"}, {"channels": 3}, {"ignore": ("*.x",)}, {"names": "keep"}, {"classes": "index"}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_idx_files_cannot_serve_are_refused(
    tmp_path: Path, key: dlmt.Key, options: dict[str, Any]
) -> None:
    mnist(tmp_path / "source")
    place = Place(tmp_path, key)
    with pytest.raises(ParameterError, match=f"--{next(iter(options))} does not apply to IDX files"):
        place.encrypt(**options)
    assert not place.store.exists()


def test_a_manifest_is_public_and_the_journal_is_not(folder: Place) -> None:
    store_id = folder.encrypt().store_id
    journal = json.loads((folder.owner(store_id) / "journal-00000.json").read_text())
    shard = read_manifest(folder.store).shards[0]
    assert (journal["outputs"], journal["output_sha256"], journal["size"]) == (shard.count, shard.sha256, shard.size)
