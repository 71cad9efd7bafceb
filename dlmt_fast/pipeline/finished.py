"""Which shards of a job count as done: those whose journal entry holds, and whose files are there as it says."""

from __future__ import annotations

from pathlib import Path

from ..errors import StoreDamagedError
from ..stores.contract import Published, ShardSpec
from .formats import StoredFormat
from .owner import OwnerFolder
from .worker import ShardResult


def finished(
    root: Path, form: StoredFormat, shard: ShardSpec, store_id: str, owner: OwnerFolder, check: bool
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
        if owner.read_ledger(shard.index, published.sha256) is None or not form.there(root, published, check):
            return None
    except StoreDamagedError:
        return None
    return ShardResult(published, refused)
