"""What the files of a decrypt are called, shard by shard: originals come from the owner's ledgers, where those are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..canonical import canonical_json
from ..errors import StoreError
from ..stores.digests import digest64, repeated
from .original_names import OriginalNames
from .owner import OwnerFolder
from .plain_shard import PlainTask, as_png_stored
from .stored import StoredImages


class PlainNames:
    """The names of a whole decrypt, made a shard at a time: memory does not grow with their number.

    Args:
        single: the target, where it is one file.

    Raises:
        StoreError: min-max needs ledgers that are missing; or two files would have one name.
        StoreDamagedError: a ledger does not open.
    """

    def __init__(self, store: StoredImages, owner: OwnerFolder, single: Path | None) -> None:
        self._store, self._owner, self._single = store, owner, single
        count = len(store.manifest.shards)
        self.missing = [index for index in range(count) if not owner.has_ledger(index)]
        if self.missing and store.needs_bounds:
            raise StoreError(
                f"this store was made with {store.header['normalize']}: decrypting needs the ledger in the owner's "
                f"folder, and {owner.root} lacks {len(self.missing)} of {count}; --owner DIR names another"
            )
        self._originals = OriginalNames(lambda: (_names_of(ledger) for ledger in self._ledgers()))
        self._refuse_the_same()

    @property
    def ledgers(self) -> dict[str, Any]:
        """Which ledgers there are, for the record: without one, files keep their stored names."""
        digest = hashlib.sha256(canonical_json(self.missing)).hexdigest()
        return {"there": len(self._store.manifest.shards) - len(self.missing), "missing sha256": digest}

    @property
    def lacking(self) -> str:
        """Which ledgers the owner's folder has not, in words."""
        several = f"no {self._owner.ledger_name(self.missing[0])} ({len(self.missing)} are missing)"
        return "has " + ("no ledger" if len(self.missing) == len(self._store.manifest.shards) else several)

    def task(self, index: int) -> PlainTask:
        """The work on a shard.

        Raises:
            StoreDamagedError: its ledger does not open; or, where that is missing, its listing is damaged.
        """
        store, shard = self._store, self._store.manifest.shards[index]
        ledger = self._owner.read_ledger(index, shard.sha256) or {}
        name = self._single.name if self._single is not None else str(ledger.get("file", shard.name))
        if ledger or store.form.one_file:
            plain = store.form.plain_name
            restored = {stored: plain(self._originals.name(was), stored) for stored, was in _names_of(ledger).items()}
        else:
            restored = {stored: as_png_stored(stored) for stored in store.sample_names(shard)}
        return PlainTask(index, shard, name, restored)

    def files(self, task: PlainTask) -> Iterator[str]:
        """The files that a shard becomes."""
        yield from (task.name,) if self._store.form.one_file else task.restored.values()

    def _ledgers(self) -> Iterator[dict[str, Any]]:
        if not self._store.form.named:
            return
        for index, shard in enumerate(self._store.manifest.shards):
            yield self._owner.read_ledger(index, shard.sha256) or {}

    def _all_files(self) -> Iterator[str]:
        for index in range(len(self._store.manifest.shards)):
            yield from self.files(self.task(index))

    def _refuse_the_same(self) -> None:
        """Before any work: later a file of this name could be what a killed attempt left."""
        suspects, seen = repeated(self._all_files()), set[str]()
        for name in self._all_files() if suspects else ():
            if name in seen:
                raise StoreError(f"two images or files would both be decrypted to {name}")
            if digest64(name) in suspects:
                seen.add(name)


def _names_of(ledger: dict[str, Any]) -> dict[str, str]:
    """From stored names to original ones."""
    return dict(ledger.get("names", []))
