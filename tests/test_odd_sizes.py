"""Images of a size of their own: refused together, or left out where most have one size."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import ParameterError
from dlmt_fast.pipeline import (
    JobOptions,
    Summary,
    decrypt_store,
    encrypt_store,
    preview_encrypt,
    verify_store,
)
from dlmt_fast.stores import contract
from dlmt_fast.stores.contract import Survey
from dlmt_fast.stores.png import encode_png

KEY, SCHEME = dlmt.Key(bytes(range(32))), dlmt.DLMT("mat_mmt")
SHAPES = dict.fromkeys("abcdef", (3, 8, 9)) | {"g": (3, 9, 8), "h": (1, 8, 9), "i": (3, 9, 8)}
ODD = {"g", "h", "i"}


def png(name: str) -> bytes:
    return bytes(encode_png(np.random.default_rng(ord(name)).integers(0, 256, SHAPES[name], np.uint8)))


class Place:
    """A source of a kind, with images of `SHAPES`."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.source, self.store, self.kind = root, root / "source", root / "store", kind
        self.source.mkdir()
        if kind == "folder":
            for name in SHAPES:
                (self.source / f"{name}.png").write_bytes(png(name))
        elif kind == "webdataset":
            with tarfile.open(self.source / "0.tar", "w") as tar:
                for name in SHAPES:
                    info = tarfile.TarInfo(f"{name}.png")
                    info.size = len(png(name))
                    tar.addfile(info, io.BytesIO(png(name)))
        else:
            pyarrow = pytest.importorskip("pyarrow")
            rows = [{"image": {"bytes": png(name), "path": f"{name}.png"}} for name in SHAPES]
            pytest.importorskip("pyarrow.parquet").write_table(
                pyarrow.Table.from_pylist(rows), self.source / "0.parquet"
            )

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, **options: Any) -> Summary:
        return encrypt_store(self.source, self.store, KEY, SCHEME, self.owner, JobOptions(**options))


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Place]:
    return lambda kind: Place(tmp_path, kind)


def odd_names(found: list[dict[str, str]]) -> set[str]:
    return {Path(item["path"]).stem for item in found}


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_those_unlike_most_are_quarantined(kind: str, place: Callable[[str], Place]) -> None:
    here = place(kind)
    with pytest.raises(
        ParameterError, match=r"3 different shapes(.|\n)*--on-error quarantine leaves out what is unlike"
    ):
        here.encrypt()
    options = JobOptions(on_error="quarantine")
    preview = preview_encrypt(here.source, here.store, KEY, SCHEME, here.owner, options)
    done = here.encrypt(on_error="quarantine")
    for found in (preview, done, verify_store(here.store, KEY, here.owner)):
        assert (found.inputs, found.outputs) == (9, 6)
        assert odd_names(found.quarantined) == ODD
    reasons = {Path(item["path"]).stem: item["reason"] for item in done.quarantined}
    assert reasons["h"] == "it is 1x8x9, and 6 others are 3x8x9 (channels x height x width)"
    assert preview.store_id == done.store_id
    assert decrypt_store(here.store, here.root / "back", KEY, here.owner).outputs == 6


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {"workers": 2, "shard_size": 2}, {"duplicates": "drop"}], ids=str
)
def test_with_other_options(options: dict[str, Any], place: Callable[[str], Place]) -> None:
    here = place("folder")
    (here.source / "j.png").write_bytes(png("g"))  # equal to an odd one, and odd itself
    (here.source / "k.png").write_bytes(png("a"))
    done = here.encrypt(on_error="quarantine", names="keep", **options)
    gone = {"j", "k"} if "duplicates" in options else {"j"}
    assert {path.stem for path in here.store.glob("*.png")} == set("abcdefk") - gone
    assert odd_names(done.quarantined) == ODD | gone
    assert done.dropped == len(gone - {"j"})


def test_where_none_is_usual_the_job_is_refused(place: Callable[[str], Place]) -> None:
    here = place("folder")
    for name in "def":
        (here.source / f"{name}.png").unlink()
    with pytest.raises(ParameterError, match="3 different shapes"):
        here.encrypt(on_error="quarantine")
    assert not here.store.exists()


def test_a_survey_lists_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is usual is not listed, nor what would grow with the number of samples."""
    monkeypatch.setattr(contract, "FEW", 3)
    survey = Survey()
    for index in range(40):
        survey.add((3, 8, 8) if index % 8 else (3, 9, 9), str(index), index=index)
    assert survey.leave_out_others() is None  # five of another shape are more than a few
    survey = Survey()
    for index in range(40):
        survey.add((3, 8, 8) if index % 16 else (3, 9, 9), str(index), index=index)
    assert survey.leave_out_others() == (3, 8, 8)
    assert sorted(survey.odd) == [0, 16, 32]
    assert not survey._few.get((3, 8, 8))
    survey = Survey()
    for index in range(100):
        survey.add((3, 8, 8), str(index), index=index)
        survey.add((3, index + 9, 9), str(index), index=index)
    assert sum(map(len, survey._few.values())) <= 31


def test_arrays_of_several_sizes_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, side in (("a", 8), ("b", 9)):
        np.save(source / f"{name}.npy", np.zeros((3 + side, side, side), np.uint8))
    with pytest.raises(ParameterError, match="2 different shapes"):
        encrypt_store(
            source, tmp_path / "store", KEY, SCHEME, lambda i: tmp_path / i, JobOptions(on_error="quarantine")
        )
