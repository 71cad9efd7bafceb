"""The engines of a job, local processes and Ray: killed workers, failing disks, and a driver that dies."""

from __future__ import annotations

import base64
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import BackendError, ParameterError, SecretExportError, StoreError
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, ray_engine, verify_store
from dlmt_fast.pipeline.job import versions
from dlmt_fast.pipeline.task import JobContext
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import OS, FileOps

SCHEME = dlmt.DLMT("mat_mmt")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")


class Place:
    """A source of `count` images, the third of them damaged, and jobs on it in this process."""

    def __init__(self, root: Path, key: dlmt.Key, count: int) -> None:
        self.root, self.key, self.source = root, key, root / "source"
        rng = np.random.default_rng(0)
        for i in range(count):
            (self.source / f"{i % 3}").mkdir(parents=True, exist_ok=True)
            data = encode_png(rng.integers(0, 256, (3, 8, 8), np.uint8))
            (self.source / f"{i % 3}" / f"{i}.png").write_bytes(data[:-40] if i == 2 else data)

    def encrypt(self, target: str, ops: FileOps = OS, **options: Any) -> Summary:
        chosen = JobOptions(shard_size=4, on_error="quarantine", **options)
        return encrypt_store(self.source, self.root / target, self.key, SCHEME, self.owner(target), chosen, ops=ops)

    def owner(self, target: str) -> Any:
        return lambda _: self.root / f"own-{target}"

    def files(self, target: str) -> dict[str, bytes]:
        """A store without the manifest, whose sealed header has a fresh nonce."""
        store = self.root / target
        found = (path for path in store.rglob("*") if path.is_file() and path.name != "dlmt-store.json")
        return {path.relative_to(store).as_posix(): path.read_bytes() for path in found}

    def owned(self, target: str) -> set[str]:
        return {path.name for path in (self.root / f"own-{target}").iterdir()}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's own files, with a path that is short enough for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def run_lethal(engine: str, place: Place, kills: int, *more: str) -> dict[str, Any]:
    words = [sys.executable, str(Path(__file__).with_name("lethal.py")), engine, str(place.root), str(kills), *more]
    # Ray's workers look for packages in the current folder first: not in the checkout, which has no compiled modules
    done = subprocess.run(words, capture_output=True, check=False, cwd=place.root)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line[:1] == b"{"][-1])
    return found


def check_lethal(place: Place, found: dict[str, Any], kills: int) -> None:
    """Killed, failed and resumed jobs all end with the bytes of one that nothing happened to."""
    assert len(list((place.root / "deaths").glob("any-*"))) == kills
    whole = place.encrypt("whole")
    inputs = whole.inputs
    for run in (found["first"], found["again"]):
        assert (run["inputs"], run["outputs"], len(run["quarantined"])) == (inputs, inputs - 1, 1)
        assert run["quarantined"] == whole.quarantined
    for target in ("one", "two"):
        assert place.files(target) == place.files("whole")
        assert place.owned(target) == place.owned("whole")
        verify_store(place.root / target, place.key, place.owner(target))
    assert len(list((place.root / "fatal").glob("any-*"))) == 3
    assert found["left"] == []
    assert "shards are done and stay" in found["told"][0]
    assert "--resume goes on" in found["told"][0]
    assert "were done already" in " ".join(found["again"]["notes"])


@LINUX
def test_killed_workers_of_the_local_engine(tmp_path: Path, key: dlmt.Key) -> None:
    place = Place(tmp_path, key, 120)
    found = run_lethal("local", place, 5)
    assert "shard 4 ended 3 workers, the last by signal 9; signal 9 is most often too little memory" in found["error"]
    check_lethal(place, found, 5)


@LINUX
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.long)])
def test_killed_workers_of_ray(kills: int, tmp_path: Path, key: dlmt.Key, ray_folder: Path) -> None:
    pytest.importorskip("ray")
    place = Place(tmp_path, key, 120 if kills == 5 else 1000)
    found = run_lethal("ray", place, kills, str(ray_folder))
    assert "shard 4 ended 3 workers of Ray" in found["error"]
    check_lethal(place, found, kills)
    secret = key._secret
    forms = [secret, secret.hex().encode(), base64.b64encode(secret), base64.b85encode(secret)]
    logs = [path for path in ray_folder.rglob("*") if path.is_file()]
    assert any(b"dlmt-shard-" in path.read_bytes() for path in logs)  # they do tell of the tasks
    for path in logs:
        assert not [form for form in forms if form in path.read_bytes()], path


