"""What stands for a shard of several files: `dlmt-shard-00000.txt`, a line `SHA-256 size name` a file, sorted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreDamagedError


class Listed(NamedTuple):
    """A line of a shard's listing."""

    sha256: str
    size: int
    name: str


def listing_name(shard: int) -> str:
    return f"dlmt-shard-{shard:05d}.txt"


def encode_listing(entries: Iterable[Listed]) -> bytes:
    """The listing's file."""
    lines = [f"{entry.sha256} {entry.size} {entry.name}\n" for entry in sorted(entries, key=lambda entry: entry.name)]
    return "".join(lines).encode("utf-8")


def read_listing(data: bytes, where: str) -> list[Listed]:
    """The lines of a listing, checked: relative names without tricks, sorted, each once.

    Raises:
        StoreDamagedError: it is no listing.
    """
    try:
        text = data.decode("utf-8")
        entries = []
        for line in text.split("\n")[:-1]:
            digest, size, name = line.split(" ", 2)
            entries.append(Listed(digest, int(size), name))
            if len(digest) != 64 or not _safe(name) or str(int(size)) != size:
                raise ValueError
        if text and not text.endswith("\n"):
            raise ValueError
        if any(a.name >= b.name for a, b in pairwise(entries)):
            raise ValueError
    except ValueError:
        raise StoreDamagedError(f"{where} is not a shard's listing") from None
    return entries


def read_listed(root: Path, entry: Listed) -> bytes:
    """A file of the store, checked against its listing.

    Raises:
        StoreDamagedError: it is missing or altered.
    """
    path = root / entry.name
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise StoreDamagedError(f"{path} is missing, and the store's listing names it") from None
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise StoreDamagedError(f"{path} is damaged: its bytes are not those that were published")
    return data


def _safe(name: str) -> bool:
    parts = name.split("/")
    return not set(name) & {"\\", "\0", "\n"} and all(p not in ("", ".", "..") for p in parts)


def can_be_listed(name: str) -> bool:
    """Whether a listing can hold a relative name, and the name is none of the store's own."""
    return _safe(name) and not name.startswith(("dlmt-store.json", "dlmt-shard-"))
