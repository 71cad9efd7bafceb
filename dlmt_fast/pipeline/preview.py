"""`--dry-run`: what a command would do, up to its first write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..keys import Key
from ..schemes import DLMT
from ..stores.contract import Shape
from ..stores.location import is_remote, located
from ..stores.publish import FileOps
from .estimate import folder_bytes, idx_bytes, npy_bytes, pixel_bytes
from .finished import finished
from .options import JobOptions
from .plain_planned import PlannedDecrypt
from .planned import PlannedJob, plan_job
from .remote_storage import check_access


@dataclass
class Preview:
    """What would be done. `inputs == outputs + len(quarantined)`, as far as headers tell: pixels that cannot be decoded
    are found when they are.

    Attributes:
        kind, dtype: of what would be written.
        shapes: how many images of each shape, such as {"3x224x224": 1000}.
        shards, shards_done: in all, and those that count already (with `resume`).
        output_bytes: of the images' files; to the byte where `exact`, else of the pixels.
        free_bytes: on the disk of the target; None where that is remote.
        owner: the owner's folder.
        refused: whether the command would fail: images cannot be taken, and `on_error` is "fail".
    """

    command: str
    source: str
    target: str
    store_id: str
    source_kind: str
    kind: str
    dtype: str
    inputs: int
    outputs: int
    shapes: dict[str, int]
    shards: int
    shards_done: int
    output_bytes: int
    exact: bool
    free_bytes: int | None
    owner: str
    refused: bool = False
    quarantined: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self) | {"dry_run": True}


class _NoDisk(FileOps):
    """Writes nothing: what would is a mistake in this package."""

    def create(self, path: Path, mode: int = 0o666) -> int:
        raise AssertionError(f"a dry run would create {path}")

    def rename(self, old: Path, new: Path) -> None:
        raise AssertionError(f"a dry run would rename {old}")

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        raise AssertionError(f"a dry run would make {path}")

    def unlink(self, path: Path) -> None:
        raise AssertionError(f"a dry run would remove {path}")

    def rmdir(self, path: Path) -> None:
        raise AssertionError(f"a dry run would remove {path}")

    def link(self, old: Path, new: Path) -> None:
        raise AssertionError(f"a dry run would link {old}")

    def reopen(self, path: Path) -> int:
        raise AssertionError(f"a dry run would write to {path}")


def preview_encrypt(
    source: str | Path,
    target: str | Path,
    key: Key,
    scheme: DLMT,
    owner_folder: Callable[[str], Path],
    options: JobOptions | None = None,
    source_kind: str | None = None,
    target_named: str | None = None,
) -> Preview:
    """What `encrypt_store` would do with the same arguments; nothing is written. Raises what it would raise, but lists
    images that cannot be taken whatever `options.on_error` is."""
    options, source_path, target_path = options or JobOptions(), located(source), located(target)
    check_access(target_path)
    job = plan_job(
        source_path, target_path, key, scheme, owner_folder, options, source_kind, target_named, _NoDisk(), strict=False
    )
    job.owner.refuse_inside(target_path)
    found = [*job.survey.refused, *job.survey.odd.values()]
    refused = [{"path": item.path, "reason": item.reason} for item in found]
    shapes = {shape: count for shape, (count, _) in job.survey.shapes.items()}
    inputs = sum(len(shard.samples) for shard in job.shards)
    size, exact = _size(job, shapes)
    done = 0
    if job.target.resumed:
        done = len(finished(job.target.root, job.form, job.shards, job.store_id, job.owner, options.check))
    preview = Preview(
        "encrypt", str(source_path), str(target_path), job.store_id, job.source.kind, job.kind, job.dtype,
        inputs, inputs - len(refused), _named(shapes), len(job.shards), done, size, exact,
        _free(target_path), str(job.owner.root), bool(refused) and options.on_error == "fail", refused,
    )  # fmt: skip
    if not options.slice.whole:
        mine = sum(shard.index in options.slice for shard in job.shards)
        preview.notes.append(f"slice {options.slice} does {mine} of the {len(job.shards)} shards")
    if options.duplicates is not None:
        preview.notes.append("equal images are looked for when they are decoded, which a dry run does not")
    if job.source.left_alone:
        preview.notes.append(f"left alone: {job.source.left_alone}")
    return _noting_room(preview)


def preview_decrypt(
    source_path: str | Path,
    target_path: str | Path,
    key: Key,
    owner_folder: Callable[[str], Path],
    resume: bool = False,
    check: bool = False,
) -> Preview:
    """What `decrypt_store` would do with the same arguments; nothing is written, and no image is read but, with
    `check`, those that are done."""
    source_path, target_path = located(source_path), located(target_path)
    job = PlannedDecrypt(source_path, target_path, key, owner_folder, resume, _NoDisk())
    manifest, missing, done = job.store.manifest, len(job.names.missing), 0
    if job.target.resumed:
        done = sum(job.counted(index, check) is not None for index in range(len(manifest.shards)))
    shapes = {} if manifest.shape is None else {manifest.shape: manifest.count}
    exact = manifest.kind == "folder" and manifest.shape is not None
    size = folder_bytes(shapes, "uint8") if exact else pixel_bytes(shapes, "uint8")
    preview = Preview(
        "decrypt", str(source_path), str(target_path), manifest.store_id, manifest.kind, manifest.kind, "uint8",
        manifest.count, manifest.count, _named(shapes), len(manifest.shards), done, size, exact,
        _free(target_path), str(job.owner.root),
    )  # fmt: skip
    if manifest.shape is None:
        preview.notes.append("the images have several sizes: how many bytes they have shows when they are read")
    if job.store.form.named and missing:
        preview.notes.append(
            f"original names of {missing} shards are not restored: {job.owner.root} lacks their ledgers"
        )
    return _noting_room(preview)


def _size(job: PlannedJob, shapes: Mapping[Shape, int]) -> tuple[int, bool]:
    """(bytes of the images' files, whether that is exact)."""
    if job.kind == "folder":
        return folder_bytes(shapes, job.dtype), True
    if job.kind not in ("npy", "idx"):
        return pixel_bytes(shapes, job.dtype), False
    arrays = [job.source.array_shape(shard.index) for shard in job.shards]
    if job.kind == "npy":
        return sum(npy_bytes(array, job.dtype) for array in arrays), True
    named = zip(job.shards, arrays, strict=True)
    return sum(idx_bytes(array, job.dtype, shard.name.endswith(".gz")) for shard, array in named), True


def _named(shapes: Mapping[Shape, int]) -> dict[str, int]:
    return {"x".join(map(str, shape)): count for shape, count in sorted(shapes.items())}


def _free(path: Path) -> int | None:
    if is_remote(path):
        return None
    while not path.exists():
        path = path.absolute().parent
    return shutil.disk_usage(path).free


def _noting_room(preview: Preview) -> Preview:
    if preview.free_bytes is not None and preview.output_bytes > preview.free_bytes:
        preview.notes.append("the disk of the target has too little room")
    return preview
