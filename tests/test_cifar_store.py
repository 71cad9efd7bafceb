"""CIFAR as a source: each form, damage, and pickles that want more than these files need."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import DlmtError, ParameterError, StoreDamagedError, StoreError
from dlmt_fast.pipeline import JobOptions, decrypt_store, encrypt_store, verify_store
from dlmt_fast.stores.cifar import CifarSource, looks_like_cifar
from dlmt_fast.stores.contract import Batch
from dlmt_fast.stores.restricted_pickle import load

SCHEME = dlmt.DLMT("mat_mmt", max_v_add=256, max_v_mul=10)
COUNTS = {"train": 15, "test": 4}
FORMS = ["10-py", "10-bin", "100-py", "100-bin"]


def python2(data: np.ndarray[Any, Any], fields: dict[str, Any]) -> bytes:
    """A file as Python 2 wrote the published ones: protocol 2, byte strings."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    parts = [b"\x80\x02}q\x01("]
    for name, value in fields.items():
        parts.append(text(name.encode()))
        if isinstance(value, str):
            parts.append(text(value.encode()))
        else:
            items = [b"K" + bytes([v]) if isinstance(v, int) else text(v.encode()) for v in value]
            parts.append(b"](" + b"".join(items) + b"e")
    parts.append(text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b"))
    parts.append(b"\x87R(K\x01M" + struct.pack("<H", len(data)) + b"M\x00\x0c\x86cnumpy\ndtype\n" + text(b"u1"))
    parts.append(b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
    parts.append(b"T" + struct.pack("<I", data.size) + data.tobytes() + b"tbu.")
    return b"".join(parts)


def made(root: Path, form: str, python3: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Writes a small data set of one form; gives the arrays that its store should hold, before the transform."""
    root.mkdir()
    rng = np.random.default_rng(7)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for split, count in COUNTS.items():
        images = rng.integers(0, 256, (count, 3072), np.uint8)
        fine = rng.integers(0, 10 if form.startswith("10-") else 100, count, np.uint8)
        coarse = fine // 5
        arrays[f"{split}-images.npy"], arrays[f"{split}-labels.npy"] = images.reshape(-1, 3, 32, 32), fine
        names = ["train"] if split == "train" else ["test"]
        if form.startswith("10-"):
            names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        else:
            arrays[f"{split}-coarse-labels.npy"] = coarse
        each = count // len(names)
        for i, name in enumerate(names):
            part = slice(i * each, (i + 1) * each)
            labels = {"labels": fine[part].tolist()}
            if form.startswith("100"):
                labels = {"fine_labels": fine[part].tolist(), "coarse_labels": coarse[part].tolist()}
            if form.endswith("bin"):
                columns = [coarse[part, None]] if form.startswith("100") else []
                rows = np.concatenate([*columns, fine[part, None], images[part]], axis=1)
                (root / f"{name}.bin").write_bytes(rows.tobytes())
                continue
            fields = {"batch_label": "a secret batch", "filenames": ["anna_s_0004.png"] * each, **labels}
            content = pickle.dumps(fields | {"data": images[part].copy()}) if python3 else python2(images[part], fields)
            (root / name).write_bytes(content)
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    return arrays


def packed(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    return path


def read_all(source: CifarSource) -> np.ndarray[Any, Any]:
    batches = [batch for shard in source.shards() for batch in source.read(shard.samples, 1)]
    assert all(isinstance(batch, Batch) for batch in batches)
    return np.concatenate([batch.images for batch in batches if isinstance(batch, Batch)])


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(form: str, archive: bool, tmp_path: Path, key: dlmt.Key) -> None:
    source, store, back = tmp_path / "source", tmp_path / "store", tmp_path / "back"
    arrays = made(source, form)
    if archive:
        source = packed(source, tmp_path / "cifar-10-python.tar.gz")
    assert looks_like_cifar(source)

    def owner(store_id: str) -> Path:
        return tmp_path / "owner" / store_id

    done = encrypt_store(source, store, key, SCHEME, owner, JobOptions(normalize="none"))
    assert (done.inputs, done.outputs, done.kind) == (19, 19, "npy")
    assert "batches.meta" in done.notes[0]
    assert {path.name for path in store.iterdir()} == {*arrays, "dlmt-store.json"}
    plan = SCHEME.plan(key, (3, 32, 32), "none")
    for name, values in arrays.items():
        stored = np.load(store / name, allow_pickle=False)
        assert np.array_equal(stored, dlmt.encrypt(values, plan) if "images" in name else values)
    assert verify_store(store).outputs == 19
    assert "19 images decrypt" in verify_store(store, key, owner).notes[0]
    decrypt_store(store, back, key, owner)
    assert {path.name for path in back.iterdir()} == set(arrays)
    assert all(np.array_equal(np.load(back / name), values) for name, values in arrays.items())


def test_python_3_pickles_and_the_order_of_batches(tmp_path: Path) -> None:
    for protocol3, name in ((False, "two"), (True, "three")):
        arrays = made(tmp_path / name, "10-py", protocol3)
        source = CifarSource(tmp_path / name)
        assert np.array_equal(read_all(source)[:15], arrays["train-images.npy"])
        assert source.path_of(0) == "train#0"
        assert source.path_of(15) == "test#0"
    (batch,) = source.read(range(4, 9), 1)
    assert isinstance(batch, Batch)
    assert list(batch.indices) == [4, 5, 6, 7, 8]
    assert np.array_equal(batch.images, arrays["train-images.npy"][4:9])


def test_torchvision_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    made(tmp_path / "cifar-10-batches-py", "10-py")
    with pytest.raises(RuntimeError, match="not found or corrupted"):  # as it refuses whatever is not the original
        datasets.CIFAR10(tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    theirs = datasets.CIFAR10(tmp_path, train=False)
    ours = CifarSource(tmp_path / "cifar-10-batches-py")
    assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), read_all(ours)[15:])
    assert ours.extra_bytes("test-labels.npy").endswith(bytes(theirs.targets))


@pytest.mark.parametrize("form", FORMS)
def test_missing_files_are_named(form: str, tmp_path: Path) -> None:
    made(tmp_path / "x", form)
    gone = sorted(path.name for path in (tmp_path / "x").iterdir() if path.name.startswith("t"))[0]
    os.remove(tmp_path / "x" / gone)
    with pytest.raises(StoreError, match=f"lacks {gone}"):
        CifarSource(tmp_path / "x")


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        CifarSource(tmp_path / "x")
    with pytest.raises(StoreError, match="none of the files"):
        CifarSource(tmp_path)
    made(tmp_path / "x", "10-py")
    made(tmp_path / "y", "100-bin")
    for path in (tmp_path / "y").iterdir():
        path.rename(tmp_path / "x" / path.name)
    with pytest.raises(StoreError, match="several forms"):
        CifarSource(tmp_path / "x")


@pytest.mark.parametrize("form", ["10-py", "10-bin"])
def test_truncated_files(form: str, tmp_path: Path) -> None:
    made(tmp_path / "x", form)
    path = next(iter((tmp_path / "x").glob("test_batch*")))
    data = path.read_bytes()
    for size in (0, 1, 100, 3000, len(data) // 2 + 1, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(StoreDamagedError, match="test_batch"):
            CifarSource(tmp_path / "x")
    path.write_bytes(data + b"x")
    with pytest.raises(StoreDamagedError):
        CifarSource(tmp_path / "x")


def test_truncated_archives(tmp_path: Path) -> None:
    made(tmp_path / "x", "10-py")
    path = packed(tmp_path / "x", tmp_path / "cifar-10-python.tar.gz")
    data = path.read_bytes()
    for size in range(0, len(data), len(data) // 23):
        path.write_bytes(data[:size])
        with pytest.raises(StoreError, match=r"truncated|lacks|none of"):
            CifarSource(path)


@pytest.mark.parametrize("labels", [[3], [3] * 3, ["3", "4"], None])
def test_other_labels_than_images(labels: list[Any] | None, tmp_path: Path) -> None:
    made(tmp_path / "x", "10-py")
    two = np.zeros((2, 3072), np.uint8)
    (tmp_path / "x" / "data_batch_3").write_bytes(pickle.dumps({"data": two, "labels": labels}, protocol=2))
    counted = labels is not None and isinstance(labels[0], int)
    want = f"{len(labels or ())} labels beside 2 images" if counted else "its labels are no list of small numbers"
    with pytest.raises(StoreDamagedError, match=want):
        CifarSource(tmp_path / "x")


def test_labels_beyond_the_classes(tmp_path: Path) -> None:
    made(tmp_path / "x", "10-bin")
    path = tmp_path / "x" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(StoreDamagedError, match="label 10 of 10"):
        CifarSource(tmp_path / "x")


def test_options_that_do_not_apply(tmp_path: Path, key: dlmt.Key) -> None:
    made(tmp_path / "x", "10-bin")
    for options in ({"size": (4, 4)}, {"names": "keep"}, {"classes": "index"}):
        with pytest.raises(ParameterError, match="does not apply to CIFAR"):
            encrypt_store(tmp_path / "x", tmp_path / "y", key, SCHEME, Path, JobOptions(**options))


# hostile pickles


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> Any:
        return self._reduced


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
HOSTILE = {
    "system": pickle.dumps({"data": Calls(os.system, "touch hacked")}),
    "eval": pickle.dumps({"data": Calls(eval, "open('hacked', 'w')")}, 0),
    "inst": b"(ios\nsystem\n.",
    "obj": b"(cos\nsystem\nU\x01xo.",
    "newobj": pickle.dumps({"data": collections.OrderedDict()}, 2),
    "another encoding": b"\x80\x02}U\x04datac_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tRs.",
    "a dotted name": b"\x80\x04}\x8c\x04data\x8c\x05numpy\x8c\x10ndarray.__init__\x93s.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Px\n.",
    "changes a callable": b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
    "sets an attribute": b"\x80\x02cnumpy\ndtype\nN}U\x05_makeK\x01s\x86b.",
    "objects": b"\x80\x02}U\x04datacnumpy\ndtype\nU\x02O8\x85Rs.",
    "an array of nothing": b"\x80\x02}U\x04data" + ARRAY + b"s.",
    "an odd state": b"\x80\x02}U\x04data" + ARRAY + b"K\x01bs.",
    "a short array": b"\x80\x02}U\x04data" + ARRAY + b"(K\x01K\x05\x85cnumpy\ndtype\nU\x02u1\x85R\x89U\x03abctbs.",
    "a negative size": b"\x80\x02}U\x04data"
    + ARRAY
    + b"(K\x01J\xff\xff\xff\xff\x85cnumpy\ndtype\nU\x02u1\x85R\x89U\x03abctbs.",
    "an absurd memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "an absurd length": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a number that grows": b"\x80\x02}U\x04data\x8b\x04\x00\x00\x00\xff\xff\xff\x7fs.",
    "no dictionary": pickle.dumps([1, 2]),
    "keys that are lists": b"\x80\x02}K\x01K\x02s.",
    "two pickles": pickle.dumps({}) + pickle.dumps({}),
    "nothing": b"",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02s.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_wants_more_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=r"^it "):
        load(HOSTILE[name])
    made(tmp_path / "x", "10-py")
    (tmp_path / "x" / "data_batch_3").write_bytes(HOSTILE[name])
    with pytest.raises(StoreDamagedError, match="data_batch_3 is not a file of CIFAR"):
        CifarSource(tmp_path / "x")
    assert not (tmp_path / "hacked").exists()


def test_the_answers_stay_as_they_are_after_an_attack(tmp_path: Path) -> None:
    for data in HOSTILE.values():
        with pytest.raises(pickle.UnpicklingError):
            load(data)
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for array in (values, np.asfortranarray(values)):
        for protocol in (2, 3, 4):
            assert np.array_equal(load(pickle.dumps({"data": array}, protocol))["data"], values)


def test_random_damage_is_an_error_or_harmless(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    whole = python2(rng.integers(0, 256, (1, 3072), np.uint8), {"labels": [3], "batch_label": "x"})
    head = len(whole) - 3072 - 4
    refused = 0
    for _ in range(600):
        data = bytearray(whole)
        for place in rng.integers(0, head, 3):
            data[place] = rng.integers(256)
        try:
            load(bytes(data))
        except pickle.UnpicklingError:
            refused += 1
    assert refused > 300


def test_every_error_is_ours(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(buffer.getvalue())
    with pytest.raises(DlmtError, match="none of the files"):
        CifarSource(tmp_path / "cifar-10-python.tar.gz")
