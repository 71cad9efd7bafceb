"""`--keep`: fields beside image and label pass unchanged, into tars and Parquet and back; all else is dropped."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast import cli
from dlmt_fast.errors import DlmtError, ParameterError, StoreError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, inspect_store, verify_store
from dlmt_fast.pipeline.seal import StoreSeal
from dlmt_fast.stores.manifest import read_manifest
from dlmt_fast.stores.png import encode_png

SCHEME = dlmt.DLMT("mat_mmt")
CAPTIONS = [b"a cat\n", "ein Hündchen".encode(), b"", b"\xff\x00 no text"]


class Place:
    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source, self.store, self.back = root, key, root / "source", root / "s", root / "back"
        self.source.mkdir()

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, *keep: str, to: str | None = None, **options: Any) -> Summary:
        chosen = JobOptions(keep=keep, **options)
        return encrypt_store(self.source, self.store, self.key, SCHEME, self.owner, chosen, target_named=to)

    def decrypt(self) -> None:
        decrypt_store(self.store, self.back, self.key, self.owner)


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


def image(i: int) -> bytes:
    return encode_png(np.random.default_rng(i).integers(0, 256, (3, 6, 5), np.uint8))


def tars(place: Place, fields: dict[str, list[bytes | None]] | None = None) -> None:
    """Four samples in two tars, with these fields each; one that is None is absent."""
    fields = fields or {"txt": list(CAPTIONS), "Width": [b"5"] * 4, "secret.json": [b"{}"] * 4}
    for tar in range(2):
        with tarfile.open(place.source / f"{tar}.tar", "w") as archive:
            for i in (2 * tar, 2 * tar + 1):
                members = {"jpg.png": image(i), "cls": b"%d" % i} | {name: values[i] for name, values in fields.items()}
                for name, data in members.items():
                    if data is not None:
                        info = tarfile.TarInfo(f"sample{i}.{name}")
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))


def members(root: Path) -> dict[str, dict[str, bytes]]:
    """What each sample of some tars has, by its class number."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                file = archive.extractfile(info)
                assert file is not None
                key, _, name = info.name.partition(".")
                found.setdefault(key, {})[name] = file.read()
    return {sample["cls"].decode(): sample for sample in found.values()}


