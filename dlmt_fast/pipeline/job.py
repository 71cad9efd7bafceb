"""The job record: everything that decides a store's bytes, fixed before work starts."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from .._version import __version__
from ..canonical import canonical_json
from ..errors import ImageError, ParameterError, StoreError
from ..keys import CONTRACT
from ..schemes import DLMT
from ..stores.contract import Refused, Shape, ShardSpec, Source, Survey
from ..stores.decode import decoders
from .options import JobOptions
from .shuffle import ARRAYS, SAMPLES


def versions() -> dict[str, str]:
    """What a shard's bytes can depend on: this package, the decoders, the resizer (Pillow)."""
    return {"dlmt-fast": __version__, **decoders(), "numpy": np.__version__}


def library_versions(libraries: Sequence[str]) -> dict[str, str]:
    """`versions`, and those of the packages that write a target's files."""
    return versions() | {name: version(name) for name in libraries}


def refuse_other_versions(recorded: Mapping[str, str]) -> None:
    """Refuse to work on shards of a job whose record has other versions than this process.

    Raises:
        StoreError: that; the message says what differs.
    """
    here: dict[str, str | None] = {**versions()}
    for library in recorded.keys() - here.keys():
        try:
            here[library] = version(library)
        except PackageNotFoundError:
            here[library] = None
    others = sorted(name for name in {*here, *recorded} if here.get(name) != recorded.get(name))
    if others:
        words = [f"{name} {recorded.get(name)} in the job record, {here.get(name)} here" for name in others]
        raise StoreError(
            f"a worker on {platform.node()} has other versions than the job ({'; '.join(words)}), and the bytes of a "
            "shard may depend on them; install the same there"
        )


def job_record(
    source: Source,
    shards: Sequence[ShardSpec],
    scheme: DLMT,
    options: JobOptions,
    target_kind: str,
    libraries: Sequence[str] = (),
) -> dict[str, Any]:
    """The record whose keyed digest is the store's id; `libraries` write the target's files."""
    files, digest = 0, hashlib.sha256()
    for stamp in source.stamps():
        digest.update(canonical_json([stamp.path, stamp.size, stamp.state]) + b"\n")
        files += 1
    return {
        "contract": CONTRACT,
        "source": {"kind": source.kind, "files": files, "sha256": digest.hexdigest()},
        "shards": [[shard.samples.start, shard.samples.stop] for shard in shards],
        "target": target_kind,
        "scheme": scheme.params,
        "options": options.recorded(),
        "versions": library_versions(libraries),
    }


def differences(old: Any, new: Mapping[str, Any], changed: str | None = None) -> str:
    """What differs between two job records, in words; empty where nothing does.

    Args:
        changed: which files of the source differ, where that is known.
    """
    if not isinstance(old, dict):
        return "its record is none"
    found: list[str] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "shards":  # follows from the source and the shard size
            if _step(before) != _step(after):
                found.append(f"shard size {_step(before)} then, {_step(after)} now")
        elif not (isinstance(before, dict) and isinstance(after, dict)):
            found.append(f"{name}: {before} then, {after} now")
        elif name != "source":
            fields = sorted(field for field in {*before, *after} if before.get(field) != after.get(field))
            found += [f"{name}: {field} {before.get(field)} then, {after.get(field)} now" for field in fields]
        elif changed is not None:
            found.append(f"the source's files: {changed}")
        elif before.get("files") == after.get("files"):
            found.append(f"the source: a name, size or time among its {after['files']} files")
        else:
            found.append(f"the source: {before.get('files')} files then, {after['files']} now")
    return "; ".join(found)


def _step(shards: Any) -> int:
    return int(shards[0][1] - shards[0][0]) if isinstance(shards, list) and shards else 0


def header(scheme: DLMT, options: JobOptions, dtype: str, shape: Shape | None, named: bool) -> dict[str, Any]:
    """What the key opens in a store's manifest: enough to decrypt where min-max was not used.

    Args:
        named: the samples have names; else they are values of arrays, and each array was shuffled in itself.
    """
    recorded = options.recorded()
    later: dict[str, Any] = {"shuffle": SAMPLES if named else ARRAYS} if options.shuffle else {}
    later |= {"keep": recorded["keep"]} if options.keep else {}
    return later | {
        "contract": CONTRACT,
        "scheme": scheme.params,
        "normalize": options.normalize,
        "dtype": dtype,
        "layout": "CHW",
        "mean": recorded["mean"],
        "std": recorded["std"],
        "shape": None if shape is None else list(shape),
        "versions": versions() | {"python": platform.python_version()},
    }


def settle_shape(survey: Survey, options: JobOptions, strict: bool = True) -> Shape | None:
    """The one shape of all images, or None with `per_size`. Where `on_error` is "quarantine" and more than half have
    one shape, the others are left out: they are then in `survey.odd`.

    Args:
        strict: refuse images that cannot be taken where `on_error` is "fail".

    Raises:
        ImageError: a file cannot be taken and `on_error` is "fail".
        StoreError: no image can be taken, or there are several shapes without `size` or `per_size`.
    """
    if survey.refused and strict and options.on_error == "fail":
        raise refused_error(survey.refused)
    if not survey.shapes:
        raise StoreError(f"none of the {len(survey.refused)} files can be taken; {refused_error(survey.refused)}")
    if options.per_size:
        return None
    if len(survey.shapes) > 1:
        usual = survey.leave_out_others() if options.on_error == "quarantine" else None
        if usual is not None:
            return usual
        channels = {shape[0] for shape in survey.shapes}
        mixed = "--channels 3 (or 1) makes them alike, " if len(channels) > 1 else ""
        raise ParameterError(
            f"the images have {len(survey.shapes)} different shapes (channels x height x width):\n"
            f"{survey.describe_shapes()}\n{mixed}--size HxW brings all to one size, --per-size gives each size its own "
            "matrices, --on-error quarantine leaves out what is unlike more than half"
        )
    return next(iter(survey.shapes))


def refused_error(refused: list[Refused]) -> ImageError:
    """The error that names the first refused file and how many there are."""
    first = refused[0]
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return ImageError(f"{first.path}: {first.reason}{more}; --on-error quarantine lists all and goes on without them")
