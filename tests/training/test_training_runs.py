"""Whole runs: they learn, give the same numbers for a seed, stop and go on to the same bits, and keep secrets."""

from __future__ import annotations

import base64
import csv
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

import dlmt_fast as dlmt
from dlmt_fast import functional
from dlmt_fast.checking import CheckError
from dlmt_fast.errors import BackendError, StoreDamagedError, UsageError
from dlmt_fast.training import (
    Data,
    FiveConvNet,
    ResNet18,
    Split,
    TrainingStopped,
    TrainOptions,
    load_data,
    setup,
    train,
)
from dlmt_fast.training.inputs import Measured, Standardize
from dlmt_fast.training.loop import DivergedError
from dlmt_fast.training.stop import StopRequest

SCHEME = dlmt.DLMT("mat_mmt")
MakeSplit = Callable[..., Split]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning", "ignore:This DataLoader will create"
)


@pytest.fixture
def data(split: MakeSplit) -> Data:
    """400 and 200 images of 1x12x15 in ten classes."""
    return Data("mnist", split(400, (1, 12, 15), 1), split(200, (1, 12, 15), 2), 10, False)


def numbers(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's history without what the clock gave."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in facts["epochs"]]


def saved(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return content


def same_weights(a: Path, b: Path) -> bool:
    x, y = saved(a), saved(b)
    momenta = [state["optimizer"]["state"] for state in (x, y)]
    return all(torch.equal(x["network"][name], y["network"][name]) for name in x["network"]) and all(
        torch.equal(momenta[0][i]["momentum_buffer"], momenta[1][i]["momentum_buffer"]) for i in momenta[0]
    )


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["fiveconv", "resnet18"])
def test_it_learns_plain_and_transformed(
    data: Data, key: dlmt.Key, tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance is 10 %."""
    if network == "resnet18":  # a narrow one: the true one would take minutes
        monkeypatch.setattr(setup, "make_network", lambda name, c, k: ResNet18(c, k, width=8))
    options = TrainOptions(network=network, epochs=3, batch_size=20, lr=0.05, check="all")
    transformed = train(data, tmp_path / "a", options, key, SCHEME)
    plain = train(data, tmp_path / "b", TrainOptions(**{**vars(options), "check": None}))
    print(network, "plain", plain["result"], "transformed", transformed["result"])
    assert plain["result"]["accuracy"] > 0.8
    assert transformed["result"]["accuracy"] > 0.8
    assert transformed["check"]["checked"] == transformed["check"]["calls"] > 60
    assert transformed["check"]["differ"] == 0
    assert plain["settings"]["transform"] == "plain"


def test_bfloat16_learns_too(data: Data, key: dlmt.Key, tmp_path: Path) -> None:
    options = TrainOptions(epochs=3, batch_size=20, lr=0.05, amp=True)
    assert train(data, tmp_path / "a", options, key, SCHEME)["result"]["accuracy"] > 0.8


@pytest.mark.long
def test_compiled_it_learns_too(data: Data, key: dlmt.Key, tmp_path: Path) -> None:
    options = TrainOptions(epochs=3, batch_size=20, lr=0.05, compile=True)
    assert train(data, tmp_path / "a", options, key, SCHEME)["result"]["accuracy"] > 0.8


def test_the_same_seed_gives_the_same_numbers(data: Data, key: dlmt.Key, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
        chosen = {"epochs": 2, "batch_size": 32, "augment": "crop-flip", "seed": 1, "check": "all"} | options
        facts = train(data, tmp_path / name, TrainOptions(**chosen), key, SCHEME)
        return numbers(facts), facts["check"]

    first = run("first")
    assert run("again") == first
    assert run("workers", workers=2) == first
    assert same_weights(tmp_path / "first", tmp_path / "workers")
    assert first[1]["calls"] == first[1]["checked"] == 28  # 2 to measure, 12 steps and 1 test batch an epoch
    assert run("other", seed=2) != first


def test_a_run_leaves_torch_as_it_was(data: Data, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    handler = signal.getsignal(signal.SIGINT)
    train(data, tmp_path / "a", TrainOptions(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_seed_chooses_the_calls_to_check(data: Data, key: dlmt.Key) -> None:
    transform = setup.make_transform(data, TrainOptions(seed=9, check=0.5), key, SCHEME)
    assert transform is not None
    assert (transform._checker.seed, transform._checker.share) == (9, 0.5)


def test_a_fault_of_the_backend_ends_the_run(
    data: Data, key: dlmt.Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = dlmt.backends.get(dlmt.backends.auto().name)
    true = module.affine

    def wrong(images: Any, k: Any, out: Any, bounds: Any, threads: int = 1) -> None:
        true(images, k, out, bounds, threads)
        out.reshape(-1)[64] ^= 1

    monkeypatch.setattr(module, "affine", wrong)
    monkeypatch.setattr(functional, "try_direct", lambda *_: False)
    with pytest.raises(CheckError, match=r"first at index \[0, 0, 4, 4\]"):
        train(data, tmp_path / "a", TrainOptions(epochs=1, check="all"), key, SCHEME)


def test_a_loss_that_is_no_number(data: Data, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="smaller --lr than 1e"):
        train(data, tmp_path / "a", TrainOptions(epochs=2, lr=1e38, momentum=0.0, weight_decay=1.0))


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_log_curve_and_checkpoint(data: Data, key: dlmt.Key, tmp_path: Path) -> None:
    lines: list[str] = []
    steps: list[tuple[int, int]] = []
    options = TrainOptions(epochs=3, batch_size=64, cycle=1, cycle_factor=2)
    facts = train(data, tmp_path / "a", options, key, SCHEME, progress=lambda *at: steps.append(at), say=lines.append)
    assert steps == [(i + 1, 18) for i in range(18)]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    with open(tmp_path / "a" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == facts["epochs"]
    assert [row["lr"] for row in facts["epochs"]] == [0.2, 0.2, pytest.approx(0.1)]
    assert json.loads((tmp_path / "a" / "log.json").read_text()) == json.loads(json.dumps(facts))
    assert facts["result"]["best_accuracy"] == max(row["test_accuracy"] for row in facts["epochs"])
    assert facts["settings"]["network"] == "fiveconv"
    assert facts["settings"]["transform"]["key_fingerprint"] == key.fingerprint
    with PIL.Image.open(tmp_path / "a" / "curve.png") as curve:
        assert curve.format == "PNG"
        assert len(curve.convert("L").getcolors()) > 50
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "checkpoint.pt",
        "curve.png",
        "log.csv",
        "log.json",
    ]


def test_the_logs_test_figures_are_those_of_the_saved_network(data: Data, tmp_path: Path) -> None:
    facts = train(data, tmp_path / "a", TrainOptions(epochs=1))
    network = FiveConvNet()
    network.load_state_dict(saved(tmp_path / "a")["network"])
    measured = Measured(tuple(facts["data"]["mean"]), tuple(facts["data"]["std"]), "")
    with torch.inference_mode():
        logits = network.eval()(Standardize(measured, torch.device("cpu"))(data.test.images))
    loss = torch.nn.functional.cross_entropy(logits, data.test.labels).item()
    assert facts["epochs"][0]["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert facts["result"]["accuracy"] == (logits.argmax(1) == data.test.labels).double().mean().item()


def test_nothing_that_a_run_leaves_or_says_holds_the_secret(
    data: Data, key: dlmt.Key, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = bytes(range(32))
    lines: list[str] = []
    train(data, tmp_path / "a", TrainOptions(epochs=1, check="all", workers=1), key, SCHEME, say=lines.append)
    said = capfd.readouterr()
    texts = [path.read_bytes() for path in (tmp_path / "a").iterdir()]
    texts += [text.encode() for text in (*lines, said.out, said.err)]
    mul = SCHEME.plan(key, (1, 12, 15), "none").coefficients("CHW")
    hidden = [secret, secret.hex().encode(), base64.b64encode(secret), repr(secret).encode()]
    hidden += [bytes(memoryview(array)) for array in vars(mul).values() if hasattr(array, "tobytes") and array.size > 8]
    assert len(hidden) > 4
    assert not [word for word in hidden for text in texts if word in text]


# --- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 7, 12, 17, 24], ids=lambda step: f"step {step} of 3x12")
def test_a_stopped_run_goes_on_to_the_same_bits(
    data: Data, key: dlmt.Key, tmp_path: Path, step: int, number: signal.Signals
) -> None:
    options = TrainOptions(epochs=3, batch_size=32, augment="crop")
    whole = train(data, tmp_path / "whole", options, key, SCHEME)
    folder = tmp_path / "stopped"

    def interrupt(done: int, total: int) -> None:
        assert total == 36
        if done == step:
            os.kill(os.getpid(), number)

    with pytest.raises(TrainingStopped, match=r"checkpoint\.pt holds the state: the same command with --resume"):
        train(data, folder, options, key, SCHEME, progress=interrupt)
    content = saved(folder)
    assert content["epoch"] * 12 + content["step"] == step
    steps: list[int] = []
    resumed = train(data, folder, options, key, SCHEME, True, lambda done, total: steps.append(done))
    assert steps == list(range(step + 1, 37))
    assert numbers(resumed) == numbers(whole)
    assert same_weights(folder, tmp_path / "whole")


def test_a_second_interrupt_does_not_wait() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_in_another_thread(data: Data, tmp_path: Path) -> None:
    found: list[Any] = []
    options = TrainOptions(epochs=1)
    thread = threading.Thread(target=lambda: found.append(train(data, tmp_path / "a", options)))
    thread.start()
    thread.join()
    assert len(found) == 1


@pytest.fixture
def finished(data: Data, key: dlmt.Key, tmp_path: Path) -> Path:
    train(data, tmp_path / "run", TrainOptions(epochs=1), key, SCHEME)
    return tmp_path / "run"


def test_a_finished_run_has_nothing_left_to_do(data: Data, key: dlmt.Key, finished: Path) -> None:
    before = json.loads((finished / "log.json").read_text())
    facts = train(data, finished, TrainOptions(epochs=1), key, SCHEME, resume=True)
    assert json.loads(json.dumps(facts)) == before


def test_only_the_same_run_is_resumed(data: Data, split: MakeSplit, key: dlmt.Key, finished: Path) -> None:
    with pytest.raises(UsageError, match=r"lr was 0\.2, now 0\.1.*Repeat the first command"):
        train(data, finished, TrainOptions(epochs=1, lr=0.1), key, SCHEME, resume=True)
    with pytest.raises(UsageError, match="transform was"):
        train(data, finished, TrainOptions(epochs=1), dlmt.Key(bytes(32)), SCHEME, resume=True)
    other = Data("mnist", split(400, (1, 12, 15), 7), data.test, 10, False)
    with pytest.raises(UsageError, match="data_sha256 was"):
        train(other, finished, TrainOptions(epochs=1), key, SCHEME, resume=True)


def test_another_machine_is_named(data: Data, key: dlmt.Key, finished: Path) -> None:
    lines: list[str] = []
    torch.set_num_threads(2)
    train(data, finished, TrainOptions(epochs=1), key, SCHEME, resume=True, say=lines.append)
    assert "threads 1 -> 2" in lines[0]


def test_folders_that_are_taken_or_empty(data: Data, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not empty; choose another --out, or go on .* --resume"):
        train(data, finished, TrainOptions(epochs=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"is not empty; choose another --out$"):
        train(data, tmp_path / "file", TrainOptions(epochs=1))
    with pytest.raises(UsageError, match="without --resume a new run begins"):
        train(data, tmp_path / "new", TrainOptions(epochs=1), resume=True)


@pytest.mark.parametrize("content", [b"", b"text", None], ids=["empty", "text", "cut"])
def test_a_damaged_checkpoint(data: Data, key: dlmt.Key, finished: Path, content: bytes | None) -> None:
    path = finished / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(StoreDamagedError, match="damaged or no checkpoint"):
        train(data, finished, TrainOptions(epochs=1), key, SCHEME, resume=True)


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("what", [Harm(), {"format": "dlmt-train", "version": 2}, [1]], ids=["code", "version", "list"])
def test_a_checkpoint_that_is_none_of_ours(
    what: Any, data: Data, key: dlmt.Key, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(what, finished / "checkpoint.pt")
    with pytest.raises(StoreDamagedError, match="no checkpoint"):
        train(data, finished, TrainOptions(epochs=1), key, SCHEME, resume=True)
    assert not (tmp_path / "harm").exists()


# --- wrong use -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_together(data: Data, key: dlmt.Key, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="go together"):
        train(data, tmp_path / "a", TrainOptions(), key)
    with pytest.raises(UsageError, match="there is no key; leave them out"):
        train(data, tmp_path / "a", TrainOptions(check="all"))
    with pytest.raises(UsageError, match="400 training images fill no batch of 512"):
        train(data, tmp_path / "a", TrainOptions(batch_size=512))
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(data: Data, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="sees no CUDA device"):
        train(data, tmp_path / "a", TrainOptions(device="cuda"))


def test_without_matplotlib_a_run_does_not_begin(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(BackendError, match=r"dlmt-fast\[train\]"):
        train(data, tmp_path / "a", TrainOptions(epochs=1))


def test_loaded_from_disk(idx: Path, key: dlmt.Key, tmp_path: Path) -> None:
    facts = train(load_data(idx, "mnist"), tmp_path / "a", TrainOptions(epochs=1, batch_size=50), key, SCHEME)
    assert facts["data"]["steps_per_epoch"] == 4
