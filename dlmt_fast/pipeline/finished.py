"""Which shards of a job count as done: those whose journal entry holds, and whose files are there as it says."""

from __future__ import annotations

from pathlib import Path

from ..errors import StoreDamagedError
from ..stores.contract import Published, ShardSpec
from ..stores.folder import read_listed
from .owner import OwnerFolder
from .stored import check_published, read_shard_listing
from .worker import ShardResult


def finished(
    root: Path, kind: str, shard: ShardSpec, store_id: str, owner: OwnerFolder, check: bool
) -> ShardResult | None:
    """The shard's result where it counts, else None: it is to be done again.

    Args:
        shard: with the name that it is published under.
        check: compare digests, not only sizes.
    """
    try:
        entry = owner.read_journal(shard.index)
        if entry is None or (entry["job"], entry["inputs"]) != (store_id, len(shard.samples)):
            return None
        published = Published(shard.name, entry["outputs"], entry["size"], entry["output_sha256"])
        refused = owner.read_quarantine(shard.index)
        if refused is None or len(refused) != entry["quarantined"]:
            return None
        if owner.read_ledger(shard.index, published.sha256) is None or not _there(root, kind, published, check):
            return None
    except StoreDamagedError:
        return None
    return ShardResult(published, refused)


def _there(root: Path, kind: str, published: Published, check: bool) -> bool:
    if kind != "folder":
        if check:
            check_published(root / published.name, published)
        return _size(root / published.name) == published.size
    for entry in read_shard_listing(root, published):
        if check:
            read_listed(root, entry)
        elif _size(root / entry.name) != entry.size:
            return False
    return True


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
