"""What running commands show: numbers, the live line, lines of text, and when nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import dlmt_fast as dlmt
from dlmt_fast.cli import progress
from dlmt_fast.errors import ParameterError
from dlmt_fast.pipeline import JobOptions, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.summary import Standing, Tally, counter
from dlmt_fast.stores.png import encode_png


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress.Meter.__init__, "__defaults__", (0, clock))
    monkeypatch.setattr(progress._lines, "__defaults__", (clock,))
    return clock


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Where messages go, in place of a file or pipe."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda: Console(file=text, soft_wrap=True, force_terminal=False))
    return text


def test_speeds_are_those_of_the_last_half_minute(clock: Clock) -> None:
    meter = progress.Meter("encrypt", 2)
    assert meter.numbers() == "looking at what is there"
    meter.update(Standing(7, 5000, 0, 0, "compared"))
    assert meter.numbers().startswith("7 of 5000 images compared, ")
    meter.update(Standing(0, 5000, 0, 0))
    meter.update(Standing(1000, 5000, 0, 0))  # done by an earlier run: no speed
    for second in range(1, 41):
        clock.now += 1
        images = 10 * second if second <= 10 else 100 + 20 * (second - 10)
        meter.update(Standing(1000 + images, 5000, 1000 * images, 3))
    assert meter.rates() == (20.0, 20000.0)
    assert meter.numbers() == ("1700 of 5000 images, 20 images/s, 0.0 MB/s, 0:02:45 left, 2 workers, 3 quarantined")
    meter.update(Standing(1000, 5000, 0, 3))  # a worker died, and all of its shard is done again
    assert meter.rates() == (0.0, 0.0)


def test_a_line_every_ten_seconds(clock: Clock, stderr: io.StringIO) -> None:
    with progress.shown("encrypt", "auto", as_json=False) as show:
        for done in range(500):
            show(Standing(done, 500, done * 1_000_000, 0))
            clock.now += 0.0625
    lines = stderr.getvalue().splitlines()
    assert [line.split(" of")[0] for line in lines] == ["encrypt: 160", "encrypt: 320", "encrypt: 480"]
    assert lines[0] == "encrypt: 160 of 500 images, 16 images/s, 16.0 MB/s, 0:00:21 left"


@pytest.mark.parametrize(("mode", "as_json", "lines"), [("auto", True, 0), ("none", False, 0), ("plain", True, 2)])
def test_when_nothing_is_shown(mode: str, as_json: bool, lines: int, clock: Clock, stderr: io.StringIO) -> None:
    with progress.shown("verify", mode, as_json) as show:
        for done in (0, 1, 2):
            show(Standing(done, 2, done, 0))
            clock.now += 11
    assert stderr.getvalue().count("\n") == lines


def test_an_unknown_mode_is_refused() -> None:
    with (
        pytest.raises(ParameterError, match="--progress must be one of auto, plain, none, got 'bar'"),
        progress.shown("encrypt", "bar", False),
    ):
        raise AssertionError


def test_the_live_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, width=120, legacy_windows=False, _environ={})
    monkeypatch.setattr(progress, "console", lambda: terminal)
    with progress.shown("encrypt", "auto", as_json=True, workers=4) as show:
        for done in (0, 30):
            show(Standing(done, 60, done, 0))
            clock.now += 1
    assert "encrypt" in text.getvalue()
    assert "30 of 60 images, 15 images/s, 0.0 MB/s, 0:00:02 left, 4 workers" in text.getvalue()


def test_work_that_is_taken_back() -> None:
    seen: list[Standing] = []
    tally = Tally(counter(seen.append, 9))
    tally(4, 400), tally(1, refused=1), tally.take_back(), tally.take_back(), tally(2, 200)
    assert seen == [
        Standing(*numbers)
        for numbers in [(0, 9, 0, 0), (4, 9, 400, 0), (5, 9, 400, 1), (0, 9, 0, 0), (0, 9, 0, 0), (2, 9, 200, 0)]
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_counts_of_each_command(workers: int, tmp_path: Path, key: dlmt.Key) -> None:
    (tmp_path / "source").mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (3, 8, 8), np.uint8)
        (tmp_path / "source" / f"{i}.png").write_bytes(encode_png(pixels))
    (tmp_path / "source" / "bad.png").write_text("x")
    seen: list[Standing] = []
    options = JobOptions(on_error="quarantine", shard_size=3, workers=workers)
    store, owner = tmp_path / "store", lambda store_id: tmp_path / "own" / store_id
    encrypt_store(tmp_path / "source", store, key, dlmt.DLMT("mat"), owner, options, progress=seen.append)
    assert (seen[0], seen[-1]) == (Standing(0, 7, 0, 0), Standing(7, 7, 6 * 192, 1))
    assert [now.done for now in seen] == sorted(now.done for now in seen)
    encrypt_store(
        tmp_path / "source", store, key, dlmt.DLMT("mat"), owner,
        JobOptions(on_error="quarantine", shard_size=3, resume=True), progress=seen.append,
    )  # fmt: skip
    assert seen[-1] == Standing(7, 7, 0, 0)
    size = sum(path.stat().st_size for path in store.glob("*.png"))
    verify_store(store, progress=seen.append)
    assert seen[-1] == Standing(6, 6, size, 0)
    decrypt_store(store, tmp_path / "back", key, owner, progress=seen.append)
    assert seen[-1] == Standing(6, 6, 6 * 192, 0)
