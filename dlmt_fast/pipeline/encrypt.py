"""`encrypt_store`: from a store of images to a store of transformed images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ..keys import Key
from ..schemes import DLMT
from ..stores.contract import Published, Shape, ShardSpec, Source
from ..stores.folder import FolderSource
from ..stores.manifest import Manifest
from ..stores.publish import OS, FileOps, publish_bytes
from .finished import finished
from .job import differences, header, job_record, settle_shape
from .kinds import check_dtype, extra_names, is_single, shard_name, target_kind
from .naming import OutputNames
from .open import open_source
from .options import JobOptions
from .owner import OwnerFolder
from .processes import run_here, run_in_processes
from .seal import StoreSeal, store_id_of
from .summary import Progress, Summary, counter, no_progress
from .target import Target, files_of_shard
from .worker import JobContext, ShardResult, Task, planner


def encrypt_store(
    source_path: Path,
    target_path: Path,
    key: Key,
    scheme: DLMT,
    owner_folder: Callable[[str], Path],
    options: JobOptions | None = None,
    source_kind: str | None = None,
    progress: Progress = no_progress,
    ops: FileOps = OS,
    tell: Callable[[str], None] = lambda text: None,
    target_named: str | None = None,
) -> Summary:
    """Transform every image of a store into a new store: of the same kind, or of `target_named`.

    A shard counts once its journal entry is on disk. A job that is stopped, fails or is killed after that leaves its
    shards, marked as unfinished; the same call with `options.resume` does the rest. One that stops before any shard
    counts leaves the target as it was.

    Args:
        source_path: a folder of images, an IDX or .npy file, a folder of such files, or CIFAR-10 or CIFAR-100.
        target_path: a file where the source is one of images, else a folder.
        owner_folder: from the store's id to the folder for job record, journal, ledger and quarantine lists.
        source_kind: "folder", "idx", "cifar" or "npy" where the content does not tell.
        progress: called with (samples done, samples in all).
        ops: the disk.
        tell: called with what is left and how to go on, when the job stops before its end.
        target_named: the kind of the target; see `kinds.TARGETS`.

    Returns:
        Counts that add up: inputs = outputs + quarantined.

    Raises:
        StoreError: among others, `resume` with other inputs, options or key; the message says what differs.
        DlmtError, OSError: whatever else is wrong.
    """
    options, started = options or JobOptions(), time.perf_counter()
    source = open_source(source_path, options, source_kind)
    kind = target_kind(source, target_named)
    target = Target(target_path, is_single(source), source_path, options.overwrite, options.resume, ops)
    survey = source.survey()
    shape = settle_shape(survey, options)
    dtype = _stored_dtype(scheme, key, options, survey.shapes, kind)

    record = job_record(source, scheme, options, kind)
    seal = StoreSeal(key, store_id_of(key, record))
    store_id = seal.store_id
    if options.resume:
        target.admit(store_id, lambda other: _what_differs(OwnerFolder(owner_folder(other), seal), record))
    names = OutputNames(source, seal, options, dtype, {item.index for item in survey.refused})
    owner = OwnerFolder(owner_folder(store_id), seal, ops)
    owner.prepare(target.path)
    summary = Summary("encrypt", str(source_path), str(target_path), store_id, kind=kind, dtype=dtype)
    single = target.path if target.single else None
    shards = [replace(shard, name=shard_name(source, shard, single, seal, options)) for shard in source.shards()]
    with owner.locked() as lock:
        owner.write_record(record)
        if target.resumed:
            target.go_on(store_id, owner.read_replaced())
        else:
            _begin(target, owner, store_id, _files(source, shards, names))
        results = _finished(target, kind, shards, store_id, owner, options.check) if target.resumed else {}
        todo = [shard for shard in shards if shard.index not in results]
        advance = counter(progress, sum(len(shard.samples) for shard in shards))
        advance(sum(len(shard.samples) for shard in shards if shard.index in results))
        if results:
            summary.notes.append(f"resumed: {len(results)} of {len(shards)} shards were done already")
        processes = min(options.workers, len(todo)) if source.kind == "folder" else 1
        job = JobContext(
            key, scheme, options, store_id, dtype, target.root, owner.root,
            target.manifest if target.old else None,
            1 if processes > 1 else options.workers, 1 if processes > 1 else None, ops,
        )  # fmt: skip
        begun: dict[int, Task] = {}
        try:
            if todo and target.resumed:
                target.unfinish()
            tasks = _tasks(source, todo, names, begun)
            done = (
                run_in_processes(job, tasks, processes, advance, lock)
                if processes > 1
                else run_here(job, tasks, advance)
            )
            for task, result in done:
                results[task.shard.index] = result
                del begun[task.shard.index]
            extras = _copy_labels(source, target, store_id, shards, ops)
            for shard in shards:
                result = results[shard.index]
                summary.add(len(shard.samples), result.published, result.refused)
                if target.old:
                    target.keep(files_of_shard(target.root, kind, result.published))
            target.keep(extra.name for extra in extras)
            published = tuple(results[shard.index].published for shard in shards)
            sealed = seal.seal_header(header(scheme, options, dtype, shape))
            manifest = Manifest(kind, store_id, dtype, shape, summary.outputs, published, tuple(extras), sealed)
            target.finish(manifest, store_id)
            owner.forget_replaced()
        except BaseException:
            for task in begun.values():
                if finished(target.root, kind, task.shard, store_id, owner, False) is None:
                    target.discard([*filter(None, task.names.values()), task.shard.name])
                else:
                    results[task.shard.index] = ShardResult(Published("", 0, 0, ""))
            if target.stop(store_id, bool(results)):
                tell(
                    f"{len(results)} of {len(shards)} shards are done and stay, nothing half-written does; "
                    "the same command with --resume goes on"
                )
            raise
    summary.notes += _notes(source, options)
    summary.seconds = time.perf_counter() - started
    return summary


def _begin(target: Target, owner: OwnerFolder, store_id: str, files: Iterator[str]) -> None:
    if target.old:
        target.refuse_unknown(files)
        owner.write_replaced(target.old)
    else:
        owner.forget_replaced()
    target.begin(store_id)


def _files(source: Source, shards: list[ShardSpec], names: OutputNames) -> Iterator[str]:
    """What may be written."""
    for shard in shards:
        yield from filter(None, names.of(shard).values())
        yield shard.name
    for _, name in extra_names(source, [shard.name for shard in shards]):
        yield name


def _finished(
    target: Target, kind: str, shards: list[ShardSpec], store_id: str, owner: OwnerFolder, check: bool
) -> dict[int, ShardResult]:
    found = ((shard.index, finished(target.root, kind, shard, store_id, owner, check)) for shard in shards)
    return {index: result for index, result in found if result is not None}


def _tasks(source: Source, shards: list[ShardSpec], names: OutputNames, begun: dict[int, Task]) -> Iterator[Task]:
    """The work, made when it is asked for and entered in `begun`."""
    originals = source.shards()
    for shard in shards:
        reader = source.part(shard.samples) if isinstance(source, FolderSource) else source
        begun[shard.index] = Task(shard, names.of(shard), reader, originals[shard.index].name)
        yield begun[shard.index]


def _what_differs(other: OwnerFolder, record: dict[str, object]) -> str:
    found = other.read_record()
    if found is None:
        return f"the key is another, or {other.root} is not where that job kept its record (--owner DIR)"
    return differences(found, record) or "the key is another"


def _stored_dtype(scheme: DLMT, key: Key, options: JobOptions, shapes: Iterable[Shape], kind: str) -> str:
    """The dtype of the files; refuses what no plan or no file of this kind can hold, before any work."""
    make = planner(scheme, key, options)
    dtype = {make((channels, 1, 1)).dtype for channels in {shape[0] for shape in shapes}}.pop()
    check_dtype(kind, dtype)
    return dtype


def _copy_labels(
    source: Source, target: Target, store_id: str, shards: list[ShardSpec], ops: FileOps
) -> list[Published]:
    """Labels pass: training needs them."""
    copied = []
    for original, name in extra_names(source, [shard.name for shard in shards]):
        data = source.extra_bytes(original)
        publish_bytes(target.root / name, data, store_id, ops=ops)
        copied.append(Published(name, 1, len(data), hashlib.sha256(data).hexdigest()))
    return copied


def _notes(source: Source, options: JobOptions) -> list[str]:
    notes = []
    if options.normalize.startswith("minmax"):
        notes.append("decrypting min-max needs the ledger in the owner's folder: keep it as safe as the key")
    if source.left_alone:
        notes.append(f"left alone: {source.left_alone}")
    return notes
