"""The command `dlmt`. Results go to stdout (`--json`: one object), progress and messages to stderr.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 done but with quarantined inputs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from . import keyfile
from .errors import DlmtError, KeyFileError, KeyPassphraseError, ParameterError, UsageError
from .keys import Key
from .schemes import DLMT

app = typer.Typer(
    name="dlmt",
    help="Transform image data sets with a secret key before training elsewhere (DLMT, CSCWD 2023), fast and exactly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
KeyFile = Annotated[Path, typer.Option("--key", help="The key file.", show_default=False)]
MaybeKeyFile = Annotated[Path | None, typer.Option("--key", help="The key file.", show_default=False)]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="A file that holds the passphrase of a sealed key.")
]
Owner = Annotated[Path | None, typer.Option("--owner", help="The owner's folder [default: KEYFILE.stores/STORE_ID].")]
Source = Annotated[
    Path, typer.Argument(metavar="SRC", help="A folder of images, IDX or .npy files, CIFAR's folder or archive.")
]
Destination = Annotated[Path, typer.Argument(metavar="DST", help="Where to; must not exist or be empty.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier store at DST.")]


def main() -> None:
    """The console entry point: our own errors become one line and an exit code, never a traceback."""
    try:
        app()
    except (UsageError, ParameterError) as error:
        _stop(error, 2)
    except (DlmtError, OSError) as error:
        _stop(error, 1)
    except KeyboardInterrupt:
        _stop("interrupted", 1)
    except SystemExit as stop:
        if stop.code == 2 and "--json" in sys.argv[1:]:  # typer has told stderr what is wrong
            print(json.dumps({"error": "wrong use: see stderr", "kind": "UsageError", "exit_code": 2}))
        raise


def _stop(message: object, code: int) -> NoReturn:
    if "--json" in sys.argv[1:]:
        print(json.dumps({"error": str(message), "kind": type(message).__name__, "exit_code": code}))
    _console().print(f"dlmt: {message}", style="red" if code == 1 else "yellow", highlight=False, markup=False)
    sys.exit(code)


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True)


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(metavar="KEYFILE", help="Where to, for example photos.dlmtkey.")],
    mode: Annotated[str, typer.Option(help="mat, mmt, rise_mmt, mat_mmt or mmt_mat.")] = "mat_mmt",
    max_v_add: Annotated[int, typer.Option(help="Radd is uniform in [1, this].")] = 256,
    max_v_mul: Annotated[int, typer.Option(help="Rmul is uniform in [1, this].")] = 10,
    rise_v: Annotated[int, typer.Option(help="The constant of rise_mmt.")] = 0,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: Annotated[bool, typer.Option(help="Ask for a passphrase that seals the key.")] = False,
    as_json: Json = False,
) -> None:
    """Make a new key. One key a data set: use it for all of its images, and for nothing else."""
    scheme = DLMT(mode, max_v_add, max_v_mul, rise_v)
    passphrase = _new_passphrase(passphrase_file, ask_passphrase)
    key = Key.generate(scheme.params)
    key.save(path, passphrase)
    result = {"keyfile": str(path), "fingerprint": key.fingerprint, "sealed": passphrase is not None}
    _report(result | {"params": scheme.params}, as_json, f"{path}: new key {key.fingerprint} for {scheme!r}")
    note = "Without this file nothing can be decrypted: keep a copy in a safe place."
    if passphrase is None:
        note += " It is not sealed: whoever reads it can decrypt (--ask-passphrase seals it)."
    _console().print(note, style="yellow", highlight=False)


@app.command()
def encrypt(
    source: Source,
    target: Destination,
    key_path: KeyFile,
    passphrase_file: PassphraseFile = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Bring every image to this size.")] = None,
    fit: Annotated[str, typer.Option(help="How: crop, stretch or pad.")] = "crop",
    per_size: Annotated[bool, typer.Option("--per-size", help="Keep several sizes, matrices for each.")] = False,
    channels: Annotated[int | None, typer.Option(help="Convert to 1 (gray) or 3 (RGB) channels.")] = None,
    normalize: Annotated[str, typer.Option(help="range, minmax, minmax_channel or none.")] = "range",
    dtype: Annotated[str | None, typer.Option(help="uint8, float32, float16; for none: int32, narrowest.")] = None,
    mean: Annotated[str | None, typer.Option(help="Of float outputs, one or C comma-separated numbers.")] = None,
    std: Annotated[str | None, typer.Option(help="Of float outputs, one or C comma-separated numbers.")] = None,
    names: Annotated[str, typer.Option(help="hash hides file names, keep keeps them.")] = "hash",
    classes: Annotated[str, typer.Option(help="keep or index: names of the first folder level.")] = "keep",
    ignore: Annotated[list[str] | None, typer.Option(help="Leave out files that match this glob; repeatable.")] = None,
    on_error: Annotated[str, typer.Option(help="At a bad image: fail, or quarantine and go on.")] = "fail",
    workers: Annotated[int | None, typer.Option(help="Shards worked on at once [default: the CPUs].")] = None,
    shard_size: Annotated[int, typer.Option(help="Files a shard, for folders.")] = 1000,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this job where it stopped.")] = False,
    check: Annotated[bool, typer.Option("--check", help="With --resume: compare digests too.")] = False,
    from_kind: Annotated[str | None, typer.Option("--from", help="The kind of SRC: folder, idx, cifar or npy.")] = None,
    owner: Owner = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Transform every image of SRC with the key into a new store DST."""
    from .pipeline import JobOptions, encrypt_store

    key = _load_key(key_path, passphrase_file)
    if key.params is None:
        raise UsageError(f"{key_path} holds no scheme parameters; make the key with dlmt keygen")
    options = JobOptions(
        normalize=normalize,
        dtype=dtype,
        mean=_numbers("mean", mean),
        std=_numbers("std", std),
        size=_size(size),
        fit=fit,
        per_size=per_size,
        channels=channels,
        ignore=tuple(ignore or ()),
        on_error=on_error,
        names=names,
        classes=classes,
        shard_size=shard_size,
        overwrite=overwrite,
        resume=resume,
        check=check,
        workers=_cpus() if workers is None else workers,
    )
    if normalize.startswith("minmax"):
        _console().print(f"{normalize}: decrypting will need the owner's folder besides the key.", highlight=False)
    left: list[str] = []
    scheme, folder = DLMT.from_params(key.params), _owner(key_path, owner)
    try:
        with _progress("encrypt", as_json) as progress, _terminate_as_interrupt():
            summary = encrypt_store(source, target, key, scheme, folder, options, from_kind, progress, tell=left.append)
    finally:
        for text in left:
            _console().print(text, style="yellow", highlight=False, markup=False)
    _finish(summary, as_json)


