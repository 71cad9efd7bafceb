"""`dlmt keygen`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..keys import Key
from ..schemes import DLMT
from .options import Json, PassphraseFile
from .shared import answer, console, passphrase_from


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
    answer(result | {"params": scheme.params}, as_json, f"{path}: new key {key.fingerprint} for {scheme!r}")
    note = "Without this file nothing can be decrypted: keep a copy in a safe place."
    if passphrase is None:
        note += " It is not sealed: whoever reads it can decrypt (--ask-passphrase seals it)."
    console().print(note, style="yellow", highlight=False)


def _new_passphrase(file: Path | None, ask: bool) -> str | None:
    if file is not None:
        return passphrase_from(file)
    if not ask:
        return None
    if not sys.stdin.isatty():
        raise UsageError("--ask-passphrase needs a terminal; pass --passphrase-file F")
    return str(typer.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True))
