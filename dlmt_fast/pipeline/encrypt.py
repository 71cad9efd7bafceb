"""`encrypt_store`: from a store of images to a store of transformed images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import ParameterError, StoreError
from ..keys import Key
from ..schemes import DLMT, Plan
from ..stores.contract import Published, Shape, ShardSpec, ShardWriter, Source, Survey
from ..stores.folder import FolderWriter, can_be_listed
from ..stores.idx import IdxSource, IdxWriter, encode_labels
from ..stores.manifest import Manifest
from ..stores.publish import publish_bytes
from .job import header, job_record, settle_shape
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
) -> Summary:
    """Transform every image of a store into a new store of the same kind.

    Args:
        source_path, target_path: a folder of images, an IDX file, or a folder of IDX files.
        owner_folder: from the store's id to the folder for job record, journal, ledger and quarantine lists.
        source_kind: "folder" or "idx" where the content does not tell.
        progress: called with (samples done, samples in all).

    Returns:
        Counts that add up: inputs = outputs + quarantined.

    Raises:
        DlmtError: whatever is wrong. Nothing is then published, and the target is as it was.
    """
    options, started = options or JobOptions(), time.perf_counter()
    source = open_source(source_path, options, source_kind)
    target = Target(target_path, isinstance(source, IdxSource) and source.single, source_path, options.overwrite)
    survey = source.survey()
    shape = settle_shape(survey, options)
    plans = Plans(_planner(scheme, key, options))
    dtype = _stored_dtype(scheme, key, options, survey.shapes, source.kind)

    record = job_record(source, scheme, options, source.kind)
    seal = StoreSeal(key, store_id_of(key, record))
    owner = OwnerFolder(owner_folder(seal.store_id), seal)
    owner.prepare(target.path)
    summary = Summary("encrypt", str(source_path), str(target_path), seal.store_id, kind=source.kind, dtype=dtype)
    with owner.locked():
        owner.write_record(record)
        target.begin(seal.store_id)
        shards: list[Published] = []
        new: set[str] = set()
        try:
            count = counter(progress, sum(len(shard.samples) for shard in source.shards()))
            for shard in source.shards():
                names = _names(source, shard, seal, options, dtype, survey)
                target.refuse_unknown({*names.values(), _shard_name(target, shard)} - {""})
                writer = _writer(source, target, seal, shard, dtype)
                result = encrypt_shard(source, shard, names, plans, writer, options, count, target.retire_old)
                shards.append(result.published)
                new |= files_of_shard(target.root, source.kind, result.published)
                _keep(owner, shard, result)
                summary.add(len(shard.samples), result.published, result.refused)
            extras = _copy_labels(source, target, seal, new) if isinstance(source, IdxSource) else ()
            sealed = seal.seal_header(header(scheme, options, dtype, shape))
            manifest = Manifest(
                source.kind, seal.store_id, dtype, shape, summary.outputs, tuple(shards), tuple(extras), sealed
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
    if dtype == "bfloat16":
        raise ParameterError("stores hold no bfloat16, which NumPy's files do not know; use --dtype float32 or float16")
    if kind == "idx" and dtype not in ("uint8", "int32", "float32"):
        raise ParameterError(f"IDX files hold uint8, int32 or float32, not {dtype}; choose one with --dtype")
    return dtype


def _names(
    source: Source, shard: ShardSpec, seal: StoreSeal, options: JobOptions, dtype: str, survey: Survey
) -> dict[int, str]:
    """Each sample's output name by index, in writing order. IDX files have no names and keep their order."""
    if source.kind == "idx":
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


def _shard_name(target: Target, shard: ShardSpec) -> str:
    return target.path.name if target.single else shard.name


def _writer(source: Source, target: Target, seal: StoreSeal, shard: ShardSpec, dtype: str) -> ShardWriter:
    if isinstance(source, IdxSource):
        sizes = source.headers[shard.index].sizes
        return IdxWriter(target.root, seal.store_id, shard.index, _shard_name(target, shard), dtype, sizes)
    return FolderWriter(target.root, seal.store_id, shard.index)


def _keep(owner: OwnerFolder, shard: ShardSpec, result: ShardResult) -> None:
    """Ledger and quarantine list first, then the journal entry that makes the shard count."""
    owner.write_ledger(shard.index, result.published.sha256, result.ledger)
    owner.write_quarantine(shard.index, result.refused)
    owner.write_journal(result.published, shard.index, len(shard.samples), len(result.refused))


def _copy_labels(source: IdxSource, target: Target, seal: StoreSeal, new: set[str]) -> list[Published]:
    """Labels pass: training needs them. The name and time that gzip keeps do not."""
    copied = []
    target.refuse_unknown(source.extras)
    for name in source.extras:
        data = encode_labels(source.read_labels(name), name)
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
