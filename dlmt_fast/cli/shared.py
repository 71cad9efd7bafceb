"""What the commands share: the key, results on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from .. import keyfile
from ..errors import KeyFileError, KeyPassphraseError, UsageError
from ..keys import Key
from ..schemes import DLMT
from ..stores.contract import EQUAL


def console() -> Console:
    """Where messages go: stderr, lines unbroken."""
    return Console(stderr=True, soft_wrap=True)


def answer(facts: dict[str, Any], as_json: bool, text: str) -> None:
    """The result of a command on stdout: `facts` as one JSON object, or `text`."""
    print(json.dumps(facts) if as_json else text)


def finish(summary: Any, as_json: bool, refused_now: bool = True) -> None:
    """The end of a command over stores: its counts, and exit code 3 where samples could not be taken.

    Args:
        refused_now: it was this command that could not take them; else they are counted alone.
    """
    rate = summary.outputs / summary.seconds if summary.seconds else 0.0
    counts = f"{summary.inputs} inputs = {summary.outputs} outputs + {len(summary.quarantined)} quarantined"
    if summary.dropped:
        counts += f" ({summary.dropped} of them equal to others)"
    speed = f"{summary.output_bytes / 1e6:.1f} MB in {summary.seconds:.2f} s ({rate:.0f} images/s)"
    lines = [f"{summary.command}: {counts}, {speed}"]
    bad = [item for item in summary.quarantined if refused_now and not item["reason"].startswith(EQUAL)]
    lines += [f"  quarantined {item['path']}: {item['reason']}" for item in bad]
    lines += [f"  {note}" for note in summary.notes]
    answer(summary.as_dict(), as_json, "\n".join(lines))
    if bad:
        raise typer.Exit(3)


def finish_preview(preview: Any, as_json: bool) -> None:
    """The end of a dry run, with the exit code that the command itself would have, as far as can be told."""
    counts = f"{preview.inputs} inputs = {preview.outputs} outputs + {len(preview.quarantined)} quarantined"
    size = f"{preview.output_bytes / 1e6:.1f} MB" + ("" if preview.exact else " of pixels")
    done = f" ({preview.shards_done} done)" if preview.shards_done else ""
    free = "" if preview.free_bytes is None else f"; the target's disk has {preview.free_bytes / 1e6:.1f} MB free"
    lines = [
        f"{preview.command} would give: {counts}; nothing was written",
        f"  store {preview.store_id}: {preview.source_kind} to {preview.kind} of {preview.dtype}",
        f"  shapes {', '.join(f'{count} x {shape}' for shape, count in preview.shapes.items()) or 'several'}",
        f"  {preview.shards} shards{done}, {size}{free}",
        f"  the owner's folder: {preview.owner}",
    ]
    word = "cannot be taken" if preview.refused else "quarantined"
    lines += [f"  {word} {item['path']}: {item['reason']}" for item in preview.quarantined]
    lines += [f"  {note}" for note in preview.notes]
    answer(preview.as_dict(), as_json, "\n".join(lines))
    if preview.quarantined:
        raise typer.Exit(1 if preview.refused else 3)


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """What takes lines, such as how to go on with a stopped job, and shows them on stderr after the block."""
    left: list[str] = []
    try:
        yield left.append
    finally:
        for text in left:
            console().print(text, style="yellow", highlight=False, markup=False)


def load_key(path: Path, passphrase_file: Path | None) -> Key:
    """The key of a file, whose passphrase comes from a file or is asked for at the terminal.

    Raises:
        KeyFileError: there is none, or it cannot be opened.
    """
    if not path.exists():
        raise KeyFileError(f"there is no key file {path}; dlmt keygen makes one")
    if passphrase_file is not None:
        return Key.load(path, passphrase_from(passphrase_file))
    if not keyfile.is_sealed(path):
        return Key.load(path)
    if not sys.stdin.isatty():
        raise KeyPassphraseError(f"{path} is sealed and there is no terminal to ask at: pass --passphrase-file F")
    return Key.load(path, typer.prompt(f"Passphrase of {path}", hide_input=True, err=True))


def scheme_of(key: Key, path: Path) -> DLMT:
    """The scheme whose parameters the key file `path` holds.

    Raises:
        UsageError: it holds none.
    """
    if key.params is None:
        raise UsageError(f"{path} holds no scheme parameters; make the key with dlmt keygen")
    return DLMT.from_params(key.params)


def passphrase_from(file: Path) -> str:
    """The text of a passphrase file.

    Raises:
        UsageError: it holds no passphrase.
    """
    data = file.read_bytes()
    if len(data) > 64 * 1024:
        raise UsageError(f"{file} is larger than any passphrase")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8 text") from None


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Stopped(BaseException):
    """A signal asked this process to end: what runs cleans up, as for any error."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `Stopped` in the block, unless the process was started to ignore them."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
