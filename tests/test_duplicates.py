"""`--duplicates`: equal images are found over a whole job, listed with the owner, and left out where asked."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlmt_fast as dlmt
from dlmt_fast import cli
from dlmt_fast.errors import ImageError, ParameterError, StoreError
from dlmt_fast.pipeline import JobOptions, Slice, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.run import Run as JobRun
from dlmt_fast.stores.equal import Contents
from dlmt_fast.stores.png import encode_png

SCHEME = dlmt.DLMT("mat_mmt")


class Place:
    """Nine images in the order 0 1 2 0 3 1 0 4 5 of their contents, in shards of four."""

    CONTENTS = (0, 1, 2, 0, 3, 1, 0, 4, 5)

    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source, self.store = root, key, root / "source", root / "store"
        for i, content in enumerate(self.CONTENTS):
            path = self.source / "ab"[i > 4] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(np.full((1, 4, 5), 40 * content, np.uint8)))

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, how: str | None = "drop", to: str | None = None, **options: Any) -> Summary:
        chosen = JobOptions(**{"shard_size": 4, "duplicates": how, **options})
        return encrypt_store(self.source, self.store, self.key, SCHEME, self.owner, chosen, target_named=to)

    def lists(self, store_id: str) -> list[dict[str, Any]]:
        paths = sorted(self.owner(store_id).glob("duplicates-*.json"))
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
        return [item for path in paths for item in json.loads(path.read_text())]


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


EXPECTED = [("a/3.png", "a/0.png"), ("b/5.png", "a/1.png"), ("b/6.png", "a/0.png")]


def contents(root: Path) -> dict[str, bytes]:
    skipped = ("dlmt-store.json",)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in skipped}


def test_report_counts_and_lists_and_writes_all(place: Place) -> None:
    summary = place.encrypt("report")
    assert (summary.inputs, summary.outputs, summary.duplicates, summary.dropped) == (9, 9, 3, 0)
    assert [(item["path"], item["equal_to"]) for item in place.lists(summary.store_id)] == EXPECTED
    (note,) = summary.notes
    assert note.startswith("3 of 9 inputs are equal to an earlier one (a/3.png = a/0.png, b/5.png = a/1.png,")
    assert str(place.owner(summary.store_id)) in note


def test_report_is_no_part_of_the_job(place: Place) -> None:
    reported = place.encrypt("report").store_id
    assert place.encrypt(None, overwrite=True).store_id == reported
    assert "duplicates" not in json.loads((place.owner(reported) / "job.json").read_text())["options"]
    assert place.encrypt("drop", overwrite=True).store_id != reported


@pytest.mark.parametrize("to", ["folder", "webdataset", "parquet"])
def test_drop_writes_the_first_of_equal_ones(to: str, place: Place) -> None:
    if to == "parquet":
        pytest.importorskip("pyarrow")
    summary = place.encrypt("drop", to)
    assert (summary.inputs, summary.outputs, summary.duplicates, summary.dropped) == (9, 6, 3, 3)
    found = sorted((item["path"], item["reason"]) for item in summary.quarantined)
    assert found == [(path, f"equal to {first}") for path, first in EXPECTED]
    note = verify_store(place.store, place.key, place.owner).notes[-1]
    assert note.endswith("9 inputs = 6 outputs + 3 quarantined")
    if to == "folder":
        decrypt_store(place.store, place.root / "back", place.key, place.owner)
        back = {str(path.relative_to(place.root / "back")) for path in (place.root / "back").rglob("*.png")}
        assert back == {"a/0.png", "a/1.png", "a/2.png", "a/4.png", "b/7.png", "b/8.png"}


def test_bytes_do_not_depend_on_workers_slices_or_stops(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.encrypt(workers=2)
    expected = contents(place.store)
    place.store.rename(place.root / "first")
    work = JobRun.work

    def stopped(self: JobRun, *args: Any) -> None:
        self._shards, whole = self._shards[:1], self._shards
        work(self, *args)
        self._shards = whole
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(JobRun, "work", stopped)
        with pytest.raises(OSError, match="stopped"):
            place.encrypt()
    with monkeypatch.context() as patch:  # the lists are there: nothing is compared again
        patch.setattr("dlmt_fast.pipeline.duplicates._digested", None)
        summary = place.encrypt(resume=True)
    assert (summary.outputs, summary.dropped) == (6, 3)
    assert contents(place.store) == expected


def test_slices_take_the_lists_of_the_first(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.encrypt()
    expected = contents(place.store)
    place.store.rename(place.root / "first")
    place.root.joinpath("owner").rename(place.root / "owner of the first")
    assert place.encrypt(slice=Slice(2, 2)).duplicates == 3
    monkeypatch.setattr("dlmt_fast.pipeline.duplicates._digested", None)
    place.encrypt(slice=Slice(1, 2))
    assert contents(place.store) == expected


def test_places_beyond_the_last_content() -> None:
    found = Contents()
    for index in (0, 1):
        found.add(index, bytes(32), "x")
    assert list(found.repeated(100, lambda indices: indices + 98)) == [(99, 1, 0)]


def test_damaged_lists_are_made_again(place: Place) -> None:
    summary = place.encrypt()
    expected = contents(place.store)
    path = place.owner(summary.store_id) / "duplicates-00001.json"
    path.write_text("[]")
    next(place.store.glob("b/*.png")).unlink()
    place.encrypt(resume=True)
    assert contents(place.store) == expected
    assert len(json.loads(path.read_text())) == 2


def test_a_changed_option_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.encrypt("drop")
    with pytest.raises(StoreError, match="duplicates drop then, None now"):
        place.encrypt(None, resume=True)


def test_what_cannot_be_decoded_is_equal_to_nothing(place: Place) -> None:
    for name in ("a/bad0.png", "a/bad1.png"):
        (place.source / name).write_bytes(encode_png(np.zeros((1, 4, 5), np.uint8))[:60])
    with pytest.raises(ImageError):
        place.encrypt()
    assert not place.store.exists()
    summary = place.encrypt(on_error="quarantine")
    assert (summary.inputs, summary.outputs, summary.dropped, len(summary.quarantined)) == (11, 6, 3, 5)


def test_equal_bytes_of_another_shape_are_another_image(place: Place) -> None:
    (place.source / "b/turned.png").write_bytes(encode_png(np.zeros((1, 5, 4), np.uint8)))
    assert place.encrypt("report", per_size=True).duplicates == 3


def test_arrays_report_and_have_no_gaps(place: Place) -> None:
    place.source = place.root / "a.npy"
    np.save(place.source, np.stack([np.full((4, 5), content, np.uint8) for content in place.CONTENTS]))
    place.store = place.root / "b.npy"
    summary = place.encrypt("report", shard_size=JobOptions().shard_size)
    assert summary.duplicates == 3
    assert place.lists(summary.store_id)[0]["path"] == "a.npy#3"
    place.store = place.root / "c.npy"
    with pytest.raises(ParameterError, match="no gaps"):
        place.encrypt("drop", shard_size=JobOptions().shard_size)


def test_array_samples_are_left_out_of_parquet(place: Place) -> None:
    pytest.importorskip("pyarrow")
    place.source = place.root / "a.npy"
    np.save(place.source, np.stack([np.full((4, 5), content, np.uint8) for content in place.CONTENTS]))
    np.save(place.root / "a-labels.npy", np.arange(9))
    assert place.encrypt("drop", "parquet", shard_size=JobOptions().shard_size).outputs == 6


def test_unknown_ways_are_refused() -> None:
    with pytest.raises(ParameterError, match="duplicates must be one of report, drop"):
        JobOptions(duplicates="count")


@settings(max_examples=20)
@given(st.lists(st.integers(0, 30), max_size=200), st.integers(0, 3))
def test_contents(numbers: list[int], gap: int) -> None:
    found = Contents()
    for i, number in enumerate(numbers):
        found.add(i * (gap + 1), bytes([number * 8]) * 32, f"n{i}")
    firsts: dict[int, int] = {}
    expected = []
    for i, number in enumerate(numbers):
        if firsts.setdefault(number, i) != i:
            expected.append((i * (gap + 1), firsts[number] * (gap + 1)))
    assert [(item.content, item.first) for item in found.repeated(len(numbers) * (gap + 1))] == expected
    assert all(found.name(i * (gap + 1)) == f"n{i}" for i in range(len(numbers)))


# the command

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(place.root)
    place.key.save(place.root / "k", params=SCHEME.params)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dlmt", "encrypt", "source", "store", "--key", "k", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().out

    return run


def test_only_equal_images_are_no_failure(run: Run, place: Place) -> None:
    code, out = run("--duplicates", "drop")
    assert code == 0
    assert "9 inputs = 6 outputs + 3 quarantined (3 of them equal to others)" in out
    assert "  quarantined" not in out
    (place.source / "bad.png").write_text("x")
    code, out = run("--duplicates", "drop", "--on-error", "quarantine", "--overwrite", "--json")
    found = json.loads(out)
    assert (code, found["duplicates"], found["dropped"], len(found["quarantined"])) == (3, 3, 3, 4)


def test_a_dry_run_says_that_it_does_not_look(run: Run) -> None:
    code, out = run("--duplicates", "drop", "--dry-run")
    assert code == 0
    assert "which a dry run does not" in out
