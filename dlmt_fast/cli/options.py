"""Options that mean the same in every command, and the values that are written as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
KeyFile = Annotated[Path, typer.Option("--key", help="The key file.", show_default=False)]
MaybeKeyFile = Annotated[Path | None, typer.Option("--key", help="The key file.", show_default=False)]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="A file that holds the passphrase of a sealed key.")
]
Owner = Annotated[Path | None, typer.Option("--owner", help="The owner's folder (default: KEYFILE.stores/STORE_ID).")]
Source = Annotated[
    Path, typer.Argument(metavar="SRC", help="Images: a folder, tars, Parquet, Zarr, .npy or IDX files, CIFAR.")
]
Destination = Annotated[Path, typer.Argument(metavar="DST", help="Where to; must not exist or be empty.")]
ProgressMode = Annotated[
    str, typer.Option("--progress", help="auto: a line on a terminal; plain: text every 10 s; or none.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier store at DST.")]


def owner_of(key_path: Path, folder: Path | None) -> Callable[[str], Path]:
    """From a store's id to the owner's folder: as named, or beside the key file."""
    from ..pipeline.owner import default_folder

    return lambda store_id: folder if folder is not None else default_folder(key_path, store_id)


def parsed_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) from `HxW`."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if not match:
        raise UsageError(f"--size takes HxW, for example 224x224, got {text!r}")
    return int(match[1]), int(match[2])


def parsed_numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """The value of `--mean` or `--std`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{name} takes comma-separated numbers, got {text!r}") from None
