"""`train`: a data set, options and perhaps a key become a trained network, a log and a curve in one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..keys import Key
from ..schemes import DLMT
from ..transforms import Encrypt
from . import checkpoint
from .batches import Batches, TrainKeys, choose, in_order, loader
from .datasets import Data
from .inputs import Standardize, measure
from .log import draw_curve, require_plotting, write_log
from .loop import Loop, Progress
from .options import TrainOptions
from .setup import choose_device, describe_machine, equal_bits, make_transform, seeded_network, settings_of
from .stop import StopRequest, TrainingStopped

_TEST_BATCH = 500
Say = Callable[[str], None]


def train(
    data: Data,
    out: Path | str,
    options: TrainOptions,
    key: Key | None = None,
    scheme: DLMT | None = None,
    resume: bool = False,
    progress: Progress = lambda done, total: None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Train a network on a data set, test it after every epoch, and leave log, curve and checkpoint in a folder.

    Plain images are augmented, then transformed batch by batch with `key` and `scheme`, as their owner would; without a
    key they stay plain. Images of a store are taken as they are. Either way every channel is then brought to mean 0 and
    deviation 1. A store and its source give the same batches, bit for bit, where they have the same images in the same
    order (always for IDX files; `--names keep` for folders), normalize, dtype, seed, batch size, and no augmentation.

    Args:
        data: from `load_data`.
        out: the run's folder: new, empty, or with `resume` the folder of a stopped run with the same settings.
        options: how to train.
        key, scheme: both for images to transform, else neither.
        resume: go on from the checkpoint in `out`.
        progress: called with (steps done, steps in all).
        say: called with a line of text now and then.

    Returns:
        The content of `out`/log.json: settings, machine, data, result, check (or None), epochs.

    Raises:
        UsageError: data, options and key do not fit, or `out` is not empty.
        BackendError: the device or a package is missing.
        TrainingStopped: Ctrl-C or SIGTERM came; the checkpoint is written.
        CheckError: with `options.check`, a value differs from the reference.
        DivergedError: the loss is no number any more.
    """
    folder, device = Path(out), choose_device(options.device)
    transform = make_transform(data, options, key, scheme)
    require_plotting()
    if not resume:
        _refuse_taken(folder)
    saved = checkpoint.load(folder) if resume else None
    settings, machine = settings_of(data, options, key, scheme), describe_machine(device)
    facts: dict[str, Any] = {"settings": settings, "machine": machine, "check": None}
    with _checked(None if options.check is None else transform, facts, say), equal_bits(options.deterministic, device):
        parts = [choose(part, options.seed, options.subset) for part in (data.train, data.test)]
        steps = len(parts[0]) // options.batch_size
        if not steps:
            raise UsageError(
                f"{len(parts[0])} training images fill no batch of {options.batch_size}; use a smaller --batch-size"
            )
        measured = measure(*(Batches(part, transform) for part in parts))
        settings["data_sha256"] = measured.sha256
        facts["data"] = {"train_images": len(parts[0]), "test_images": len(parts[1]), "classes": data.classes}
        facts["data"] |= {"steps_per_epoch": steps, "mean": list(measured.mean), "std": list(measured.std)}
        network = seeded_network(settings["network"], len(measured.mean), data.classes, options.seed)
        loop = Loop(network, Standardize(measured, device), options, device, steps)
        if saved is not None:
            _restore(folder, loop, saved, facts, say)
        train_part = Batches(parts[0], transform, options.augment, options.seed)
        _run(folder, loop, facts, train_part, Batches(parts[1], transform), options, device, progress, say)
    facts |= {"result": _result(loop.history), "epochs": loop.history}
    write_log(folder, facts)
    draw_curve(folder / "curve.png", _title(facts), loop.history)
    return facts


def _run(
    folder: Path,
    loop: Loop,
    facts: dict[str, Any],
    train_part: Batches,
    test_part: Batches,
    options: TrainOptions,
    device: torch.device,
    progress: Progress,
    say: Say,
) -> None:
    """The epochs that are left, each with its log and checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    keys, pin = TrainKeys(len(train_part), options.batch_size, options.seed), device.type == "cuda"
    train_loader = loader(train_part, keys, options.workers, pin)
    test_loader = loader(test_part, in_order(len(test_part), _TEST_BATCH), options.workers, pin)
    with StopRequest() as stop:
        while loop.epoch < options.epochs:
            finished = loop.run_epoch(train_loader, keys, test_loader, stop, progress)
            checkpoint.save(folder, {"settings": facts["settings"], "machine": facts["machine"], **loop.state()})
            if finished:
                write_log(folder, {**facts, "result": _result(loop.history), "epochs": loop.history})
                say(_line(loop.history[-1], options.epochs))
            if stop.asked and loop.epoch < options.epochs:
                raise TrainingStopped(
                    f"stopped after {loop.epoch} epochs and {loop.step} steps; {folder / checkpoint.NAME} holds the "
                    "state: the same command with --resume goes on from there"
                )


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        more = ", or go on with the run in it: --resume" if (folder / checkpoint.NAME).exists() else ""
        raise UsageError(f"{folder} is not empty; choose another --out{more}")


def _restore(folder: Path, loop: Loop, saved: dict[str, Any], facts: dict[str, Any], say: Say) -> None:
    checkpoint.refuse_other_settings(folder / checkpoint.NAME, saved["settings"], facts["settings"])
    other = [
        f"{name} {saved['machine'].get(name)} -> {value}"
        for name, value in facts["machine"].items()
        if saved["machine"].get(name) != value
    ]
    if other:
        say(f"resuming elsewhere ({'; '.join(other)}): the last bits can differ from a run in one go")
    loop.restore(saved)
    say(f"resuming after {loop.epoch} epochs and {loop.step} steps")


@contextmanager
def _checked(transform: Encrypt | None, facts: dict[str, Any], say: Say) -> Iterator[None]:
    """Close the check of the transform, however the run ends; what it found goes before any other error."""
    try:
        yield
    finally:
        if transform is not None:
            report = transform.close_check()
            facts["check"] = vars(report).copy()
            say(str(report))


def _result(history: list[dict[str, Any]]) -> dict[str, Any]:
    best = max(history, key=lambda row: float(row["test_accuracy"]))
    return {
        "accuracy": history[-1]["test_accuracy"],
        "best_accuracy": best["test_accuracy"],
        "best_epoch": best["epoch"],
        "train_seconds": round(sum(row["seconds"] for row in history), 3),
    }


def _line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, test loss {row['test_loss']:.4f}, "
        f"test accuracy {100 * row['test_accuracy']:.2f} %, {row['images_per_second']:.0f} images/s"
    )


def _title(facts: dict[str, Any]) -> str:
    settings = facts["settings"]
    transform = settings["transform"]
    name = transform if isinstance(transform, str) else transform["scheme"]["mode"]
    accuracy = 100 * facts["result"]["accuracy"]
    return f"{settings['dataset']}, {settings['network']}, {name}: {accuracy:.2f} % after {len(facts['epochs'])} epochs"
