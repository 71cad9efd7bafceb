"""`dlmt encrypt`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    Check,
    Destination,
    DryRun,
    Json,
    KeyFile,
    Overwrite,
    Owner,
    PassphraseFile,
    ProgressMode,
    Resume,
    Source,
    Workers,
    owner_of,
    parsed_numbers,
    parsed_size,
)
from .progress import shown
from .shared import console, cpus, finish, finish_preview, load_key, scheme_of, telling


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
    duplicates: Annotated[
        str | None, typer.Option(help="Look for equal images: report them, or drop all but the first.")
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="In a secret order, which decrypting takes back.")] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Pass this field of tars or Parquet, unprotected; repeatable."),
    ] = None,
    on_error: Annotated[str, typer.Option(help="At a bad image: fail, or quarantine and go on.")] = "fail",
    workers: Workers = None,
    shard_size: Annotated[
        int, typer.Option(help="Images a shard; tars and arrays that stay arrays are shards.")
    ] = 1000,
    resume: Resume = False,
    check: Check = False,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Do the I-th of N slices; others do the rest, at the same time or not.")
    ] = "1/1",
    engine: Annotated[str, typer.Option(help="local: processes here; ray: tasks of a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster (default: RAY_ADDRESS, or one on this machine).")
    ] = None,
    transform_device: Annotated[
        str, typer.Option("--device", help="Where images are transformed: cpu, cuda or cuda:N; the store is the same.")
    ] = "cpu",
    from_kind: Annotated[str | None, typer.Option("--from", help="The kind of SRC, where that does not tell.")] = None,
    to_kind: Annotated[str | None, typer.Option("--to", help="The kind of DST (default: that of SRC).")] = None,
    owner: Owner = None,
    progress_mode: ProgressMode = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Transform every image of SRC with the key into a new store DST."""
    from ..pipeline import JobOptions, Slice, encrypt_store, preview_encrypt
    from ..pipeline.arenas import few_arenas

    few_arenas()
    key = load_key(key_path, passphrase_file)
    scheme, folder = scheme_of(key, key_path), owner_of(key_path, owner)
    options = JobOptions(
        normalize=normalize,
        dtype=dtype,
        mean=parsed_numbers("mean", mean),
        std=parsed_numbers("std", std),
        size=parsed_size(size),
        fit=fit,
        per_size=per_size,
        channels=channels,
        ignore=tuple(ignore or ()),
        duplicates=duplicates,
        shuffle=shuffle,
        keep=tuple(keep or ()),
        on_error=on_error,
        names=names,
        classes=classes,
        shard_size=shard_size,
        overwrite=overwrite,
        resume=resume,
        check=check,
        workers=cpus() if workers is None and engine == "local" else workers,
        engine=engine,
        address=address,
        device=transform_device,
        slice=Slice.parse(shard),
    )
    if normalize.startswith("minmax"):
        console().print(f"{normalize}: decrypting will need the owner's folder besides the key.", highlight=False)
    if dry_run:
        finish_preview(preview_encrypt(source, target, key, scheme, folder, options, from_kind, to_kind), as_json)
        return
    with telling() as tell, shown("encrypt", progress_mode, as_json, options.workers or 0) as progress:
        summary = encrypt_store(
            source, target, key, scheme, folder, options, from_kind, progress, tell=tell, target_named=to_kind
        )
    finish(summary, as_json)
