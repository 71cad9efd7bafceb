"""`dlmt train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..keys import Key
from ..schemes import DLMT
from .options import Json, MaybeKeyFile, PassphraseFile
from .progress import step_bar
from .shared import answer, console, load_key, scheme_of


def train(
    data: Annotated[str, typer.Option(help="The folder of the data set, or of a store that dlmt encrypt wrote.")],
    dataset: Annotated[str, typer.Option(help="mnist, fashion-mnist, cifar10, or folder (train/CLASS, test/CLASS).")],
    out: Annotated[Path, typer.Option(help="Where log, curve and checkpoint go; must not exist or be empty.")],
    key_path: MaybeKeyFile = None,
    passphrase_file: PassphraseFile = None,
    mode: Annotated[str | None, typer.Option(help="The key file's mode, or plain: no transform.")] = None,
    max_v_add: Annotated[int | None, typer.Option(help="The key file's, where given.")] = None,
    max_v_mul: Annotated[int | None, typer.Option(help="The key file's, where given.")] = None,
    rise_v: Annotated[int | None, typer.Option(help="The key file's, where given.")] = None,
    normalize: Annotated[str, typer.Option(help="range, minmax, minmax_channel or none.")] = "range",
    dtype: Annotated[str | None, typer.Option(help="uint8, float32, float16; for none: int32, narrowest.")] = None,
    network: Annotated[str, typer.Option(help="fiveconv, resnet18, or auto: the data set's own.")] = "auto",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Where each cosine cycle of the learning rate (SGDR) begins.")] = 0.2,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.")] = 5e-4,
    cycle: Annotated[int | None, typer.Option(help="Epochs of SGDR's first cycle (default: all).")] = None,
    cycle_factor: Annotated[int, typer.Option(help="Each cycle lasts so many times the one before.")] = 1,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation, subset and check.")] = 0,
    subset: Annotated[int | None, typer.Option(help="Train on so many images, test on at most so many.")] = None,
    augment: Annotated[str, typer.Option(help="none, crop or crop-flip, before the transform.")] = "none",
    check: Annotated[str | None, typer.Option(help="Compare a share of the calls with the reference, or all.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 0,
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 autocast.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    deterministic: Annotated[bool, typer.Option(help="The same bits each time on one machine.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network on images transformed on the fly with a key, or on a store, which needs none."""
    from .. import training

    options = training.TrainOptions(
        network=network,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        cycle=cycle,
        cycle_factor=cycle_factor,
        seed=seed,
        subset=subset,
        augment=augment,
        normalize=normalize,
        dtype=dtype,
        check=_share(check),
        device=device,
        workers=workers,
        amp=amp,
        compile=compiled,
        deterministic=deterministic,
    )
    images = training.load_data(data, dataset)
    asked = {"mode": mode, "max_v_add": max_v_add, "max_v_mul": max_v_mul, "rise_v": rise_v}
    asked = {name: value for name, value in asked.items() if value is not None}
    key, scheme = _training_key(images.transformed, key_path, passphrase_file, asked)
    with step_bar("train") as progress:
        facts = training.train(
            images, out, options, key, scheme, resume, progress, lambda text: console().print(text, highlight=False)
        )
    result = facts["result"]
    lines = [f"test accuracy {100 * result['accuracy']:.2f} % after {len(facts['epochs'])} epochs"]
    lines += [f"  best {100 * result['best_accuracy']:.2f} % in epoch {result['best_epoch']}"]
    lines += [f"  {out / name}" for name in ("log.csv", "log.json", "curve.png", "checkpoint.pt")]
    answer(facts, as_json, "\n".join(lines))


def _training_key(
    transformed: bool, path: Path | None, passphrase_file: Path | None, asked: dict[str, Any]
) -> tuple[Key | None, DLMT | None]:
    """Key and scheme of a training run; neither for a store, and for plain images with `--mode plain`."""
    words = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
    if transformed or asked.get("mode") == "plain":
        given = ", ".join(filter(None, ["--key" if path is not None else "", words if transformed else ""]))
        if given:
            what = "the images are a store's, transformed already" if transformed else "--mode plain transforms nothing"
            raise UsageError(f"{what}: leave {given} out")
        return None, None
    if path is None:
        raise UsageError(
            "plain images are transformed with --key KEYFILE (dlmt keygen makes one), or not: --mode plain"
        )
    key = load_key(path, passphrase_file)
    scheme = scheme_of(key, path)
    other = [
        f"{name} {scheme.params.get(name, 'none')}, not {value}"
        for name, value in asked.items()
        if scheme.params.get(name) != value
    ]
    if other:
        raise UsageError(
            f"{path} is a key for {'; '.join(other)}. Leave {words} out, or make a key for it: dlmt keygen"
        )
    return key, scheme


def _share(text: str | None) -> float | str | None:
    if text is None or text == "all":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--check takes a share such as 0.01, or all; got {text!r}") from None
