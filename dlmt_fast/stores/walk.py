"""Walking folders entry by entry: no list of a folder's content is made, whose size has no bound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from ..errors import StoreError


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, in no order."""
    with os.scandir(folder) as found:
        yield from found


def is_empty(folder: Path) -> bool:
    """Whether a folder has no entry."""
    return next(entries(folder), None) is None


def folders_below(root: Path) -> Iterator[Path]:
    """`root` and all folders below it, each before those in it; links are not followed."""
    yield root
    for entry in entries(root):
        if entry.is_dir(follow_symlinks=False):
            yield from folders_below(Path(entry.path))


def files_below(root: Path, above: str = "") -> Iterator[str]:
    """The relative POSIX paths of all files and links below `root`, but for links to folders."""
    for entry in entries(root):
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path), f"{above}{entry.name}/")
        elif not entry.is_dir():
            yield above + entry.name


class LinkedFolders:
    """Which folders a walk from `root` reaches over links, so that none is walked twice.

    A walk leaves out folders whose name begins with a dot, so what lies behind one is not reached. Only the folders
    that links lead to are kept, not every folder.
    """

    def __init__(self, root: Path) -> None:
        self._walked: set[str] = set()  # where a walk begins: the root and where links lead
        self._above: set[str] = set()  # these, and the folders from which a walk would reach them
        self._enter(os.path.realpath(root))

    def follow(self, link: str) -> None:
        """Enter a link to a folder that is about to be walked.

        Raises:
            StoreError: that folder, or one in it, is reached in another way too.
        """
        real = os.path.realpath(link)
        if real in self._above or not self._walked.isdisjoint(_reaching(real)):
            raise StoreError(f"{link} is read already: a link leads there as well")
        self._enter(real)

    def _enter(self, real: str) -> None:
        self._walked.add(real)
        self._above.update(_reaching(real))


def _reaching(real: str) -> Iterator[str]:
    """A folder, and those above it from which a walk reaches it."""
    parts = Path(real).parts
    for path, name in zip(reversed(list(accumulate(parts, os.path.join))), reversed(parts), strict=True):
        yield path
        if name.startswith("."):
            return
