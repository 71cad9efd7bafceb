"""`dlmt train`: exit codes, JSON, messages, and Ctrl-C as a terminal sends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dlmt_fast import cli


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, idx: Path) -> Run:
    """The command in this process, beside a key `k` and the data set `plain-idx`."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["dlmt", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        return Done(code, *capsys.readouterr())

    assert run("keygen", "k").code == 0
    return run


ON_THE_FLY = ("train", "--data", "plain-idx", "--dataset", "mnist", "--out", "run")
SHORT = ("--epochs", 2, "--batch-size", 50, "--seed", 4)


def test_on_the_fly_and_from_a_store(run: Run) -> None:
    done = run(*ON_THE_FLY, *SHORT, "--key", "k", "--mode", "mat_mmt", "--check", "all", "--json")
    assert done.code == 0, done.err
    ours = json.loads(done.out)
    assert ours["check"]["differ"] == 0 < ours["check"]["values"]
    assert "epoch 2/2" in done.err
    assert run("encrypt", "plain-idx", "store", "--key", "k").code == 0
    done = run("train", "--data", "store", "--dataset", "mnist", "--out", "run2", *SHORT)
    assert done.code == 0, done.err
    assert done.out.startswith("test accuracy ")
    assert "run2/curve.png" in done.out
    theirs = json.loads(Path("run2/log.json").read_text())
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert [row[name] for row in ours["epochs"]] == [row[name] for row in theirs["epochs"]]
    assert ours["settings"]["data_sha256"] == theirs["settings"]["data_sha256"]


def test_every_option_arrives(run: Run) -> None:
    done = run(
        *ON_THE_FLY, "--mode", "plain", "--network", "fiveconv", "--epochs", 3, "--batch-size", 20, "--lr", 0.1,
        "--momentum", 0.8, "--weight-decay", 0.001, "--cycle", 1, "--cycle-factor", 2, "--seed", 9, "--subset", 60,
        "--augment", "crop", "--device", "cpu", "--amp", "--no-deterministic", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    facts: Any = json.loads(done.out)
    settings = facts["settings"]
    del settings["data_sha256"]
    assert settings == {
        "dataset": "mnist",
        "network": "fiveconv",
        "epochs": 3,
        "batch_size": 20,
        "lr": 0.1,
        "momentum": 0.8,
        "weight_decay": 0.001,
        "cycle": 1,
        "cycle_factor": 2,
        "seed": 9,
        "subset": 60,
        "augment": "crop",
        "amp": True,
        "compile": False,
        "deterministic": False,
        "transform": "plain",
    }
    assert (facts["data"]["train_images"], facts["data"]["test_images"]) == (60, 60)
    assert [row["lr"] for row in facts["epochs"]] == [0.1, 0.1, pytest.approx(0.05)]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "--key KEYFILE (dlmt keygen makes one), or not: --mode plain"),
        (("--key", "nokey"), 1, "there is no key file nokey"),
        (("--mode", "plain", "--key", "k"), 2, "--mode plain transforms nothing: leave --key out"),
        (("--mode", "mmt", "--key", "k"), 2, "k is a key for mode mat_mmt, not mmt. Leave --mode out, or make"),
        (("--max-v-add", 5, "--key", "k"), 2, "k is a key for max_v_add 256, not 5"),
        (("--check", "some", "--key", "k"), 2, "--check takes a share such as 0.01, or all"),
        (("--check", "2", "--key", "k"), 2, "the share of calls to check must be over 0 and at most 1"),
        (("--mode", "plain", "--check", "all"), 2, "there is no key; leave them out"),
        (("--mode", "plain", "--lr", "-1"), 2, "lr must be finite and over 0"),
        (("--mode", "plain", "--dataset", "svhn"), 2, "there is no data set 'svhn'"),
        (
            ("--mode", "plain", "--data", "nowhere"),
            1,
            "nowhere does not exist; --data takes a folder with ",
        ),
        (("--mode", "plain", "--resume"), 2, "without --resume a new run begins"),
    ],
)
def test_wrong_use_says_what_to_do(run: Run, words: tuple[object, ...], code: int, message: str) -> None:
    done = run(*ON_THE_FLY, *SHORT, *words)
    assert done.code == code
    assert message in done.err
    assert not Path("run").exists()
    done = run(*ON_THE_FLY, *SHORT, *words, "--json")
    assert json.loads(done.out)["exit_code"] == code


@pytest.mark.parametrize(
    ("words", "named"),
    [(("--key", "k"), "--key"), (("--mode", "plain"), "--mode"), (("--key", "k", "--rise-v", 0), "--key, --rise-v")],
)
def test_a_store_takes_no_key(run: Run, words: tuple[object, ...], named: str) -> None:
    assert run("encrypt", "plain-idx", "store", "--key", "k").code == 0
    done = run(*ON_THE_FLY, *SHORT, "--data", "store", *words)
    assert done.code == 2
    assert f"transformed already: leave {named} out" in done.err


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_ctrl_c_leaves_a_checkpoint_and_the_run_goes_on(run: Run, start: str) -> None:
    """A terminal sends SIGINT to the command and its workers alike; a spawned one has Python's own handlers."""
    words = [*ON_THE_FLY, "--batch-size", 50, "--key", "k", "--workers", 1, "--epochs"]
    program = (
        "import multiprocessing, sys; multiprocessing.set_start_method(sys.argv.pop(1)); from dlmt_fast import cli"
    )
    command = [sys.executable, "-c", f"{program}; cli.main()", start, *map(str, words), "100000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while not Path("run/log.csv").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "run/checkpoint.pt holds the state: the same command with --resume goes on from there" in err.replace(
        "\n", ""
    )
    assert "Traceback" not in err
    assert out == ""
    assert run(*words, 2, "--resume").code == 2  # another number of epochs is another run
