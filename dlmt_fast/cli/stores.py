"""`dlmt decrypt` and `dlmt verify`: what is done with a finished store."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    Check,
    Destination,
    DryRun,
    Json,
    KeyFile,
    MaybeKeyFile,
    Owner,
    PassphraseFile,
    ProgressMode,
    Resume,
    Workers,
    owner_of,
)
from .progress import shown
from .shared import cpus, finish, finish_preview, load_key, telling


def decrypt(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A store that dlmt encrypt wrote, or its URL.")],
    target: Destination,
    key_path: KeyFile,
    passphrase_file: PassphraseFile = None,
    workers: Workers = None,
    resume: Resume = False,
    check: Check = False,
    owner: Owner = None,
    progress_mode: ProgressMode = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Recover the images of a store."""
    from ..pipeline import decrypt_store, preview_decrypt
    from ..pipeline.arenas import few_arenas

    few_arenas()
    key = load_key(key_path, passphrase_file)
    folder, count = owner_of(key_path, owner), cpus() if workers is None else workers
    if dry_run:
        finish_preview(preview_decrypt(source, target, key, folder, resume, check), as_json)
        return
    with telling() as tell, shown("decrypt", progress_mode, as_json, count) as progress:
        summary = decrypt_store(source, target, key, folder, progress, count, resume, check, tell=tell)
    finish(summary, as_json)


def verify(
    target: Annotated[str, typer.Argument(metavar="DST", help="A store that dlmt encrypt wrote, or its URL.")],
    key_path: MaybeKeyFile = None,
    passphrase_file: PassphraseFile = None,
    owner: Owner = None,
    progress_mode: ProgressMode = "auto",
    as_json: Json = False,
) -> None:
    """Check a store: every file's digest and every count; with the key also a sample of images."""
    from ..pipeline import verify_store

    key = None if key_path is None else load_key(key_path, passphrase_file)
    folder = None if key_path is None else owner_of(key_path, owner)
    with shown("verify", progress_mode, as_json) as progress:
        summary = verify_store(target, key, folder, progress)
    finish(summary, as_json, refused_now=False)