@app.command()
def decrypt(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A store that dlmt encrypt wrote.")],
    target: Destination,
    key_path: KeyFile,
    passphrase_file: PassphraseFile = None,
    owner: Owner = None,
    as_json: Json = False,
) -> None:
    """Recover the images of a store."""
    from .pipeline import decrypt_store

    key = _load_key(key_path, passphrase_file)
    with _progress("decrypt", as_json) as progress:
        summary = decrypt_store(source, target, key, _owner(key_path, owner), progress)
    _finish(summary, as_json)


@app.command()
def verify(
    target: Annotated[Path, typer.Argument(metavar="DST", help="A store that dlmt encrypt wrote.")],
    key_path: MaybeKeyFile = None,
    passphrase_file: PassphraseFile = None,
    owner: Owner = None,
    as_json: Json = False,
) -> None:
    """Check a store: every file's digest and every count; with the key also a sample of images."""
    from .pipeline import verify_store

    key = None if key_path is None else _load_key(key_path, passphrase_file)
    folder = None if key_path is None else _owner(key_path, owner)
    with _progress("verify", as_json) as progress:
        summary = verify_store(target, key, folder, progress)
    _finish(summary, as_json)


@app.command()
def info(as_json: Json = False) -> None:
    """Show the version, the backends of this machine and why one is missing."""
    from .info import collect, describe

    facts = collect()
    _report(facts, as_json, describe(facts))


