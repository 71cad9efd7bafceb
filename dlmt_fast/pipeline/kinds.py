"""What differs from one kind of target to the next: what it can hold, how its files are called, who writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ParameterError, UsageError
from ..stores.cifar import CifarSource
from ..stores.contract import Reader, ShardSpec, ShardWriter, Source
from ..stores.folder import FolderWriter
from ..stores.idx import IdxSource, IdxWriter
from ..stores.npy_arrays import NpySource, NpyWriter, labels_name
from ..stores.publish import OS, FileOps
from .options import JobOptions
from .seal import StoreSeal

#: From the kind of a source to those that it can become, the usual one first.
TARGETS = {"folder": ("folder",), "idx": ("idx",), "cifar": ("npy",), "npy": ("npy",)}
_IDX_DTYPES = ("uint8", "int32", "float32")


def target_kind(source: Source, named: str | None) -> str:
    """The kind of store that a source becomes: as `named`, or the usual one.

    Raises:
        UsageError: a source of this kind cannot become one of that.
    """
    able = TARGETS[source.kind]
    if named not in (None, *able):
        raise UsageError(f"a source of kind {source.kind} can become {' or '.join(able)}, not {named!r}")
    return named or able[0]


def is_single(source: Source) -> bool:
    """Whether source and target are one file each, with the manifest beside the target."""
    return isinstance(source, (IdxSource, NpySource)) and source.single


def check_dtype(kind: str, dtype: str) -> None:
    """Refuse what no file of this kind can hold.

    Raises:
        ParameterError: that.
    """
    if dtype == "bfloat16":
        raise ParameterError("stores hold no bfloat16, which NumPy's files do not know; use --dtype float32 or float16")
    if kind == "idx" and dtype not in _IDX_DTYPES:
        raise ParameterError(f"IDX files hold uint8, int32 or float32, not {dtype}; choose one with --dtype")


def shard_name(source: Source, shard: ShardSpec, single: Path | None, seal: StoreSeal, options: JobOptions) -> str:
    """The published file that stands for a shard; `single` is the target where it is one file.

    The names of a data set's own files pass (IDX, CIFAR); those of .npy files are anything, and are hidden.
    """
    if single is not None:
        return single.name
    if isinstance(source, NpySource) and options.names == "hash":
        return f"{seal.name(shard.name)}.npy"
    return shard.name


def extra_names(source: Source, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name in the source, name in the target) of the labels files; `shards` are the targets' names of the shards."""
    if not isinstance(source, NpySource):
        yield from zip(source.extras, source.extras, strict=True)
        return
    for name, stored in zip(source.images, shards, strict=True):
        if name in source.labels:
            yield source.labels[name], labels_name(stored)


def new_writer(
    source: Reader, root: Path, store_id: str, shard: ShardSpec, dtype: str, ops: FileOps = OS
) -> ShardWriter:
    """A writer for one shard, under its published name, of what `source` becomes."""
    if isinstance(source, IdxSource):
        sizes = source.headers[shard.index].sizes
        return IdxWriter(root, store_id, shard.index, shard.name, dtype, sizes, ops)
    if isinstance(source, (CifarSource, NpySource)):
        return NpyWriter(root, store_id, shard.index, shard.name, dtype, source.stored_shape(shard.index), ops)
    return FolderWriter(root, store_id, shard.index, ops)
