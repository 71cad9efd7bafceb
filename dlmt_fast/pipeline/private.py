"""A folder that its owner alone is to enter."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from ..stores.walk import entries

_OTHERS = 0o077  # the bits of group and others


def closed_to_others(folder: Path, ours: re.Pattern[str]) -> str:
    """Take the rights of others from a folder where every name in it is one of `ours`; what the user is to know, empty
    where it was closed. Where a file system has no modes, or refuses to change one, it stays open."""
    before = _mode(folder)
    if os.name == "nt" or not before & _OTHERS:
        return ""
    if all(ours.fullmatch(entry.name) for entry in entries(folder)):
        with suppress(OSError):
            folder.chmod(before & ~_OTHERS)
    if not (after := _mode(folder)) & _OTHERS:
        return f"the owner's folder {folder} had mode {before:04o}, which lets others enter it; it has {after:04o} now"
    return (
        f"others can enter the owner's folder {folder} (mode {before:04o}), and see the names of the files in it; "
        f"chmod 700 {folder} ends that, and a folder of its own (--owner DIR) is closed to begin with"
    )


def _mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)
