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

# Places of stores are text, as a Path would make one slash of a URL's two; shells complete both kinds as paths.
Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="A folder of images, tars, Parquet, IDX, .npy or Zarr files, or CIFAR; or a URL of such."
    ),
]
Destination = Annotated[str, typer.Argument(metavar="DST", help="Where to, a path or URL; must not exist or be empty.")]
ProgressMode = Annotated[
    str, typer.Option("--progress", help="auto: a line on a terminal; plain: text every 10 s; or none.")
]
Workers = Annotated[int | None, typer.Option(help="Shards worked on at once (default: the CPUs).")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with this job where it stopped.")]
Check = Annotated[bool, typer.Option("--check", help="With --resume: compare digests too.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier store at DST.")]


def owner_of(key_path: Path, folder: Path | None) -> Callable[[str], Path]:
    """From a store's id to the owner's folder: as named, or beside the key file.

    Raises:
        UsageError: it is a URL, of whose two slashes a Path has made one.
    """
    from ..pipeline.owner import default_folder

    if folder is not None and re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)) and not folder.exists():
        raise UsageError(f"--owner takes a folder of this machine, beside the key, got the URL {folder}")

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
