"""`--dry-run`: what it says is what the command then does, to the byte, and it writes nothing."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast import cli
from dlmt_fast.pipeline.estimate import idx_bytes
from dlmt_fast.stores.png import encode_png

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(tmp_path: Path, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process with `--json`, in a directory with a key `k`; gives its code and object."""
    monkeypatch.chdir(tmp_path)
    key.save(tmp_path / "k", params=dlmt.DLMT("mat_mmt").params)

    def run(*words: str) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["dlmt", *words, "--key", "k", "--json"])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, json.loads(capsys.readouterr().out)

    return run


def photos(count: int = 7, bad: int = 0, side: int = 6) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = Path("source", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, (3, side, 9), np.uint8)))
    for i in range(bad):
        Path(f"source/bad{i}.png").write_text("x")


def state() -> dict[str, tuple[int, bytes]]:
    """Every file with its time; folders with theirs."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (Path(), *sorted(Path().rglob("*")))
    }


def same(run: Run, *words: str) -> tuple[Any, Any]:
    """What the dry run and the command itself say, where they have to agree."""
    before = state()
    code, said = run(*words, "--dry-run")
    assert state() == before
    assert said["dry_run"]
    done_code, done = run(*words)
    assert code == done_code
    for name in ("command", "store_id", "kind", "dtype", "inputs", "outputs"):
        assert said[name] == done[name], name
    by_path = [sorted(found["quarantined"], key=lambda item: item["path"]) for found in (said, done)]
    assert by_path[0] == by_path[1]  # a job works in the order of hidden names
    if said["exact"]:
        assert said["output_bytes"] == done["output_bytes"]
    assert said["free_bytes"] > 0
    return said, done


@pytest.mark.parametrize("options", [[], ["--normalize", "none"], ["--size", "4x5", "--shard-size", "3"]], ids=str)
def test_a_folder(options: list[str], run: Run) -> None:
    photos()
    said, _ = same(run, "encrypt", "source", "store", *options)
    assert said["exact"]
    assert said["shapes"] == {"3x4x5" if "--size" in options else "3x6x9": 7}
    assert (said["shards"], said["shards_done"]) == (3 if "--size" in options else 1, 0)
    assert Path(said["owner"]) == Path("k.stores") / said["store_id"]
    back, _ = same(run, "decrypt", "store", "back")
    assert back["exact"]
    assert back["outputs"] == 7


def test_images_of_several_sizes(run: Run) -> None:
    photos(4)
    Path("source/a/tall.png").write_bytes(encode_png(np.zeros((3, 90, 900), np.uint8)))
    said, _ = same(run, "encrypt", "source", "store", "--per-size")
    assert said["shapes"] == {"3x6x9": 4, "3x90x900": 1}
    assert "several sizes" in same(run, "decrypt", "store", "back")[0]["notes"][0]


@pytest.mark.parametrize("kind", ["npy", "idx", "idx.gz"])
def test_arrays(kind: str, run: Run) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7), np.uint8)
    name = {"npy": "images.npy", "idx": "a-idx3-ubyte", "idx.gz": "a-idx3-ubyte"}[kind]
    if kind == "npy":
        np.save(name, pixels)
    else:
        Path(name).write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes())
    said, _ = same(run, "encrypt", name, "out.gz" if kind == "idx.gz" else "out", "--normalize", "none")
    assert said["exact"]
    assert said["shapes"] == {"1x6x7": 5}


def test_a_large_gzip_file_has_more_blocks() -> None:
    """Blocks of 65535 bytes have 5 bytes each in front, the file 18 around them."""
    plain = 16 + 3_000_000
    assert idx_bytes((3000, 10, 100), "uint8", False) == plain
    assert idx_bytes((3000, 10, 100), "uint8", True) == plain + 5 * (plain // 65535 + 1) + 18


def test_other_kinds_say_the_pixels(run: Run) -> None:
    photos()
    said, done = same(run, "encrypt", "source", "store", "--to", "webdataset")
    assert not said["exact"]
    assert said["output_bytes"] == 7 * 3 * 6 * 9 <= done["output_bytes"]


def test_all_that_cannot_be_taken_is_listed(run: Run) -> None:
    photos(4, bad=2)
    code, said = run("encrypt", "source", "store", "--dry-run")
    assert (code, said["refused"], said["inputs"], said["outputs"]) == (1, True, 6, 4)
    assert [item["path"] for item in said["quarantined"]] == ["bad0.png", "bad1.png"]
    assert run("encrypt", "source", "store")[0] == 1
    same(run, "encrypt", "source", "store", "--on-error", "quarantine")


def test_what_is_done_already(run: Run) -> None:
    photos(6)
    words = ("encrypt", "source", "store", "--shard-size", "2")
    run(*words)
    Path("store/dlmt-shard-00001.txt").unlink()
    before = state()
    code, said = run(*words, "--resume", "--dry-run")
    assert (code, said["shards"], said["shards_done"]) == (0, 3, 2)
    assert state() == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("encrypt", "source", "source/in"), "lie inside each other"),
        (("encrypt", "source", "taken"), "taken is not empty"),
        (("encrypt", "source", "store", "--owner", "store/own"), "lies inside the target"),
        (("decrypt", "source", "new"), "has no manifest"),
        (("decrypt", "minmax", "new", "--owner", "elsewhere"), "lacks 1 of 1; --owner DIR names another"),
        (("decrypt", "minmax", "taken"), "taken is not empty"),
    ],
)
def test_what_the_command_refuses(words: tuple[str, ...], text: str, run: Run) -> None:
    photos(2)
    Path("taken").mkdir()
    Path("taken/mine").touch()
    run("encrypt", "source", "minmax", "--normalize", "minmax")
    before = state()
    code, said = run(*words, "--dry-run")
    assert text in said["error"]
    assert state() == before
    assert run(*words)[0] == code


@pytest.mark.parametrize("to", ["folder", "webdataset"])
def test_arrays_that_become_files(run: Run, to: str) -> None:
    Path("source").mkdir()
    np.save("source/train-images.npy", np.random.default_rng(0).integers(0, 256, (25, 6, 5), np.uint8))
    np.save("source/train-labels.npy", np.arange(25) % 3)
    said, _ = same(run, "encrypt", "source", "store", "--to", to, "--shard-size", "10")
    assert (said["shards"], said["outputs"]) == (3, 25)
    same(run, "decrypt", "store", "back")