def ended(pids: list[int]) -> bool:
    """Whether processes are gone; one that nobody has waited for is."""

    def gone(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except FileNotFoundError:
            return True

    return all(gone(pid) for pid in pids)


def is_agent(pid: int) -> bool:
    try:
        return b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread or process that has just ended
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def job_on_ray(place: Place, key: dlmt.Key, ray_folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The command over 100 shards, one image of which is quarantined, and how to start it."""
    key.save(place.root / "k", params=SCHEME.params)
    line = ["encrypt", "source", "one", "--key", "k", "--owner", "own-one", "--shard-size", "4", "--engine", "ray"]
    line += ["--on-error", "quarantine", "--workers", "2", "--json"]
    command = [sys.executable, "-c", "from dlmt_fast.cli import main; main()", *line]
    return command, {"cwd": place.root, "env": os.environ | {"RAY_TMPDIR": str(ray_folder)}}


@LINUX
@pytest.mark.long
def test_a_killed_driver_of_ray_is_resumed(tmp_path: Path, key: dlmt.Key, ray_folder: Path) -> None:
    pytest.importorskip("ray")
    place = Place(tmp_path, key, 400)
    command, how = job_on_ray(place, key, ray_folder)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how) as driver:
        wait_until(lambda: len(list((tmp_path / "own-one").glob("journal-*"))) > 5 or driver.poll(), "no shard is done")
        started = descendants(driver.pid)
        driver.kill()
    assert started
    done = len(list((tmp_path / "own-one").glob("journal-*")))
    assert 5 < done < 100
    workers = [pid for pid in started if not is_agent(pid)]
    assert len(workers) < len(started)
    wait_until(lambda: ended(workers), "workers of Ray outlive the driver")
    for pid in started:
        if not ended([pid]):  # Ray leaves its agents for a minute
            os.kill(pid, signal.SIGKILL)
    again = subprocess.run([*command, "--resume"], capture_output=True, check=False, **how)
    assert again.returncode == 3, again.stderr.decode()  # one image is quarantined
    answer = json.loads(again.stdout)
    assert (answer["inputs"], answer["outputs"]) == (400, 399)
    assert "of 100 shards were done already" in " ".join(answer["notes"])
    place.encrypt("whole")
    assert place.files("one") == place.files("whole")
    verify_store(tmp_path / "one", key, place.owner("one"))


@LINUX
@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_job_of_ray_is_resumed(
    signum: signal.Signals, tmp_path: Path, key: dlmt.Key, ray_folder: Path
) -> None:
    pytest.importorskip("ray")
    place = Place(tmp_path, key, 400)
    command, how = job_on_ray(place, key, ray_folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how) as driver:
        wait_until(lambda: len(list((tmp_path / "own-one").glob("journal-*"))) > 5 or driver.poll(), "no shard is done")
        driver.send_signal(signum)
        _, words = driver.communicate(timeout=60)
    assert driver.returncode == 128 + signum
    assert b"--resume goes on" in b" ".join(words.split())
    assert not list((tmp_path / "one").rglob(".tmp-*"))
    assert not (tmp_path / "one" / "dlmt-store.json").exists()
    again = subprocess.run([*command, "--resume"], capture_output=True, check=False, **how)
    assert again.returncode == 3, again.stderr.decode()  # one image is quarantined
    place.encrypt("whole")
    assert place.files("one") == place.files("whole")


def test_a_missing_ray_is_named(tmp_path: Path, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    place = Place(tmp_path, key, 4)
    with pytest.raises(BackendError, match=r'--engine ray needs .* pip install "dlmt-fast\[ray\]"'):
        place.encrypt("one", engine="ray")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_options_of_engines() -> None:
    with pytest.raises(ParameterError, match="engine must be one of local, ray, got 'dask'"):
        JobOptions(engine="dask")
    with pytest.raises(ParameterError, match="goes with engine ray"):
        JobOptions(address="auto")
    with pytest.raises(ParameterError, match="workers must be a number"):
        JobOptions(workers=None)
    assert JobOptions(engine="ray", address="auto", workers=None).workers is None


def test_a_worker_of_ray_with_other_versions_is_refused(tmp_path: Path, key: dlmt.Key) -> None:
    other = versions() | {"pillow": "0.1"}
    job = JobContext(
        key, SCHEME, JobOptions(), "0" * 32, "folder", "uint8", tmp_path, None, 1, 1, versions=other
    )  # fmt: skip
    task: Any = None
    refused = ray_engine.do_shard(ray_engine._Shared("token", job), task)
    assert isinstance(refused, StoreError)
    assert "(pillow 0.1 in the job record, " in str(refused)


def test_what_tasks_share_shows_nothing_and_stays(key: dlmt.Key) -> None:
    job: Any = key
    shared = ray_engine._Shared("token", job)
    assert repr(shared).startswith("<dlmt_fast.pipeline.ray_engine._Shared object at ")
    with pytest.raises(SecretExportError):
        pickle.dumps(shared)


class FailingDisk(FileOps):
    """Renaming files of shard 1 fails the first `times` times, as on a device that may come back. One failure ends an
    attempt, where files that are written by several threads might see several."""

    def __init__(self, times: int) -> None:
        self.times = times

    def rename(self, old: Path, new: Path) -> None:
        if "-00001-" in old.name and self.times:
            self.times -= 1
            raise OSError(errno.EIO, "input/output error", str(old))
        super().rename(old, new)


def test_a_failing_disk_is_tried_again_and_counted(
    tmp_path: Path, key: dlmt.Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlmt_fast.stores.attempts._PAUSE", 0.0)
    place = Place(tmp_path, key, 12)
    whole = place.encrypt("whole")
    assert place.encrypt("one", FailingDisk(2)).as_dict()["outputs"] == whole.outputs
    tries = [json.loads((tmp_path / "own-one" / f"journal-0000{i}.json").read_text())["attempt"] for i in range(3)]
    assert tries == [1, 3, 1]
    assert place.files("one") == place.files("whole")
    with pytest.raises(OSError, match="input/output error") as failure:
        place.encrypt("two", FailingDisk(3))
    assert failure.value.errno == errno.EIO
    assert place.owned("two") >= {"journal-00000.json"}
    assert not list(tmp_path.rglob(".tmp-*"))
    assert "1 of 3 shards were done already" in place.encrypt("two", resume=True).notes[0]
    assert place.files("two") == place.files("whole")
