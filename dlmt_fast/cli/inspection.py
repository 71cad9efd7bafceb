"""`dlmt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .options import Json, MaybeKeyFile, Owner, PassphraseFile, ProgressMode, owner_of
from .progress import shown
from .shared import answer, load_key

_SHOWN = 20  # classes in the text
_SAMPLES = 20  # quarantined images in the text


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A store, or a source to be encrypted; or a URL of one.")],
    key_path: MaybeKeyFile = None,
    passphrase_file: PassphraseFile = None,
    owner: Owner = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Also write a sheet of images.")] = None,
    images: Annotated[int, typer.Option(help="Images on the sheet.")] = 64,
    decrypted: Annotated[bool, typer.Option("--decrypted", help="Show decrypted images on the sheet too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier sheet.")] = False,
    ignore: Annotated[list[str] | None, typer.Option(help="Of a source: leave out files; repeatable.")] = None,
    from_kind: Annotated[
        str | None, typer.Option("--from", help="The kind of a source, where that does not tell.")
    ] = None,
    progress_mode: ProgressMode = "auto",
    as_json: Json = False,
) -> None:
    """Say what a store holds and tells to anyone, with the key also what is sealed; or what a source holds."""
    from ..pipeline import JobOptions, inspect_store, write_sheet

    if sheet is None and (decrypted or overwrite):
        raise UsageError(f"--{'decrypted' if decrypted else 'overwrite'} is about the sheet: name it with --sheet FILE")
    key = None if key_path is None else load_key(key_path, passphrase_file)
    folder = None if key_path is None else owner_of(key_path, owner)
    options = JobOptions(ignore=tuple(ignore or ()))
    with shown("inspect", progress_mode, as_json):
        found = inspect_store(path, key, folder, options, from_kind)
    facts, lines = found.as_dict(), _described(found)
    if sheet is not None and found.what != "unfinished":
        written = write_sheet(path, sheet, images, key, folder, decrypted, overwrite, options, from_kind)
        facts["sheet"] = str(sheet)
        lines.append(f"  {sheet}: {written.images} images, values shown {written.scaling}")
        if written.plain:
            lines.append(f"  {sheet} shows plain images: keep it as safe as these (mode 0600)")
    answer(facts, as_json, "\n".join(lines))
    if found.what == "unfinished":
        raise typer.Exit(1)
    if found.what == "source" and found.quarantined:
        raise typer.Exit(3)


def _described(found: Any) -> list[str]:
    if found.what == "unfinished":
        return _unfinished(found)
    lines = [f"{found.path}: {'store' if found.what == 'store' else 'source'}, {found.kind}, {found.count} images"]
    if found.store_id:
        lines.append(f"  id {found.store_id}, {found.dtype}, finished")
    if found.shapes:
        lines.append(f"  shapes {', '.join(f'{count} x {shape}' for shape, count in found.shapes.items())}")
    least, most = (f"{size / 1e6:.1f}" for size in found.shard_bytes or (0, 0))
    each = "" if least == most else f" of {least} to {most} MB"
    lines.append(f"  {_counted(found.shards, 'shard')}{each}, {found.bytes / 1e6:.1f} MB in all")
    for where, counts in found.classes.items():
        lines.append(f"  labels ({where}): {_balance(counts)}")
    if not found.classes:
        lines.append("  no labels")
    if found.tells:
        lines.append(f"  tells {found.tells}")
    if found.header is not None:
        lines += _sealed(found.header)
    lines += _refused(found)
    return lines + [f"  {note}" for note in found.notes]


def _unfinished(found: Any) -> list[str]:
    lines = [f"{found.path}: unfinished: a job runs there or was stopped ({_counted(found.files, 'file')})"]
    if found.store_id:
        lines.append(f"  id {found.store_id}")
    if found.shards_done is not None:
        lines.append(f"  {found.shards_done} of {found.shards} shards are done, of {found.inputs} images")
    lines.append("  the command that began it goes on with --resume, if none runs")
    return lines


def _sealed(header: dict[str, Any]) -> list[str]:
    scheme = ", ".join(f"{name} {value}" for name, value in header["scheme"].items())
    words = [f"normalize {header['normalize']}", f"dtype {header['dtype']}"]
    words += [
        f"{name} {', '.join(f'{float.fromhex(value):g}' for value in header[name])}"
        for name in ("mean", "std")
        if header[name] is not None
    ]
    versions = ", ".join(f"{name} {value}" for name, value in sorted(header["versions"].items()))
    return [f"  sealed: {scheme}; {', '.join(words)}", f"  made with {versions}"]


def _refused(found: Any) -> list[str]:
    if found.quarantined is None:
        return []
    number = len(found.quarantined)
    shown = [f"    {item['path']}: {item['reason']}" for item in found.quarantined[:_SAMPLES]]
    shown += [f"    and {number - _SAMPLES} more"] if number > _SAMPLES else []
    word = "quarantined" if found.what == "store" else "cannot be taken"
    return [f"  {found.inputs} inputs, {number} {word}{':' if shown else ''}", *shown]


def _balance(counts: dict[str, int]) -> str:
    """All classes where they are few ("" is none); else their number, and the rarest and the most frequent."""
    if len(counts) <= _SHOWN:
        return ", ".join(f"{name or 'none'} {count}" for name, count in counts.items())
    ranked = sorted(counts.items(), key=lambda item: item[1])
    (rare, few), (often, many) = ranked[0], ranked[-1]
    return f"{len(counts)} classes, from {few} ({rare}) to {many} ({often}) images"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