@app.command()
def demo(
    images: Annotated[Path | None, typer.Option(help="A folder of photographs [default: scikit-image's].")] = None,
    output: Annotated[Path, typer.Option(help="Where the demo's files go.")] = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """Photographs -> key -> encrypt -> verify -> decrypt, with the measured errors and speed, and a picture."""
    from .demo import run_demo

    facts = run_demo(images, output, partial(print, file=sys.stderr if as_json else sys.stdout, flush=True))
    if as_json:
        _report(facts, as_json, "")


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="The folder of the data set, or of a store that dlmt encrypt wrote.")],
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
    cycle: Annotated[int | None, typer.Option(help="Epochs of SGDR's first cycle [default: all].")] = None,
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
    from . import training

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
    with _progress("train", as_json) as progress:
        facts = training.train(
            images, out, options, key, scheme, resume, progress, lambda text: _console().print(text, highlight=False)
        )
    result = facts["result"]
    lines = [f"test accuracy {100 * result['accuracy']:.2f} % after {len(facts['epochs'])} epochs"]
    lines += [f"  best {100 * result['best_accuracy']:.2f} % in epoch {result['best_epoch']}"]
    lines += [f"  {out / name}" for name in ("log.csv", "log.json", "curve.png", "checkpoint.pt")]
    _report(facts, as_json, "\n".join(lines))


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller workloads, under a minute.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Also append the rows to this file, one JSON object a line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: our backends beside its own limit and the peers that are installed."""
    from .bench import QUICK, WORKLOADS, machine, report
    from .bench.run import all_threads, run

    workloads, rounds, budget = (QUICK, 9, 1.5) if quick else (WORKLOADS, 15, 15.0)
    facts = machine.describe()
    rows = []
    for part in run(workloads.values(), all_threads(), rounds, budget, lambda text: _console().print(text)):
        rows += part
        if output is not None:
            report.write_rows(output, part, facts)
    plain = [row.as_dict() for row in rows]
    _report({"machine": facts, "rows": plain}, as_json, f"{facts['cpu']}\n\n{report.table(plain)}\n\n{report.LEGEND}")


def _report(facts: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(facts) if as_json else text)


def _finish(summary: Any, as_json: bool) -> None:
    rate = summary.outputs / summary.seconds if summary.seconds else 0.0
    counts = f"{summary.inputs} inputs = {summary.outputs} outputs + {len(summary.quarantined)} quarantined"
    speed = f"{summary.output_bytes / 1e6:.1f} MB in {summary.seconds:.2f} s ({rate:.0f} images/s)"
    lines = [f"{summary.command}: {counts}, {speed}"]
    lines += [f"  quarantined {item['path']}: {item['reason']}" for item in summary.quarantined]
    lines += [f"  {note}" for note in summary.notes]
    _report(summary.as_dict(), as_json, "\n".join(lines))
    if summary.quarantined:
        raise typer.Exit(3)


def _load_key(path: Path, passphrase_file: Path | None) -> Key:
    if not path.exists():
        raise KeyFileError(f"there is no key file {path}; dlmt keygen makes one")
    if passphrase_file is not None:
        return Key.load(path, _passphrase_from(passphrase_file))
    if not keyfile.is_sealed(path):
        return Key.load(path)
    if not sys.stdin.isatty():
        raise KeyPassphraseError(f"{path} is sealed and there is no terminal to ask at: pass --passphrase-file F")
    return Key.load(path, typer.prompt(f"Passphrase of {path}", hide_input=True, err=True))


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
    key = _load_key(path, passphrase_file)
    if key.params is None:
        raise UsageError(f"{path} holds no scheme parameters; make the key with dlmt keygen")
    scheme = DLMT.from_params(key.params)
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


def _new_passphrase(file: Path | None, ask: bool) -> str | None:
    if file is not None:
        return _passphrase_from(file)
    if not ask:
        return None
    if not sys.stdin.isatty():
        raise UsageError("--ask-passphrase needs a terminal; pass --passphrase-file F")
    return str(typer.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True))


def _passphrase_from(file: Path) -> str:
    data = file.read_bytes()
    if len(data) > 64 * 1024:
        raise UsageError(f"{file} is larger than any passphrase")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8 text") from None


def _owner(key_path: Path, folder: Path | None) -> Callable[[str], Path]:
    from .pipeline.owner import default_folder

    return lambda store_id: folder if folder is not None else default_folder(key_path, store_id)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if not match:
        raise UsageError(f"--size takes HxW, for example 224x224, got {text!r}")
    return int(match[1]), int(match[2])


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{name} takes comma-separated numbers, got {text!r}") from None


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: through the clean-up."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress(title: str, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where that is a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _console()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()
