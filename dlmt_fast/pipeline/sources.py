"""The files of a job as they were when its record was fixed, kept in the owner's folder, to tell what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from ..errors import StoreDamagedError
from ..stores.contract import FileStamp
from .owner import OwnerFolder

FILES_A_PART = 1000
_NAMED = 3  # files of each sort that a message names


def keep_sources(owner: OwnerFolder, stamps: Iterable[FileStamp]) -> None:
    """Write what is not there yet, in sealed parts of `FILES_A_PART` files: names are secrets."""
    rest, part = iter(stamps), 0
    while files := list(islice(rest, FILES_A_PART)):
        if not owner.has_sources(part):
            owner.write_sources(part, files)
        part += 1


def kept_sources(owner: OwnerFolder, files: int) -> Iterator[FileStamp]:
    """The `files` stamps of a job, in their order.

    Raises:
        StoreDamagedError: a part is missing, damaged, or not of that job.
    """
    for part in range(-(-files // FILES_A_PART)):
        yield from owner.read_sources(part)


def what_changed(owner: OwnerFolder, files: int, now: Iterable[FileStamp]) -> str | None:
    """How many of a job's files changed, are gone or are new, and the first of each; None where nothing tells it."""
    found: dict[str, list[str]] = {"changed": [], "gone": [], "new": []}
    counts = dict.fromkeys(found, 0)
    try:
        for how, path in _compared(kept_sources(owner, files), iter(now)):
            counts[how] += 1
            found[how] += [path] * (len(found[how]) < _NAMED)
    except StoreDamagedError:
        return None
    words = []
    for how, paths in found.items():
        if paths:
            more = ", ..." if counts[how] > len(paths) else ""
            words.append(f"{counts[how]} {how} ({', '.join(paths)}{more})")
    return "; ".join(words) or None


def _compared(old: Iterator[FileStamp], new: Iterator[FileStamp]) -> Iterator[tuple[str, str]]:
    """(how it differs, path) of each file, from two runs in the order of the paths' bytes."""
    one, two = next(old, None), next(new, None)
    while one is not None or two is not None:
        if two is None or (one is not None and one.path.encode() < two.path.encode()):
            assert one is not None
            yield "gone", one.path
            one = next(old, None)
        elif one is None or two.path.encode() < one.path.encode():
            yield "new", two.path
            two = next(new, None)
        else:
            if one != two:
                yield "changed", one.path
            one, two = next(old, None), next(new, None)