def table(place: Place, **columns: Any) -> None:
    """Four rows in two files, with these columns."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    for part in range(2):
        rows = slice(2 * part, 2 * part + 2)
        some = {"image": [{"bytes": image(i), "path": f"{i}.png"} for i in range(4)][rows], "label": [0, 1, 2, 3][rows]}
        pq.write_table(
            pa.table(some | {name: values[rows] for name, values in columns.items()}), place.source / f"{part}.parquet"
        )


def rows(root: Path) -> dict[int, dict[str, Any]]:
    """The rows of some Parquet files by label."""
    pq = pytest.importorskip("pyarrow.parquet")
    found = [row for path in sorted(root.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["label"]: row for row in found}


# there and back


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_tars(dtype: str | None, place: Place) -> None:
    tars(place)
    summary = place.encrypt("txt", "WIDTH", dtype=dtype)
    assert "these fields pass unprotected: txt, width" in summary.notes
    assert any("secret.json" in note and "txt" not in note for note in summary.notes if note.startswith("left alone"))
    kind = "png" if dtype is None else "npy"
    stored = members(place.store)
    assert [set(sample) for sample in stored.values()] == [{kind, "cls", "txt", "width"}] * 4
    assert [stored[str(i)]["txt"] for i in range(4)] == CAPTIONS
    verify_store(place.store, place.key, place.owner)
    place.decrypt()
    back = members(place.back)
    assert [back[str(i)]["txt"] for i in range(4)] == CAPTIONS
    assert {sample["width"] for sample in back.values()} == {b"5"}


COLUMNS: dict[str, list[Any]] = {
    "caption": ["a cat", "Hündchen", "", None],
    "width": [5, -(2**60), 2**60, None],
    "score": [0.1, float("-inf"), 1e-300, None],
    "ok": [True, False, True, None],
    "Other": [[1], [2], [3], [4]],
}


def test_parquet(place: Place) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    table(place, **COLUMNS)
    place.encrypt("caption", "width", "score", "ok")
    for root in (place.store, place.back):
        if root == place.back:
            place.decrypt()
        found = rows(root)
        for name in ("caption", "width", "score", "ok"):
            assert [found[i][name] for i in range(4)] == COLUMNS[name]
        assert "Other" not in found[0]
        file = pq.ParquetFile(next(root.glob("*.parquet")))
        assert [str(file.schema_arrow.field(name).type) for name in ("width", "score", "ok")] == [
            "int64",
            "double",
            "bool",
        ]
        told = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        assert told["score"] == {"_type": "Value", "dtype": "float64"}


def test_parquet_becomes_tars(place: Place) -> None:
    table(place, **COLUMNS)
    place.encrypt("caption", "width", "score", "ok", to="webdataset")
    stored = members(place.store)
    assert stored["1"]["caption"] == "Hündchen".encode()
    assert stored["2"]["width"] == b"1152921504606846976"
    assert [float(stored[i]["score"]) for i in "012"] == COLUMNS["score"][:3]
    assert (stored["0"]["ok"], stored["1"]["ok"]) == (b"1", b"0")
    assert set(stored["3"]) == {"png", "cls"}
    place.decrypt()
    assert members(place.back)["1"]["caption"] == "Hündchen".encode()


def test_tars_become_parquet(place: Place) -> None:
    pytest.importorskip("pyarrow")
    tars(place, {"txt": list(CAPTIONS), "size": [b"1", None, b"3", None]})
    place.encrypt("txt", "size", to="parquet")
    for root in (place.store, place.back):
        if root == place.back:
            place.decrypt()
        found = rows(root)
        assert [found[i]["txt"] for i in range(4)] == CAPTIONS
        assert [found[i]["size"] for i in range(4)] == [b"1", None, b"3", None]


def test_bytes_do_not_depend_on_workers_or_on_the_order_of_names(place: Place) -> None:
    tars(place)
    first = place.encrypt("txt", "width", workers=2)
    expected = {path.name: path.read_bytes() for path in place.store.glob("*.tar")}
    second = place.encrypt("width", "txt", overwrite=True)
    assert {path.name: path.read_bytes() for path in place.store.glob("*.tar")} == expected
    assert first.store_id == second.store_id


def test_samples_that_are_left_out_take_their_fields_along(place: Place) -> None:
    tars(place)
    for path in place.source.glob("*.tar"):
        data = path.read_bytes()
        path.write_bytes(data.replace(image(1), image(0)))
    summary = place.encrypt("txt", duplicates="drop")
    assert summary.dropped == 1
    assert {number: sample["txt"] for number, sample in members(place.store).items()} == {
        "0": CAPTIONS[0], "2": CAPTIONS[2], "3": CAPTIONS[3],
    }  # fmt: skip


# what is recorded and told


def test_it_is_part_of_the_job_and_absent_where_unused(place: Place) -> None:
    tars(place)
    store_id = place.encrypt().store_id
    assert "keep" not in json.loads((place.owner(store_id) / "job.json").read_text())["options"]
    assert set(members(place.store)["0"]) == {"png", "cls"}
    with pytest.raises(StoreError, match=r"keep None then, \['txt'\] now"):
        place.encrypt("txt", resume=True)
    kept = place.encrypt("txt", overwrite=True).store_id
    assert kept != store_id
    assert StoreSeal(place.key, kept).open_header(read_manifest(place.store).sealed)["keep"] == ["txt"]
    assert "the fields txt" in inspect_store(place.store).tells


# what is refused


@pytest.mark.parametrize(
    ("field", "to", "message"),
    [
        ("caption", None, "no sample has the field caption that --keep names; there are cls, secret.json, txt, width"),
        ("txt", "folder", "a store of kind folder has no place for --keep; --to webdataset or parquet has"),
        ("cls", None, "a field cls is an image or a label in a tar"),
    ],
)
def test_fields_of_tars(field: str, to: str | None, message: str, place: Place) -> None:
    tars(place)
    with pytest.raises(DlmtError, match=message):
        place.encrypt(field, to=to)
    assert not place.store.exists()


@pytest.mark.parametrize(
    ("column", "to", "message"),
    [
        ("nothing", None, "has no column nothing for --keep beside image and label; there are: caption, Other, raw"),
        ("Other", None, "the column Other holds list<element: int64>; --keep passes numbers and text"),
        ("raw", None, "the column raw holds binary; --keep passes numbers and text"),
        ("label", None, "has no column label"),
        ("Width", "webdataset", "a tar has no place for 'Width'"),
        ("x.png", "webdataset", "a field x.png is an image or a label in a tar"),
    ],
)
def test_columns_of_parquet(column: str, to: str | None, message: str, place: Place) -> None:
    names = {"caption": COLUMNS["caption"], "Other": COLUMNS["Other"], "raw": list(CAPTIONS)}
    table(place, **names, **{"Width": COLUMNS["width"], "x.png": COLUMNS["width"]})
    with pytest.raises(DlmtError, match=message):
        place.encrypt(column, to=to)
    assert not place.store.exists()


def test_large_values(place: Place) -> None:
    tars(place, {"txt": [b"x", b"x" * 70000, b"", b""]})
    with pytest.raises(StoreError, match=r"sample1.txt of 70000 bytes; --keep passes at most 65536"):
        place.encrypt("txt")


def test_large_text_in_parquet(place: Place) -> None:
    table(place, caption=["x", "x" * 70000, "", ""])
    with pytest.raises(StoreError, match="70000 characters in caption"):
        place.encrypt("caption")
    assert not place.store.exists()


def test_files_whose_columns_differ(place: Place) -> None:
    table(place, width=[1, 2, 3, 4])
    (place.source / "1.parquet").rename(place.root / "1.parquet")
    table(place, width=[1.5, 2.5, 3.5, 4.5])
    (place.root / "1.parquet").rename(place.source / "1.parquet")
    with pytest.raises(StoreError, match="other columns"):
        place.encrypt("width")


def test_sources_without_fields(place: Place) -> None:
    (place.source / "a.png").write_bytes(image(0))
    with pytest.raises(ParameterError, match="--keep does not apply to a folder"):
        place.encrypt("txt")
    np.save(place.root / "a.npy", np.zeros((2, 4, 4), np.uint8))
    place.source = place.root / "a.npy"
    with pytest.raises(ParameterError, match=r"--keep does not apply to \.npy files"):
        place.encrypt("txt")
    with pytest.raises(ParameterError, match="twice"):
        JobOptions(keep=("a", "a"))
    with pytest.raises(ParameterError, match="500 letters together, got 600"):
        JobOptions(keep=tuple(f"{i:030}" for i in range(20)))


def test_the_command(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tars(place)
    place.key.save(place.root / "k", params=SCHEME.params)
    monkeypatch.chdir(place.root)
    monkeypatch.setattr(
        sys, "argv", ["dlmt", "encrypt", "source", "s", "--key", "k", "--keep", "txt", "--keep", "width"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    assert "pass unprotected: txt, width" in capsys.readouterr().out


def test_remote_tars(place: Place, moto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tars(place)
    moto.use(monkeypatch)
    moto.upload(place.source, "kept", "tars")
    options = JobOptions(keep=("txt", "width"))
    encrypt_store("s3://kept/tars", place.store, place.key, SCHEME, place.owner, options)
    stored = members(place.store)
    assert [stored[str(i)]["txt"] for i in range(4)] == CAPTIONS
    assert {sample["width"] for sample in stored.values()} == {b"5"}
