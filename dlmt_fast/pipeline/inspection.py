"""`inspect_store`: what a store, an unfinished one or a source holds, and what it tells to anyone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..keys import Key
from ..stores import remote
from ..stores.contract import Refused, Shape
from ..stores.location import is_remote, located
from ..stores.manifest import Manifest, is_single, manifest_path, read_manifest
from ..stores.reading import read_file
from ..stores.walk import exists, files_below, glanced, hidden_part, is_file, is_folder
from .audit import job_inputs
from .balance import Classes, Openly, source_classes
from .open import open_source
from .options import JobOptions
from .owner import OwnerFolder
from .remote_storage import check_access
from .seal import StoreSeal
from .stored import StoredImages
from .target import marker_of

OwnerOf = Callable[[str], Path]


@dataclass
class Inspection:
    """What there is at a path. Fields that nothing tells are None.

    Attributes:
        what: "store"; "unfinished", where a job runs or was stopped; or "source", anything else that can be read.
        shapes: how many images of each shape, such as {"3x224x224": 1000}; empty where only decoding would tell.
        classes: from where labels lie to {class: samples}.
        shard_bytes: the smallest and the largest shard of a store.
        bytes: of all files that the store or the source consists of, but for listings and manifest.
        files: of an unfinished store, how many are there.
        shards_done: of an unfinished store, those entered with the owner.
        tells: what the store tells to anyone, in a line.
        header: what the key opens: scheme, normalize, dtype, mean, std, versions.
        inputs: of the job, by the owner's folder.
        quarantined: of the job by the owner's folder; of a source, the images that a job would refuse.
    """

    path: str
    what: str
    kind: str = ""
    store_id: str = ""
    dtype: str = ""
    count: int | None = None
    shapes: dict[str, int] = field(default_factory=dict)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    shards: int | None = None
    shard_bytes: tuple[int, int] | None = None
    bytes: int | None = None
    files: int | None = None
    shards_done: int | None = None
    tells: str = ""
    header: dict[str, Any] | None = None
    inputs: int | None = None
    quarantined: list[dict[str, str]] | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)


def inspect_store(
    place: str | Path,
    key: Key | None = None,
    owner_folder: OwnerOf | None = None,
    options: JobOptions | None = None,
    source_kind: str | None = None,
) -> Inspection:
    """What is at a path or URL. Digests are not compared, but for what is read: that is `verify_store`'s work.

    Args:
        key: opens a store's sealed header.
        owner_folder: from the store's id to the owner's folder; used with the key.
        options: how a source is read: `ignore`, `channels`, `size`, `per_size`.
        source_kind: of a source, where its content does not tell.

    Raises:
        StoreError: nothing is there, or nothing that can be read. StoreDamagedError: a file is not as it was published.
        WrongKeyError: the store was made with another key.
    """
    path = located(place)
    check_access(path, read_only=True)
    if source_kind is not None:
        return _source(path, options or JobOptions(), source_kind)
    if is_store(path):
        return _store(path, key, owner_folder)
    listed = is_folder(path) and any(entry.name.startswith("dlmt-shard-") for entry in glanced(path))
    if listed or marker_of(path) is not None:
        return _unfinished(path, key, owner_folder)
    return _source(path, options or JobOptions(), None)


def is_store(path: Path) -> bool:
    """Whether a finished store is there."""
    return exists(path) and is_file(manifest_path(path))


def _store(path: Path, key: Key | None, owner_folder: OwnerOf | None) -> Inspection:
    manifest = read_manifest(path)
    found = Inspection(str(path), "store", manifest.kind, manifest.store_id, manifest.dtype, manifest.count)
    openly = Openly(path.parent if is_single(path) else path, manifest)
    found.classes = _plain(openly.classes)
    found.shapes = {} if manifest.shape is None else _named({manifest.shape: manifest.count})
    found.shards = len(manifest.shards)
    sizes = [shard.size for shard in manifest.shards]
    found.shard_bytes = (min(sizes), max(sizes)) if sizes else None
    found.bytes = sum(sizes) + sum(extra.size for extra in manifest.extras)
    found.tells = _tells(manifest, openly)
    if manifest.shape is None:
        found.notes.append("the images have several sizes")
    if marker_of(path) is not None:
        found.notes.append("a job runs here or was stopped here: it replaces this store, or had only its end left")
    if key is not None:
        _open(found, StoredImages(path, key), key, owner_folder)
    return found


def _tells(manifest: Manifest, openly: Openly) -> str:
    known = [f"{manifest.count} images", "their sizes"]
    known += ["labels and class balance"] if openly.classes else []
    known += ["names that are not hidden ones"] if openly.names else []
    known += [f"the fields {', '.join(sorted(openly.fields))}"] if openly.fields else []
    return (
        f"to anyone: {', '.join(known)}, which images are equal, times of files; "
        "the pixels tell mode and parameters to whoever looks at some hundred of them"
    )


def _open(found: Inspection, store: StoredImages, key: Key, owner_folder: OwnerOf | None) -> None:
    """Add what the key and the owner's folder tell."""
    found.header = store.header
    owner = OwnerFolder(owner_folder(found.store_id), store.seal) if owner_folder else None
    inputs = job_inputs(store, owner, key) if owner else None
    if owner is None or inputs is None:
        found.notes.append("the owner's folder is not at hand: inputs and quarantined are unknown (--owner DIR)")
        return
    found.inputs, found.quarantined = sum(inputs), []
    for index in range(len(store.manifest.shards)):
        refused = owner.read_quarantine(index)
        if refused is None:
            found.notes.append(f"{owner.root} lacks the quarantine list of shard {index}")
        found.quarantined += _listed(refused or [])


