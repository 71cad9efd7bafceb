"""`verify_store`: is everything there that was published, and, with the key, is it what the key made."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreDamagedError
from ..functional import decrypt
from ..keys import Key
from ..stores.contract import Published, Refused
from ..stores.digests import digest64, distinct
from ..stores.location import located
from ..stores.manifest import NAME, Manifest, is_single, read_manifest
from ..stores.walk import files_below
from .audit import check_counts, job_inputs
from .formats import format_of
from .formats.contract import check_published
from .owner import OwnerFolder
from .remote_storage import at_hand, check_access, downloaded
from .stored import StoredImages
from .summary import Progress, Summary, counter, no_progress
from .target import files_of

_SAMPLE = 64  # images decrypted a shard


def verify_store(
    store: str | Path,
    key: Key | None = None,
    owner_folder: Callable[[str], Path] | None = None,
    progress: Progress = no_progress,
) -> Summary:
    """Check a store's files against its manifest: every digest, every count, nothing extra.

    With the key also: the sealed header opens, and the first images of every shard decrypt. With the owner's folder
    also: inputs = outputs + quarantined, by job record, journal, ledger and quarantine list of every shard.

    Raises:
        StoreError: the store is unfinished. StoreDamagedError: something is missing, altered or extra.
        WrongKeyError: the key is another.
    """
    started = time.perf_counter()
    path = located(store)
    check_access(path, read_only=True)
    manifest, single = read_manifest(path), is_single(path)
    root = path.parent if single else path
    summary = Summary("verify", str(path), "", manifest.store_id, manifest.kind, manifest.dtype)
    if sum(shard.count for shard in manifest.shards) != manifest.count:
        raise StoreDamagedError(f"the shards of {path} hold another number of images than the manifest says")
    advance = counter(progress, manifest.count)
    form = format_of(manifest.kind)
    keyed = None if key is None else _Keyed(path, key, owner_folder)
    for index, shard in enumerate(manifest.shards):
        done, whole = 0, max(1, shard.count)
        with at_hand(root, form, shard) as folder:
            for count in form.verify(folder, shard):
                before, done = done, done + count
                advance(count, shard.size * done // whole - shard.size * before // whole)
            refused = [] if keyed is None else keyed.check(index, shard, folder)
        summary.add(shard.count + len(refused), shard, refused)
    with downloaded(root, [extra.name for extra in manifest.extras]) as folder:
        for extra in manifest.extras:
            check_published(folder / extra.name, extra)
    if not single:
        _refuse_extra(path, manifest)
    if keyed is not None:
        summary.notes += keyed.notes()
    summary.seconds = time.perf_counter() - started
    return summary


def _refuse_extra(path: Path, manifest: Manifest) -> None:
    expected = distinct(chain(files_of(path, manifest), [NAME]))
    count, first = 0, ""
    for name in files_below(path):
        if digest64(name) not in expected:
            count, first = count + 1, min(first or name, name)
    if count:
        raise StoreDamagedError(f"{path} holds {count} files that its manifest does not name, first {first}")


class _Keyed:
    """What the key and the owner's folder tell of a store, shard by shard."""

    def __init__(self, path: Path, key: Key, owner_folder: Callable[[str], Path] | None) -> None:
        self._store = StoredImages(path, key)
        store_id = self._store.manifest.store_id
        self._owner = OwnerFolder(owner_folder(store_id), self._store.seal) if owner_folder else None
        self._inputs = job_inputs(self._store, self._owner, key) if self._owner else None
        self._checked = self._refused = 0

    def check(self, index: int, shard: Published, folder: Path) -> list[Refused]:
        """Compare a shard, whose files are in a local folder, with the owner's entries, and decrypt some of it; gives
        what was quarantined, where the owner's folder tells."""
        store, owner = self._store, self._owner
        entry = owner.read_journal(index) if owner else None
        if entry is not None and (entry["output_sha256"], entry["outputs"]) != (shard.sha256, shard.count):
            raise StoreDamagedError(f"shard {index} is not the one that the owner's journal describes")
        ledger = owner.read_ledger(index, shard.sha256) if owner else None
        refused: list[Refused] = []
        if owner and self._inputs is not None:
            refused = check_counts(store, owner, index, shard, self._inputs[index], ledger)
            self._refused += len(refused)
        if ledger is not None or not store.needs_bounds:
            self._checked += self._decrypt_sample(shard, folder, ledger or {})
        return refused

    def notes(self) -> list[str]:
        """What was found, in words."""
        if self._checked or not self._store.needs_bounds:
            notes = [f"the key opens the header, and {self._checked} images decrypt"]
        else:
            notes = ["the key opens the header; no ledger at hand, so no image was decrypted"]
        if self._inputs is None:
            return [
                *notes,
                "the owner's folder is not at hand, so inputs and quarantined were not counted (--owner DIR)",
            ]
        counts = f"{sum(self._inputs)} inputs = {self._store.manifest.count} outputs + {self._refused} quarantined"
        return [*notes, f"the owner's folder agrees: {counts}"]

    def _decrypt_sample(self, shard: Published, folder: Path, ledger: dict[str, Any]) -> int:
        store = self._store
        bounds = np.array(ledger.get("bounds", []), np.int32)
        order = {name: place for place, (name, _) in enumerate(ledger.get("names", []))}
        checked = 0
        for batch in store.form.open(folder, shard, store.manifest).read():
            places = [order.get(name, batch.position + i) for i, name in enumerate(batch.names)]
            decrypt(batch.images, store.plans.of(batch.images), bounds=bounds[places] if store.needs_bounds else None)
            checked += len(batch.images)
            if checked >= _SAMPLE:
                break
        return checked
