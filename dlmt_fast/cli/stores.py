"""`dlmt decrypt` and `dlmt verify`: what is done with a finished store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Destination, Json, KeyFile, MaybeKeyFile, Owner, PassphraseFile, owner_of
from .progress import progress_bar
from .shared import finish, load_key


def decrypt(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A store that dlmt encrypt wrote.")],
    target: Destination,
    key_path: KeyFile,
    passphrase_file: PassphraseFile = None,
    owner: Owner = None,
    as_json: Json = False,
) -> None:
    """Recover the images of a store."""
    from ..pipeline import decrypt_store

    key = load_key(key_path, passphrase_file)
    with progress_bar("decrypt") as progress:
        summary = decrypt_store(source, target, key, owner_of(key_path, owner), progress)
    finish(summary, as_json)


def verify(
    target: Annotated[Path, typer.Argument(metavar="DST", help="A store that dlmt encrypt wrote.")],
    key_path: MaybeKeyFile = None,
    passphrase_file: PassphraseFile = None,
    owner: Owner = None,
    as_json: Json = False,
) -> None:
    """Check a store: every file's digest and every count; with the key also a sample of images."""
    from ..pipeline import verify_store

    key = None if key_path is None else load_key(key_path, passphrase_file)
    folder = None if key_path is None else owner_of(key_path, owner)
    with progress_bar("verify") as progress:
        summary = verify_store(target, key, folder, progress)
    finish(summary, as_json)
