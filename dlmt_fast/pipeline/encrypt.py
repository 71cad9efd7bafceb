"""`encrypt_store`: from a store of images to a store of transformed images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import StoreError
from ..keys import Key
from ..schemes import DLMT, Plan
from ..stores.contract import Published, Shape, ShardSpec, Source, Survey
from ..stores.folder import can_be_listed
from ..stores.manifest import Manifest
from ..stores.publish import publish_bytes
from .job import header, job_record, settle_shape
from .kinds import UNNAMED, check_dtype, extra_names, is_single, new_writer, shard_name, target_kind
from .open import open_source
from .options import JobOptions
from .owner import OwnerFolder
from .seal import StoreSeal, store_id_of
from .summary import Progress, Summary, counter, no_progress
from .target import Target, files_of_shard
from .worker import Namer, Plans, ShardResult, encrypt_shard


def encrypt_store(
    source_path: Path,
    target_path: Path,
    key: Key,
    scheme: DLMT,
    owner_folder: Callable[[str], Path],
    options: JobOptions | None = None,
    source_kind: str | None = None,
    progress: Progress = no_progress,
    target_named: str | None = None,
) -> Summary:
    """Transform every image of a store into a new store: of the same kind, or of `target_named`.

    Args:
        source_path: a folder of images, an IDX or .npy file, a folder of such files, or CIFAR-10 or CIFAR-100.
        target_path: a file where the source is one of images, else a folder.
        owner_folder: from the store's id to the folder for job record, journal, ledger and quarantine lists.
        source_kind: "folder", "idx", "cifar" or "npy" where the content does not tell.
        progress: called with (samples done, samples in all).
        target_named: the kind of the target; see `kinds.TARGETS`.

    Returns:
        Counts that add up: inputs = outputs + quarantined.

    Raises:
        DlmtError: whatever is wrong. Nothing is then published, and the target is as it was.
    """
    options, started = options or JobOptions(), time.perf_counter()
    source = open_source(source_path, options, source_kind)
    kind = target_kind(source, target_named)
    target = Target(target_path, is_single(source), source_path, options.overwrite)
    survey = source.survey()
    shape = settle_shape(survey, options)
    plans = Plans(_planner(scheme, key, options))
    dtype = _stored_dtype(scheme, key, options, survey.shapes, kind)

    record = job_record(source, scheme, options, kind)
    seal = StoreSeal(key, store_id_of(key, record))
    owner = OwnerFolder(owner_folder(seal.store_id), seal)
    owner.prepare(target.path)
    summary = Summary("encrypt", str(source_path), str(target_path), seal.store_id, kind=kind, dtype=dtype)
    with owner.locked():
        owner.write_record(record)
        target.begin(seal.store_id)
        shards: list[Published] = []
        new: set[str] = set()
        try:
            count = counter(progress, sum(len(shard.samples) for shard in source.shards()))
            for shard in source.shards():
                names = _names(source, kind, shard, seal, options, dtype, survey)
                name = shard_name(source, shard, target.path if target.single else None, seal, options)
                target.refuse_unknown({*names.values(), name} - {""})
                writer = new_writer(source, target.root, seal, shard, name, dtype)
                result = encrypt_shard(source, shard, names, plans, writer, options, count, target.retire_old)
                shards.append(result.published)
                new |= files_of_shard(target.root, kind, result.published)
                if name != shard.name and kind in UNNAMED:
                    result.ledger["file"] = shard.name
                _keep(owner, shard, result)
                summary.add(len(shard.samples), result.published, result.refused)
            extras = _copy_labels(source, target, seal, [shard.name for shard in shards], new)
            sealed = seal.seal_header(header(scheme, options, dtype, shape))
            manifest = Manifest(
                kind, seal.store_id, dtype, shape, summary.outputs, tuple(shards), tuple(extras), sealed
            )
            target.finish(manifest, seal.store_id, new)
        except BaseException:
            target.give_up(new)
            raise
    summary.notes += _notes(source, options)
    summary.seconds = time.perf_counter() - started
    return summary


def _planner(scheme: DLMT, key: Key, options: JobOptions) -> Callable[[tuple[int, ...]], Plan]:
    def make(shape: tuple[int, ...]) -> Plan:
        return scheme.plan(key, shape, options.normalize, options.dtype, options.mean, options.std)

    return make


def _stored_dtype(scheme: DLMT, key: Key, options: JobOptions, shapes: dict[Shape, list[str]], kind: str) -> str:
    """The dtype of the files; refuses what no plan or no file of this kind can hold, before any work."""
    make = _planner(scheme, key, options)
    dtype = {make((channels, 1, 1)).dtype for channels in {shape[0] for shape in shapes}}.pop()
    check_dtype(kind, dtype)
    return dtype


def _names(
    source: Source, kind: str, shard: ShardSpec, seal: StoreSeal, options: JobOptions, dtype: str, survey: Survey
) -> dict[int, str]:
    """Each sample's output name by index, in writing order. Images in arrays have no names and keep their order."""
    if kind in UNNAMED:
        return dict.fromkeys(shard.samples, "")
    paths = [stamp.path for stamp in source.stamps()]
    namer = Namer(
        seal, options.names == "keep", options.classes == "index", paths, ".png" if dtype == "uint8" else ".npy"
    )
    never_written = {item.index for item in survey.refused}
    named: dict[str, int] = {}
    for index in shard.samples:
        name = seal.name(paths[index]) if index in never_written else namer.name(paths[index])
        if name in named:
            raise StoreError(f"{paths[named[name]]} and {paths[index]} would both be written as {name}")
        if not can_be_listed(name):
            raise StoreError(f"{paths[index]!r} cannot keep its name or class in a store; rename it")
        named[name] = index
    return {index: name for name, index in sorted(named.items())}


def _keep(owner: OwnerFolder, shard: ShardSpec, result: ShardResult) -> None:
    """Ledger and quarantine list first, then the journal entry that makes the shard count."""
    owner.write_ledger(shard.index, result.published.sha256, result.ledger)
    owner.write_quarantine(shard.index, result.refused)
    owner.write_journal(result.published, shard.index, len(shard.samples), len(result.refused))


def _copy_labels(source: Source, target: Target, seal: StoreSeal, shards: list[str], new: set[str]) -> list[Published]:
    """Labels pass: training needs them."""
    copied = []
    for original, name in extra_names(source, shards):
        target.refuse_unknown([name])
        data = source.extra_bytes(original)
        new.add(name)
        publish_bytes(target.root / name, data, seal.store_id)
        copied.append(Published(name, 1, len(data), hashlib.sha256(data).hexdigest()))
    return copied


def _notes(source: Source, options: JobOptions) -> list[str]:
    notes = []
    if options.normalize.startswith("minmax"):
        notes.append("decrypting min-max needs the ledger in the owner's folder: keep it as safe as the key")
    if source.left_alone:
        notes.append(f"left alone: {source.left_alone}")
    return notes
