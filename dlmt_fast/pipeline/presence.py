"""Whether the files of published shards are in a remote place: one listing of it, compared with what is to be there.

Both are sorted by name on disk, so that memory does not grow with the number of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from ..errors import StoreDamagedError
from ..stores.contract import FileStamp, Published
from ..stores.listing import Listed
from ..stores.objects import Objects, objects_at
from ..stores.stamps import Stamps
from .formats import StoredFormat
from .remote_storage import at_hand, listing_of

_AT_ONCE = 8  # listings of shards that are read


def missing_files(root: Path, form: StoredFormat, shards: Mapping[int, Published], check: bool) -> set[int]:
    """Which of some shards, by index, are not there with all their files and sizes.

    Args:
        check: compare digests too, for which everything is downloaded, a shard at a time.
    """
    if not shards:
        return set()
    objects = objects_at(root)
    missing: set[int] = set()
    expected = Stamps(_expected(objects, form, shards, missing))
    found = Stamps(FileStamp(name, size, 0) for name, size in objects.entries())
    missing |= _unmatched(iter(expected), iter(found))
    if check:
        missing |= {i for i, shard in shards.items() if i not in missing and not _as_published(root, form, shard)}
    return missing


def stands_there(root: Path, form: StoredFormat, shard: Published) -> bool:
    """Whether the file is there that comes last of a shard and stands for it."""
    objects = objects_at(root)
    if form.one_file:
        return objects.size(shard.name) == shard.size
    return listing_of(objects, form, shard) is not None


def _expected(
    objects: Objects, form: StoredFormat, shards: Mapping[int, Published], missing: set[int]
) -> Iterator[FileStamp]:
    """All files of the shards, each with its size and its shard's index; shards whose listing is not there as it was
    published become missing."""

    def listed(item: tuple[int, Published]) -> tuple[int, list[Listed] | None]:
        try:
            return item[0], listing_of(objects, form, item[1])
        except StoreDamagedError:
            return item[0], None

    items = iter(shards.items())
    with ThreadPoolExecutor(_AT_ONCE, "dlmt-listings") as pool:
        while some := list(islice(items, 4 * _AT_ONCE)):
            for index, entries in pool.map(listed, some):
                if entries is None or sum(entry.size for entry in entries) != shards[index].size:
                    missing.add(index)
                else:
                    yield from (FileStamp(entry.name, entry.size, index) for entry in entries)


def _unmatched(expected: Iterator[FileStamp], found: Iterator[FileStamp]) -> set[int]:
    """The shards with a file that is not found with its size, from two runs in the order of the paths' bytes."""
    unmatched = set()
    there = next(found, None)
    for wanted in expected:
        while there is not None and there.path.encode() < wanted.path.encode():
            there = next(found, None)
        if there is None or (there.path, there.size) != (wanted.path, wanted.size):
            unmatched.add(int(wanted.state))
    return unmatched


def _as_published(root: Path, form: StoredFormat, shard: Published) -> bool:
    try:
        with at_hand(root, form, shard) as folder:
            return form.there(folder, shard, True)
    except StoreDamagedError:
        return False
