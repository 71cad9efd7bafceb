"""Which kinds of targets a source can become, and what its shards are called there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import ParameterError, StoreError, UsageError
from ..stores.contract import Kept, ShardSpec, Source
from ..stores.decode import SUFFIXES
from .formats import StoredFormat, format_of
from .options import JobOptions
from .seal import StoreSeal

_FIELD = re.compile(r"[a-z0-9_]+([.-][a-z0-9_]+)*")

#: From the kind of a source to those that it can become, the usual one first.
TARGETS = {
    "folder": ("folder", "webdataset", "parquet", "zarr"),
    "webdataset": ("webdataset", "folder", "parquet"),
    "parquet": ("parquet", "folder", "webdataset"),
    "idx": ("idx", "folder", "webdataset", "parquet", "zarr"),
    "cifar": ("npy", "folder", "webdataset", "parquet", "zarr"),
    "npy": ("npy", "folder", "webdataset", "parquet", "zarr"),
    "zarr": ("zarr", "npy", "folder", "webdataset", "parquet"),
}


def target_format(source: Source, named: str | None) -> StoredFormat:
    """The kind of store that a source becomes: as `named`, or the usual one.

    Raises:
        UsageError: a source of this kind cannot become one of that.
    """
    able = TARGETS[source.kind]
    if named not in (None, *able):
        raise UsageError(f"a source of kind {source.kind} can become {' or '.join(able)}, not {named!r}")
    return format_of(named or able[0])


def check_dtype(form: StoredFormat, dtype: str) -> None:
    """Refuse what no file of this kind can hold.

    Raises:
        ParameterError: that.
    """
    if dtype == "bfloat16":
        raise ParameterError("stores hold no bfloat16, which NumPy's files do not know; use --dtype float32 or float16")
    form.check(dtype)


def check_kept(form: StoredFormat, kept: Sequence[Kept]) -> None:
    """Refuse fields that a kind has no place for, or that would be taken for an image or a label there.

    Raises:
        ParameterError: that.
    """
    if not kept:
        return
    if form.kind not in ("webdataset", "parquet"):
        raise ParameterError(f"a store of kind {form.kind} has no place for --keep; --to webdataset or parquet has")
    for name, _ in kept:
        ends = f".{name.rpartition('.')[2]}"
        if form.kind == "parquet" and name in ("image", "label"):
            raise ParameterError(f"{name} is a column of every Parquet store, so --keep cannot pass another one")
        if form.kind == "webdataset" and (name == "cls" or ends == ".npy" or ends in SUFFIXES):
            raise ParameterError(f"a field {name} is an image or a label in a tar: --keep passes others")
        if form.kind == "webdataset" and not _FIELD.fullmatch(name):
            raise ParameterError(f"a tar has no place for {name!r}: its fields have letters a to z, digits, _, - and .")


def check_duplicates(form: StoredFormat) -> None:
    """Refuse to leave samples out of a kind that has a place for each.

    Raises:
        ParameterError: that.
    """
    if not form.named or form.joined:
        raise ParameterError(f"an array has no gaps: --duplicates drop does not apply to {form.kind}; see report")


def shards_of(source: Source, form: StoredFormat, size: int) -> list[ShardSpec]:
    """How a job is cut: as its source is; but arrays whose samples become files into runs of `size`, since all files of
    a shard become visible together."""
    whole = source.shards()
    if source.named or not form.cut:
        return whole
    runs = [
        (shard.name, shard.samples[start : start + size])
        for shard in whole
        for start in range(0, max(1, len(shard.samples)), size)
    ]
    return [ShardSpec(index, name, samples) for index, (name, samples) in enumerate(runs)]


def named_shards(
    form: StoredFormat,
    source: Source,
    cut: Sequence[ShardSpec],
    single: Path | None,
    seal: StoreSeal,
    options: JobOptions,
) -> list[ShardSpec]:
    """The shards of a job under the names of the published files that stand for them.

    Args:
        cut: as `shards_of` gives them.
        single: the target where it is one file.

    Raises:
        StoreError: two would have one name.
    """
    shards, originals = [], dict[str, str]()
    for shard in cut:
        name = _shard_name(form, source, shard, single, seal, options)
        if name in originals:
            raise StoreError(f"{originals[name]} and {shard.name} would both be written as {name}")
        originals[name] = shard.name
        shards.append(replace(shard, name=name))
    return shards


def _shard_name(
    form: StoredFormat, source: Source, shard: ShardSpec, single: Path | None, seal: StoreSeal, options: JobOptions
) -> str:
    if single is not None:
        return single.name
    hide = not source.own_names and options.names == "hash"
    return form.shard_name(shard, _base(form, source, seal.name(shard.name) if hide else shard.name))


def original_name(form: StoredFormat, source: Source, shard: ShardSpec) -> str:
    """What a shard of the source is called when it is decrypted."""
    if source.kind == form.kind and not form.joined:
        return shard.name
    return form.shard_name(shard, _base(form, source, shard.name))


def _base(form: StoredFormat, source: Source, name: str) -> str:
    """The name of a shard's array; "" where all samples go to one without a name of its own."""
    return "" if form.joined and not source.own_names and (source.named or len(source.shards()) == 1) else name
