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
from ..stores.contract import Published
from ..stores.digests import digest64, distinct
from ..stores.manifest import NAME, Manifest, read_manifest
from ..stores.walk import files_below
from .audit import check_counts, job_inputs
from .formats import format_of
from .formats.contract import check_published
from .owner import OwnerFolder
from .stored import StoredImages
from .summary import Progress, Summary, counter, no_progress
from .target import files_of

_SAMPLE = 64  # images decrypted a shard


def verify_store(
    path: Path,
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
    manifest = read_manifest(path)
    root = path if path.is_dir() else path.parent
    summary = Summary("verify", str(path), "", manifest.store_id, manifest.kind, manifest.dtype)
    if sum(shard.count for shard in manifest.shards) != manifest.count:
        raise StoreDamagedError(f"the shards of {path} hold another number of images than the manifest says")
    advance = counter(progress, manifest.count)
    for shard in manifest.shards:
        done, whole = 0, max(1, shard.count)
        for count in format_of(manifest.kind).verify(root, shard):
            before, done = done, done + count
            advance(count, shard.size * done // whole - shard.size * before // whole)
        summary.add(shard.count, shard, [])
    for extra in manifest.extras:
        check_published(root / extra.name, extra)
    if path.is_dir():
        _refuse_extra(path, manifest)
    if key is not None:
        summary.notes += _verify_with_key(path, key, owner_folder)
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


def _verify_with_key(path: Path, key: Key, owner_folder: Callable[[str], Path] | None) -> list[str]:
    store = StoredImages(path, key)
    owner = OwnerFolder(owner_folder(store.manifest.store_id), store.seal) if owner_folder else None
    inputs = job_inputs(store, owner, key) if owner else None
    checked = refused = 0
    for index, shard in enumerate(store.manifest.shards):
        entry = owner.read_journal(index) if owner else None
        if entry is not None and (entry["output_sha256"], entry["outputs"]) != (shard.sha256, shard.count):
            raise StoreDamagedError(f"shard {index} is not the one that the owner's journal describes")
        ledger = owner.read_ledger(index, shard.sha256) if owner else None
        if owner and inputs is not None:
            refused += check_counts(store, owner, index, shard, inputs[index], ledger)
        if ledger is not None or not store.needs_bounds:
            checked += _decrypt_sample(store, shard, ledger or {})
    if checked or not store.needs_bounds:
        notes = [f"the key opens the header, and {checked} images decrypt"]
    else:
        notes = ["the key opens the header; no ledger at hand, so no image was decrypted"]
    if inputs is None:
        return [*notes, "the owner's folder is not at hand, so inputs and quarantined were not counted (--owner DIR)"]
    counts = f"{sum(inputs)} inputs = {store.manifest.count} outputs + {refused} quarantined"
    return [*notes, f"the owner's folder agrees: {counts}"]


def _decrypt_sample(store: StoredImages, shard: Published, ledger: dict[str, Any]) -> int:
    bounds = np.array(ledger.get("bounds", []), np.int32)
    order = {name: place for place, (name, _) in enumerate(ledger.get("names", []))}
    checked = 0
    for batch in store.open(shard).read():
        places = [order.get(name, batch.position + i) for i, name in enumerate(batch.names)]
        decrypt(batch.images, store.plans.of(batch.images), bounds=bounds[places] if store.needs_bounds else None)
        checked += len(batch.images)
        if checked >= _SAMPLE:
            break
    return checked