def _unfinished(path: Path, key: Key | None, owner_folder: OwnerOf | None) -> Inspection:
    found = Inspection(str(path), "unfinished")
    marker = marker_of(path)
    if marker is not None:
        found.store_id = read_file(marker).decode("ascii", "replace").strip()
    found.files, found.bytes = 0, 0
    for name, size in _files(path) if is_folder(path) else ():
        if not hidden_part(name):  # markers and what is half-written
            found.files, found.bytes = found.files + 1, found.bytes + size
    if key is not None and owner_folder is not None and found.store_id:
        owner = OwnerFolder(owner_folder(found.store_id), StoreSeal(key, found.store_id))
        record = owner.read_record()
        if record is not None:
            found.kind, found.shards = record["target"], len(record["shards"])
            found.inputs = sum(stop - start for start, stop in record["shards"])
            found.shards_done = sum(owner.has_journal(index) for index in range(found.shards))
    return found


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """(relative path, size) of all files of a folder."""
    if is_remote(folder):
        yield from ((found.path, found.size) for found in remote.files_below(folder))
        return
    for name in files_below(folder):
        yield name, (folder / name).lstat().st_size


def _source(path: Path, options: JobOptions, kind: str | None) -> Inspection:
    source = open_source(path, replace(options, on_error="quarantine"), kind)
    survey = source.survey()
    found = Inspection(str(path), "source", source.kind, dtype="uint8")
    counts = {shape: count for shape, (count, _) in survey.shapes.items()}
    shards = source.shards()
    found.inputs = sum(len(shard.samples) for shard in shards)
    found.count, found.shapes, found.shards = found.inputs - len(survey.refused), _named(counts), len(shards)
    found.bytes = sum(stamp.size for stamp in source.stamps())
    found.quarantined, found.classes = _listed(survey.refused), _plain(source_classes(source))
    if source.left_alone:
        found.notes.append(f"left alone: {source.left_alone}")
    if len(counts) > 1:
        found.notes.append("several shapes: --size HxW brings all to one size, --per-size gives each its own matrices")
    return found


def _plain(classes: Classes) -> dict[str, dict[str, int]]:
    """By class: numbers as such, then names."""
    return {where: dict(sorted(counts.items(), key=_class_order)) for where, counts in classes.items()}


def _class_order(item: tuple[str, int]) -> tuple[bool, int, str]:
    return (False, int(item[0]), "") if item[0].isdecimal() else (True, 0, item[0])


def _listed(refused: list[Refused]) -> list[dict[str, str]]:
    return [{"path": item.path, "reason": item.reason} for item in refused]


def _named(shapes: Mapping[Shape, int]) -> dict[str, int]:
    return {"x".join(map(str, shape)): count for shape, count in sorted(shapes.items())}
