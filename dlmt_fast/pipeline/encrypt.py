"""`encrypt_store`: from a store of images to a store of transformed images."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError
from ..keys import Key
from ..schemes import DLMT
from ..stores.location import is_remote, located
from ..stores.publish import OS, FileOps
from .locks import JobLocks
from .options import JobOptions
from .planned import PlannedJob, kept_of, plan_job
from .ray_engine import check_ray
from .remote_storage import check_access
from .run import Run
from .summary import Progress, Summary, no_progress
from .transforming import transform_on

_SHOWN = 20  # classes that the summary names


def encrypt_store(
    source: str | Path,
    target: str | Path,
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
        source: a folder of images, an IDX or .npy file, a folder of such files, or CIFAR-10 or CIFAR-100; or a URL of
            such, see `located`.
        target: a file where the source is one of images, else a folder; or a URL of such on S3, Google's or Azure's
            storage.
        owner_folder: from the store's id to the folder for job record, journal, ledger and quarantine lists.
        source_kind: "folder", "idx", "cifar" or "npy" where the content does not tell.
        progress: called with a `Standing` as work is done.
        ops: the disk.
        tell: called with what is left and how to go on, when the job stops before its end.
        target_named: the kind of the target; see `kinds.TARGETS`.

    Returns:
        Counts that add up: inputs = outputs + quarantined.

    Raises:
        StoreError: among others, `resume` with other inputs, options or key; the message says what differs.
        BackendError: the device of the options cannot be used here.
        DlmtError, OSError: whatever else is wrong.
    """
    options, started = options or JobOptions(), time.perf_counter()
    transform_on(options.device, None)  # before anything is read or written
    source_path, target_path = located(source), located(target)
    check_access(target_path)
    if options.engine == "ray":
        check_ray()
        source_path, target_path = (  # tasks run in other folders
            path if is_remote(path) else path.absolute() for path in (source_path, target_path)
        )
    job = plan_job(
        source_path, target_path, key, scheme, owner_folder, options, source_kind, target_named, ops
    )  # fmt: skip
    summary = Summary("encrypt", str(source_path), str(target_path), job.store_id, kind=job.kind, dtype=job.dtype)
    if options.slice.number > len(job.shards):
        summary.notes.append(f"slice {options.slice} has nothing to do: the job has {len(job.shards)} shards")
        return summary
    if not job.target.storage.shared and (options.engine == "ray" or (options.workers or 1) > 1):
        raise UsageError(f"{target_path} is seen by one process alone; use --workers 1 and no Ray")
    note = job.owner.prepare(job.target.path)
    with JobLocks(job.owner.root, options.slice) as locks:
        run = Run(job, ops, locks)
        run.start(summary, progress)
        try:
            run.work(progress)
            run.finish(summary)
        except BaseException:
            run.stop(tell)
            raise
    summary.notes += _notes(job) + ([note] if note else [])
    summary.seconds = time.perf_counter() - started
    return summary


def _notes(job: PlannedJob) -> list[str]:
    notes = []
    if job.options.normalize.startswith("minmax"):
        notes.append("decrypting min-max needs the ledger in the owner's folder: keep it as safe as the key")
    if job.classes is not None:
        shown = [f"{number} {name}" for number, name in enumerate(job.classes[:_SHOWN])]
        more = [f"and {len(job.classes) - _SHOWN} more in this order"] if len(job.classes) > _SHOWN else []
        notes.append(f"classes by number: {', '.join(shown + more)}")
    extras = list(job.source.extras)
    inside = job.form.labelled or (job.form.folders and not job.source.named)
    if inside and extras and len(extras) != len(job.source.shards()):
        notes.append(f"an image has one label in the target at most; the source's labels are in {', '.join(extras)}")
    if job.options.keep:
        notes.append(f"these fields pass unprotected: {', '.join(name for name, _ in kept_of(job.source))}")
    if job.source.left_alone:
        notes.append(f"left alone: {job.source.left_alone}")
    return notes
