"""Which shards of a job count as done: those whose journal entry holds, and whose files are there as it says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import StoreDamagedError
from ..stores.contract import Published, ShardSpec
from ..stores.location import is_remote
from .formats import StoredFormat
from .owner import OwnerFolder
from .presence import missing_files, stands_there
from .task import ShardResult


def finished(
    root: Path, form: StoredFormat, shards: Iterable[ShardSpec], store_id: str, owner: OwnerFolder, check: bool
) -> dict[int, ShardResult]:
    """The results of the shards that count, by index; the others are to be done again.

    Args:
        shards: with the names that they are published under.
        check: compare digests, not only sizes. Every byte is read for it; what a server says of its objects is not
            taken for their content.
    """
    entered = ((shard.index, _entered(shard, store_id, owner)) for shard in shards)
    if not is_remote(root):
        return {i: result for i, result in entered if result and _there(root, form, result.published, check)}
    found = {i: result for i, result in entered if result}
    for index in missing_files(root, form, {i: result.published for i, result in found.items()}, check):
        del found[index]
    return found


def just_finished(
    root: Path, form: StoredFormat, shard: ShardSpec, store_id: str, owner: OwnerFolder, check: bool
) -> ShardResult | None:
    """The result of a shard that this run may have finished, where it counts. Of a remote shard of many files only the
    one that comes last is looked for.

    Args:
        check: compare digests in a local target, as the run did before it began the shard anew.
    """
    result = _entered(shard, store_id, owner)
    if result is None:
        return None
    if is_remote(root):
        return result if stands_there(root, form, result.published) else None
    return result if _there(root, form, result.published, check) else None


def _entered(shard: ShardSpec, store_id: str, owner: OwnerFolder) -> ShardResult | None:
    """What the owner's folder says of a shard, where it is whole."""
    try:
        entry = owner.read_journal(shard.index)
        if entry is None or (entry["job"], entry["inputs"]) != (store_id, len(shard.samples)):
            return None
        published = Published(shard.name, entry["outputs"], entry["size"], entry["output_sha256"])
        refused = owner.read_quarantine(shard.index)
        if refused is None or len(refused) != entry["quarantined"]:
            return None
        if owner.read_ledger(shard.index, published.sha256) is None:
            return None
    except StoreDamagedError:
        return None
    return ShardResult(published, refused)


def _there(root: Path, form: StoredFormat, published: Published, check: bool) -> bool:
    try:
        return form.there(root, published, check)
    except StoreDamagedError:
        return False
