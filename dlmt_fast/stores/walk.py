"""Walking folders entry by entry: no list of a folder's content is made, whose size has no bound.

The functions above the line that says so take local and remote folders; those below, local ones alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Protocol, TypeAlias

from ..errors import StoreError
from . import remote
from .contract import FileStamp
from .location import is_remote

#: Files by name, sorted by the names' bytes; each with its stamp where the listing told it.
Found: TypeAlias = dict[str, "FileStamp | None"]

_GLANCE = 10_000  # entries of a remote folder, which come a thousand an answer


class Entry(Protocol):
    """What is asked of an entry of a folder."""

    @property
    def name(self) -> str: ...
    def is_dir(self) -> bool: ...
    def is_file(self) -> bool: ...


class RemoteEntry:
    """An entry of a remote folder, which needs no further question."""

    def __init__(self, found: remote.Listed) -> None:
        self.name, self._folder = found.path, found.folder

    def is_dir(self) -> bool:
        return self._folder

    def is_file(self) -> bool:
        return not self._folder


def exists(path: Path) -> bool:
    """Whether there is a file or folder; an answer that a server refuses is an error, not a no."""
    return what_is(path) != "" if is_remote(path) else path.exists()


def is_folder(path: Path) -> bool:
    """Whether this is a folder."""
    return what_is(path) == "directory" if is_remote(path) else path.is_dir()


def is_file(path: Path) -> bool:
    """Whether this is a file."""
    return what_is(path) == "file" if is_remote(path) else path.is_file()


def what_is(path: Path) -> str:
    """What a remote path names: "file", "directory", or "" where there is nothing."""
    try:
        told = remote.information(path)
        return "directory" if told.get("mimetype") == "text/html" else str(told["type"])  # of HTTP: a page of links
    except FileNotFoundError:
        return ""


def entries(folder: Path) -> Iterator[Entry]:
    """What is in a folder, in no order."""
    if is_remote(folder):
        yield from map(RemoteEntry, remote.children(folder))
        return
    with os.scandir(folder) as found:
        yield from found


def files_below(root: Path, above: str = "") -> Iterator[str]:
    """The relative POSIX paths of all files and links below `root`, but for links to folders."""
    if is_remote(root):
        yield from (found.path for found in remote.files_below(root))
        return
    with os.scandir(root) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from files_below(Path(entry.path), f"{above}{entry.name}/")
            elif not entry.is_dir():
                yield above + entry.name


def glanced(folder: Path) -> Iterator[Entry]:
    """What is in a folder, to tell what kind of store it is; of a remote one, the first entries."""
    return islice(entries(folder), _GLANCE) if is_remote(folder) else entries(folder)


def glanced_below(folder: Path) -> Iterator[str]:
    """As `glanced`, of the files at any depth."""
    return islice(files_below(folder), _GLANCE) if is_remote(folder) else files_below(folder)


def files_in(folder: Path) -> Found:
    """The files in a folder."""
    if is_remote(folder):
        return _in_order(_stamp(each) for each in remote.children(folder) if not each.folder)
    return _in_order(entry.name for entry in entries(folder) if entry.is_file())


def files_under(folder: Path, hidden: bool = True) -> Found:
    """The files below a folder at any depth; links to folders are not followed.

    Args:
        hidden: take those too of which a part of the path begins with a dot.
    """
    if is_remote(folder):
        found = map(_stamp, remote.files_below(folder))
        return _in_order(stamp for stamp in found if hidden or not hidden_part(stamp.path))
    names: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if hidden or not name.startswith(".")]
        taken = [name for name in files if hidden or not name.startswith(".")]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in taken]
    return _in_order(names)


def stamp_of(root: Path, name: str, found: Found) -> FileStamp:
    """The stamp of a file that was found."""
    return found[name] or FileStamp.of(root, name)


def hidden_part(path: str) -> str:
    """A relative path up to its first part that begins with a dot; "" where there is none."""
    parts = path.split("/")
    first = next((place for place, part in enumerate(parts) if part.startswith(".")), -1)
    return "/".join(parts[: first + 1])


def _stamp(found: remote.Listed) -> FileStamp:
    return FileStamp(found.path, found.size, found.state)


def _in_order(found: Iterable[str | FileStamp]) -> Found:
    stamps = {each if isinstance(each, str) else each.path: None if isinstance(each, str) else each for each in found}
    return dict(sorted(stamps.items(), key=lambda item: os.fsencode(item[0])))


# --- local folders ---------------------------------------------------------------------------------------------------


def is_empty(folder: Path) -> bool:
    """Whether a folder has no entry."""
    return next(entries(folder), None) is None


def folders_below(root: Path) -> Iterator[Path]:
    """`root` and all folders below it, each before those in it; links are not followed."""
    yield root
    with os.scandir(root) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from folders_below(Path(entry.path))


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
