"""`dlmt inspect`: what it says is what is there, with the key and without, and its sheets show the images."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import dlmt_fast as dlmt
from dlmt_fast import cli
from dlmt_fast.errors import ParameterError, StoreDamagedError, StoreError, UsageError, WrongKeyError
from dlmt_fast.pipeline import Inspection, JobOptions, encrypt_store, inspect_store, sheet, write_sheet
from dlmt_fast.stores.png import encode_png

SCHEME = dlmt.DLMT("mat_mmt")


def pixels(i: int, shape: tuple[int, ...] = (3, 6, 8)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(i).integers(0, 256, shape, np.uint8)


class Place:
    """Seven images of two classes, four of one and three of the other."""

    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source, self.store = root, key, root / "source", root / "store"
        for i in range(7):
            path = self.source / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(pixels(i)))

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, target_named: str | None = None, **options: Any) -> str:
        chosen = JobOptions(**{"shard_size": 3, **options})
        summary = encrypt_store(
            self.source, self.store, self.key, SCHEME, self.owner, chosen, target_named=target_named
        )
        return summary.store_id

    def inspect(self, key: bool = False) -> Inspection:
        return inspect_store(self.store, self.key, self.owner) if key else inspect_store(self.store)


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


def arrays(root: Path, kind: str) -> None:
    """Images of three classes in arrays of this kind."""
    images, labels = pixels(0, (9, 6, 8)), np.array([0, 0, 0, 0, 1, 1, 7, 7, 7])
    if kind == "npy":
        root.mkdir()
        np.save(root / "x_a.npy", images)
        np.save(root / "y_a.npy", labels)
    elif kind == "zarr":
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(str(root), mode="w")
        group.create_array("a", data=images)
        group.create_array("a-labels", data=labels)
    else:
        root.mkdir()
        head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (9, 6, 8))
        (root / "t-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (root / "t-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + b"\0\0\0\x09" + labels.astype(np.uint8).tobytes())


# what is said


@pytest.mark.parametrize(
    ("kind", "where", "names"),
    [("folder", "class folders", "ab"), ("webdataset", ".cls", "01"), ("parquet", "the column label", "ab")],
)
def test_a_store_of_files(kind: str, where: str, names: str, place: Place) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    store_id = place.encrypt(kind)
    found = place.inspect()
    assert (found.what, found.kind, found.store_id, found.dtype, found.count) == ("store", kind, store_id, "uint8", 7)
    assert found.shapes == {"3x6x8": 7}
    assert found.classes == {where: {names[0]: 4, names[1]: 3}}
    assert found.shards == 3
    assert found.bytes is not None
    assert found.bytes >= 7 * 3 * 6 * 8
    assert "not hidden" not in found.tells
    assert "7 images" in found.tells
    assert (found.header, found.inputs, found.quarantined) == (None, None, None)


@pytest.mark.parametrize("target", ["npy", "zarr", "idx", "parquet"])
def test_labels_of_arrays(target: str, place: Place) -> None:
    if target in ("zarr", "parquet"):
        pytest.importorskip({"zarr": "zarr", "parquet": "pyarrow"}[target])
    place.source = place.root / "arrays"
    arrays(place.source, "npy" if target == "parquet" else target)
    place.encrypt(target, shard_size=JobOptions().shard_size)
    for found in (place.inspect(), inspect_store(place.source)):
        (counts,) = found.classes.values()
        assert counts == {"0": 4, "1": 2, "7": 3}, found.what
        assert found.shapes == {"1x6x8": 9}


def test_names_that_are_kept_are_told(place: Place) -> None:
    place.encrypt(names="keep")
    assert "names that are not hidden" in place.inspect().tells


def test_the_key_opens_the_header_and_the_owner_counts(place: Place) -> None:
    (place.source / "a/bad.png").write_text("x")
    place.encrypt(on_error="quarantine", normalize="minmax", dtype="float32", mean=0.5, std=0.25)
    found = place.inspect(key=True)
    assert found.header is not None
    assert found.header["scheme"] == SCHEME.params
    assert (found.header["normalize"], found.header["dtype"]) == ("minmax", "float32")
    assert (found.inputs, found.count) == (8, 7)
    assert [item["path"] for item in found.quarantined or []] == ["a/bad.png"]
    other = inspect_store(place.store, place.key, lambda store_id: place.root / "elsewhere")
    assert (other.inputs, other.quarantined) == (None, None)
    assert any("--owner" in note for note in other.notes)
    with pytest.raises(WrongKeyError):
        inspect_store(place.store, dlmt.Key.generate(), place.owner)


def test_an_unfinished_store(place: Place) -> None:
    store_id = place.encrypt()
    (place.store / "dlmt-store.json").unlink()
    (place.store / ".dlmt-job").write_text(store_id)
    (place.store / f".tmp-{store_id}-00002-0123456789abcdef").write_text("x")
    found = place.inspect()
    assert (found.what, found.store_id, found.files, found.shards_done) == ("unfinished", store_id, 10, None)
    (place.owner(store_id) / "journal-00001.json").unlink()
    told = place.inspect(key=True)
    assert (told.shards_done, told.shards, told.inputs, told.kind) == (2, 3, 7, "folder")
    (place.store / ".dlmt-job").unlink()
    assert place.inspect().what == "unfinished"


def test_an_unfinished_file(place: Place) -> None:
    (place.root / ".one.npy.dlmt-job").write_text("ab")
    assert inspect_store(place.root / "one.npy").what == "unfinished"


def test_images_of_several_sizes(place: Place) -> None:
    (place.source / "a/wide.png").write_bytes(encode_png(pixels(9, (3, 6, 20))))
    source = inspect_store(place.source)
    assert source.shapes == {"3x6x8": 7, "3x6x20": 1}
    assert any("--per-size" in note for note in source.notes)
    place.encrypt(per_size=True)
    found = place.inspect()
    assert (found.shapes, found.count) == ({}, 8)
    assert "the images have several sizes" in found.notes


def test_a_source_says_what_cannot_be_taken(place: Place) -> None:
    (place.source / "notes.txt").write_text("x")
    (place.source / "a/cut.png").write_bytes(encode_png(pixels(0))[:20])
    found = inspect_store(place.source)
    assert (found.what, found.kind, found.inputs, found.count) == ("source", "folder", 9, 7)
    assert {item["path"] for item in found.quarantined or []} == {"notes.txt", "a/cut.png"}
    assert found.classes == {"class folders": {"": 1, "a": 5, "b": 3}}
    ignored = inspect_store(place.source, options=JobOptions(ignore=("*.txt",)))
    assert ignored.inputs == 8
    assert any("--ignore" in note for note in ignored.notes)


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        inspect_store(tmp_path / "nowhere")


# sheets


def cell(sheet: Path, row: int, column: int, pair: bool = False) -> np.ndarray[Any, Any]:
    """A cell, a pixel for each of an image 6 x 8, which is shown 12 times as large; `pair`: the lower one."""
    left, top = 4 + 100 * column, 4 + row * 216 + (100 if pair else 0)
    with PIL.Image.open(sheet) as image:
        return np.asarray(image)[top + 12 + 6 : top + 84 : 12, left + 6 : left + 96 : 12]


@pytest.mark.parametrize("normalize", ["none", "range", "minmax"])
def test_decrypted_images_stand_under_theirs(normalize: str, place: Place) -> None:
    place.encrypt(names="keep", normalize=normalize, shard_size=100, dtype=None if normalize == "none" else "float32")
    out = place.root / "sheet.png"
    written = write_sheet(place.store, out, key=place.key, owner_folder=place.owner, decrypted=True)
    assert (written.images, written.plain, written.scaling) == (7, True, "by the range of the store")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    by_name = sorted(range(7), key=lambda i: ("ab"[i % 2], i))
    for column, i in enumerate(by_name):
        plain = pixels(i).transpose(1, 2, 0)
        assert np.array_equal(cell(out, 0, column, pair=True), plain)
        assert not np.array_equal(cell(out, 0, column), plain)


def test_a_sheet_without_the_key_shows_what_is_stored(place: Place) -> None:
    place.encrypt(shard_size=100)
    out = place.root / "sheet.png"
    written = write_sheet(place.store, out, count=5)
    assert (written.images, written.plain, written.scaling) == (5, False, "as they are")
    first = min(path for path in place.store.rglob("*.png"))
    with PIL.Image.open(first) as image:
        assert np.array_equal(cell(out, 0, 0), np.asarray(image))


@pytest.mark.parametrize("kind", ["npy", "idx", "zarr"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_sheets_of_arrays(kind: str, dtype: str, place: Place) -> None:
    if kind == "zarr":
        pytest.importorskip("zarr")
    place.source = place.root / "arrays"
    arrays(place.source, kind)
    none = dtype == "int32"
    place.encrypt(
        shard_size=JobOptions().shard_size, normalize="none" if none else "range", dtype=None if none else dtype
    )
    written = write_sheet(place.store, place.root / "sheet.png")
    scaling = "as they are" if dtype == "uint8" else "each image by its own minimum and maximum"
    assert (written.images, written.scaling) == (9, scaling)
    assert write_sheet(place.source, place.root / "plain.png").plain


def test_images_come_from_shards_spread_over_the_store(place: Place) -> None:
    place.encrypt(shard_size=1)
    assert write_sheet(place.store, place.root / "sheet.png", count=3).images == 3
    spread = sheet._spread(list(range(100)), [1] * 98 + [50, 0], 64)  # eight shards would have too few
    assert sum(share for _, share in spread) == 64
    assert list(sheet._spread([0, 1], [2, 90], 64)) == [(0, 2), (1, 62)]
    assert list(sheet._spread([0, 1], [90, 2], 64)) == [(0, 62), (1, 2)]
    assert [index for index, _ in sheet._spread(list(range(80)), [9] * 80, 64)] == list(range(0, 80, 10))
    assert write_sheet(place.store, place.root / "more.png", count=4096).images == 7


def test_sheets_are_refused(place: Place) -> None:
    place.encrypt(normalize="minmax")
    out = place.root / "sheet.png"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        write_sheet(place.store, out)
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match="inside"):
        write_sheet(place.store, place.store / "sheet.png")
    with pytest.raises(UsageError, match="PNG"):
        write_sheet(place.store, place.root / "sheet.jpg")
    with pytest.raises(ParameterError, match="key"):
        write_sheet(place.store, place.root / "new.png", decrypted=True)
    with pytest.raises(ParameterError, match="1 to"):
        write_sheet(place.store, place.root / "new.png", count=0)
    with pytest.raises(StoreError, match="ledger"):
        write_sheet(place.store, place.root / "new.png", key=place.key, decrypted=True)
    next(place.store.glob("a/*.png")).write_bytes(b"x")
    with pytest.raises(StoreDamagedError, match="not those"):
        write_sheet(place.store, out, overwrite=True)
    assert out.read_text() == "mine"


# on S3


@pytest.mark.parametrize("to", ["folder", "zarr"])
def test_remote_stores(to: str, place: Place, moto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zarr")
    moto.use(monkeypatch)
    moto.upload(place.source, "inspect", "source")
    url = f"s3://inspect/{to}"
    options = JobOptions(shard_size=3)
    encrypt_store(place.source, url, place.key, SCHEME, place.owner, options, target_named=to)
    found = inspect_store(url, place.key, place.owner)
    assert (found.what, found.kind, found.count, found.inputs) == ("store", to, 7, 7)
    assert sorted(next(iter(found.classes.values())).values()) == [3, 4]
    out = place.root / f"{to}.png"
    assert write_sheet(url, out, key=place.key, owner_folder=place.owner, decrypted=True).images == 7
    source = inspect_store("s3://inspect/source")
    assert (source.what, source.count, source.classes) == ("source", 7, {"class folders": {"a": 4, "b": 3}})
    moto.client().delete_object(Bucket="inspect", Key=f"{to}/dlmt-store.json")
    moto.client().put_object(Bucket="inspect", Key=f"{to}/.dlmt-job", Body=found.store_id.encode())
    assert inspect_store(url, place.key, place.owner).shards_done == 3


# the command

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(place.root)
    place.key.save(place.root / "k", params=SCHEME.params)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dlmt", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_command(run: Run, place: Place) -> None:
    code, out, _ = run("inspect", "source")
    assert code == 0
    assert "source, folder, 7 images" in out
    assert "a 4, b 3" in out
    assert run("encrypt", "source", "store", "--key", "k")[0] == 0
    code, out, err = run("inspect", "store", "--key", "k", "--sheet", "s.png", "--decrypted")
    assert (code, err) == (0, "")
    assert "mode mat_mmt" in out
    assert "7 inputs, 0 quarantined" in out
    assert "s.png shows plain images" in out
    assert place.key.fingerprint not in out
    code, out, _ = run("inspect", "store", "--json")
    found = json.loads(out)
    assert (code, found["what"], found["count"], found["header"]) == (0, "store", 7, None)


def test_exit_codes(run: Run, place: Place) -> None:
    (place.source / "bad.png").write_text("x")
    code, out, _ = run("inspect", "source")
    assert code == 3
    assert "bad.png" in out
    place.encrypt(on_error="quarantine")
    (place.store / "dlmt-store.json").unlink()
    code, out, _ = run("inspect", "store", "--sheet", "s.png", "--json")
    assert code == 1
    assert json.loads(out)["what"] == "unfinished"
    assert not Path("s.png").exists()
    code, _, err = run("inspect", "source", "--decrypted")
    assert (code, err.count("\n")) == (2, 1)
    assert run("inspect", "nowhere")[0] == 1


def test_many_classes_are_told_in_a_line(run: Run, place: Place) -> None:
    for i in range(25):
        (place.source / f"c{i:02}").mkdir()
        (place.source / f"c{i:02}/1.png").write_bytes(encode_png(pixels(i)))
    assert "27 classes, from 1 (c00) to 4 (a) images" in run("inspect", "source")[1]
