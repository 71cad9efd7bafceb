"""What stops a job from outside, with the real command: signals, permissions, a source that vanishes, a full disk.
Each time it ends with a message and its exit code, leaves nothing half-written, and goes on with `--resume` to the
bytes that an undisturbed run gives.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, encrypt_store, verify_store
from dlmt_fast.stores.png import encode_png

SCHEME = dlmt.DLMT("mat_mmt")
MAIN = "from dlmt_fast.cli import main; main()"
WORDS = ("encrypt", "source", "store", "--key", "k", "--shard-size", "5", "--progress", "none")
SIZE = 8

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses Linux's signals, mounts and rights")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Place:
    """A folder of images, a key, and the command run beside them."""

    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source, self.store = root, key, root / "source", root / "store"
        key.save(root / "k", params=SCHEME.params)

    def fill(self, count: int, side: int = SIZE) -> None:
        rng = np.random.default_rng(0)
        for i in range(count):
            path = self.source / "ab"[i % 2] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(rng.integers(0, 256, (3, side, side), np.uint8)))

    def run(self, *words: str, program: str = MAIN, before: tuple[str, ...] = ()) -> Ended:
        command = [*before, sys.executable, "-c", program, *(words or (*WORDS, "--workers", "2"))]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def owner(self, store_id: str) -> Path:
        return self.root / "k.stores" / store_id

    def files(self) -> dict[str, bytes]:
        """The store's files but the manifest, whose sealed header has a fresh nonce."""
        found = {p.relative_to(self.store).as_posix(): p for p in self.store.rglob("*") if p.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if name != "dlmt-store.json"}

    def leftovers(self) -> list[Path]:
        return [*self.store.rglob(".tmp-*"), *(self.root / "k.stores").rglob(".tmp-*")]

    def goes_on(self) -> None:
        """`--resume` ends the job with the bytes of an undisturbed run."""
        assert self.leftovers() == []
        assert not (self.store / "dlmt-store.json").exists()
        ended = self.run(*WORDS, "--workers", "2", "--resume")
        assert (ended.code, ended.err) == (0, "")
        verify_store(self.store, self.key, self.owner)
        resumed = self.files()
        undisturbed = self.root / "undisturbed"
        own = self.root / "own"
        encrypt_store(self.source, undisturbed, self.key, SCHEME, lambda _: own, JobOptions(shard_size=5))
        self.store = undisturbed
        assert self.files() == resumed


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


# signals


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly(number: signal.Signals, workers: str, place: Place) -> None:
    """Ctrl-C reaches every process of the terminal, a termination the command alone."""
    place.fill(1500)
    command = [sys.executable, "-c", MAIN, *WORDS, "--workers", workers]
    with subprocess.Popen(
        command, cwd=place.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as job:
        until = time.monotonic() + 60
        while not list(place.root.glob("k.stores/*/journal-*")):
            assert job.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        (os.killpg if number == signal.SIGINT else os.kill)(job.pid, number)
        out, err = job.communicate(timeout=60)
    lines = err.splitlines()
    assert (job.returncode, out, len(lines)) == (128 + number, "", 2), err
    assert "of 300 shards are done and stay" in lines[0]
    assert "the same command with --resume goes on" in lines[0]
    assert lines[1] == f"dlmt: stopped by {number.name}"
    place.goes_on()


def test_an_interrupt_while_workers_start(place: Place) -> None:
    """They have not begun to ignore it themselves."""
    place.fill(20)
    for delay in (0.0, 0.1, 0.2):
        command = [sys.executable, "-c", MAIN, *WORDS, "--workers", "2", "--resume"]
        with subprocess.Popen(
            command, cwd=place.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as job:
            while job.poll() is None and not list(place.store.glob(".dlmt-job")):
                time.sleep(0.005)
            time.sleep(delay)
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGINT)
            _, err = job.communicate(timeout=60)
        assert "Traceback" not in err, err
        assert "KeyboardInterrupt" not in err, err
        if job.returncode == 0:
            return
        assert err.splitlines()[-1] == "dlmt: stopped by SIGINT"
    assert place.leftovers() == []


# rights


@pytest.fixture
def unprivileged() -> tuple[str, ...]:
    """What to put before a command so that the rights of files hold for it: root may read and write anything."""
    if os.geteuid() != 0:
        return ()
    rights = "-dac_override,-dac_read_search"
    words = ("setpriv", f"--inh-caps={rights}", f"--bounding-set={rights}")
    if shutil.which("setpriv") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("runs as root, whom no file denies anything, and setpriv cannot take that away")
    return words


@pytest.mark.parametrize("what", ["target", "file", "folder", "owner"])
def test_denied_permission_names_the_place(what: str, unprivileged: tuple[str, ...], place: Place) -> None:
    place.fill(10)
    (place.root / "own").mkdir()
    words = [*WORDS, "--workers", "2", "--owner", "own"]
    if what == "target":
        (place.root / "shut").mkdir()
        words[2], place.store = "shut/store", place.root / "shut" / "store"
    denied, mode = {
        "target": (place.root / "shut", 0o555),
        "file": (place.source / "b" / "0003.png", 0o000),
        "folder": (place.source / "b", 0o000),
        "owner": (place.root / "own", 0o555),
    }[what]
    before = denied.stat().st_mode
    denied.chmod(mode)
    ended = place.run(*words, before=unprivileged)
    denied.chmod(before)
    assert (ended.code, ended.out) == (1, "")
    assert f"Permission denied: '{denied.relative_to(place.root)}" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not place.store.exists()
    assert place.run(*words, before=unprivileged).code == 0  # nothing is in the way


# a source that vanishes


VANISH = (
    """
import os, pathlib
from dlmt_fast.stores.folder import FolderSource
survey = FolderSource.survey
def then_gone(self):
    found = survey(self)
    os.rename({path!r}, "away")
    return found
FolderSource.survey = then_gone
"""
    + MAIN
)


@pytest.mark.parametrize("gone", ["source/b/0007.png", "source/b", "source"])
def test_a_source_that_vanishes_is_named(gone: str, place: Place) -> None:
    place.fill(20)
    words = (*WORDS, "--workers", "1")
    started = time.monotonic()
    ended = place.run(*words, program=VANISH.format(path=gone))
    assert time.monotonic() - started > 0.9  # two pauses: it may come back
    assert (ended.code, ended.out) == (1, "")
    assert re.search(rf"No such file or directory: '{gone}[a-z0-9./]*'\n$", ended.err), ended.err
    os.rename(place.root / "away", place.root / gone)
    place.goes_on()


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk needs root, and a place that allows it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("full", ["target", "owner"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_named(full: str, workers: str, small_disk: Path, place: Place) -> None:
    place.fill(100, 64)
    if full == "target":
        (place.root / "store").symlink_to("disk/store")
        (small_disk / "store").mkdir()
    else:
        (small_disk / "own").mkdir()
        (place.root / "k.stores").symlink_to("disk/own")
        filler = small_disk / "filler"
        filler.write_bytes(bytes((1 << 20) - 16 * 4096))
    ended = place.run(*WORDS, "--workers", workers)
    assert (ended.code, ended.out) == (1, "")
    lines = ended.err.splitlines()
    assert "shards are done and stay" in lines[0], ended.err
    assert lines[1].startswith("dlmt: [Errno 28] No space left on device: ")
    assert ("'store" if full == "target" else "'k.stores/") in lines[1]
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    place.goes_on()
