"""Counting a finished store against the owner's folder: inputs = outputs + quarantined, shard by shard."""

from __future__ import annotations

from typing import Any

from ..errors import StoreDamagedError
from ..keys import Key
from ..stores.contract import Published, Refused
from .owner import OwnerFolder
from .seal import store_id_of
from .stored import StoredImages


def job_inputs(store: StoredImages, owner: OwnerFolder, key: Key) -> list[int] | None:
    """How many samples each shard of the job had, from the job record; None where the folder has no record.

    Raises:
        StoreDamagedError: the record is another job's, or its shards are not the store's.
    """
    record, manifest = owner.read_record(), store.manifest
    if record is None:
        if (owner.root / "job.json").exists():
            raise StoreDamagedError(f"{owner.root / 'job.json'} is damaged")
        return None
    if _id_of(key, record) != manifest.store_id:
        raise StoreDamagedError(f"{owner.root / 'job.json'} is damaged or of another job than {store.path}")
    if len(record["shards"]) != len(manifest.shards):
        raise StoreDamagedError(
            f"{store.path} has {len(manifest.shards)} shards, the job had {len(record['shards'])}: some are missing"
        )
    return [stop - start for start, stop in record["shards"]]


def _id_of(key: Key, record: dict[str, Any]) -> str | None:
    try:
        return store_id_of(key, record)
    except ValueError:  # it holds what no record holds
        return None


def check_counts(
    store: StoredImages, owner: OwnerFolder, index: int, shard: Published, inputs: int, ledger: dict[str, Any] | None
) -> list[Refused]:
    """Compare a shard's journal entry, quarantine list and ledger with each other and with what was published; gives
    the quarantined samples.

    Raises:
        StoreDamagedError: a number differs from another, or an entry or list is missing.
    """
    entry, refused, named = owner.read_journal(index), owner.read_quarantine(index), store.form.named
    if entry is None or refused is None:
        what = "journal entry" if entry is None else "readable quarantine list"
        raise StoreDamagedError(f"{owner.root} has no {what} of shard {index}, and the store has the shard")
    found = {
        "inputs by the job record": inputs,
        "inputs by the journal": entry["inputs"],
        "outputs and quarantined by the journal": entry["outputs"] + entry["quarantined"],
        "outputs and quarantined by the store and the list": shard.count + len(refused),
    }
    if ledger is not None and named:
        found["names and quarantined by the ledger and the list"] = len(ledger["names"]) + len(refused)
    if ledger is not None and store.needs_bounds:
        found["bounds and quarantined by the ledger and the list"] = len(ledger["bounds"]) + len(refused)
    if len(set(found.values())) > 1:
        counts = ", ".join(f"{count} {what}" for what, count in found.items())
        raise StoreDamagedError(f"the counts of shard {index} do not add up: {counts}")
    return refused
