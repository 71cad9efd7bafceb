"""Zarr arrays (N, C, H, W) in a group, an object a shard: samples of files are one array, `images`, and each array of a
source is one. Labels, an int64 array beside, and all metadata are published when every object is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from ...errors import ParameterError, StoreDamagedError
from ...stores.contract import Published, Shape, ShardSpec, ShardWriter
from ...stores.manifest import Manifest
from ...stores.zarr_format import (
    ArrayPlan,
    array_of,
    decode_chunk,
    encode_labels,
    index_bytes,
    metadata_files,
    object_name,
    rows_of_objects,
)
from ...stores.zarr_writer import ZarrWriter
from .contract import Contents, OneFile, Place, StoredBatch, check_published

_ARRAY = "images"
_SUFFIX = re.compile(r"(\.npy|[-_.]idx3[-_.]ubyte(\.gz)?)$")


class ZarrFormat(OneFile):
    """See `contract.StoredFormat`. Files' samples lie in the order of their hidden names, which are in no file."""

    kind = "zarr"
    named = labelled = joined = True
    folders = False

    def check(self, dtype: str) -> None:
        """An array holds any dtype."""

    def check_job(self, shape: Shape | None, on_error: str) -> None:
        if shape is None:
            raise ParameterError("an array holds images of one size: --per-size does not apply to zarr; see --size")
        if on_error != "fail":
            raise ParameterError("an array has no gaps: --on-error quarantine does not apply to zarr")

    def suffix(self, dtype: str) -> str:
        return ""

    def holds(self, name: str) -> bool:
        return bool(name)

    def shard_name(self, shard: ShardSpec, base: str) -> str:
        return object_name(_SUFFIX.sub("", base), 0) if base else object_name(_ARRAY, shard.index)

    def labels_name(self, shard: str) -> str | None:
        return None

    def writer(self, place: Place, shard: ShardSpec, contents: Contents) -> ShardWriter:
        assert contents.shape is not None, "check_job refuses images of several sizes"
        rows = rows_of_objects(contents.first, contents.several, contents.shape, contents.dtype)
        plan = ArrayPlan(array_of(shard.name), contents.labelled, (0, *contents.shape), contents.dtype, rows)
        return ZarrWriter(place.root, place.store_id, shard.index, shard.name, plan, len(shard.samples), place.ops)

    def closing(
        self, dtype: str, shape: Shape | None, shards: Sequence[Published], labels: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[str, bytes]]:
        assert shape is not None, "check_job refuses images of several sizes"
        plans = []
        numbered = list(zip(shards, labels, strict=True))
        for name, run in groupby(numbered, key=lambda item: array_of(item[0].name)):
            parts = list(run)
            values = [label for _, part in parts for label in part or ()]
            plan = _plan(name, dtype, shape, [shard for shard, _ in parts], parts[0][1] is not None)
            if len(values) != plan.shape[0] * plan.labelled:
                raise StoreDamagedError(f"{name} holds {plan.shape[0]} images, and {len(values)} labels came")
            if plan.labelled:
                yield plan.labels_object, encode_labels(values)
            plans.append(plan)
        yield from metadata_files(plans)

    def closing_labels(self, shards: Iterable[str]) -> set[str]:
        arrays = {array_of(name) for name in shards}
        return {ArrayPlan(name, True, (0, 1, 1, 1), "uint8", 1).labels_object for name in arrays}

    def open(self, root: Path, shard: Published, manifest: Manifest) -> ZarrShard:
        return ZarrShard(root, shard, manifest)

    def stored_labels(self, root: Path, manifest: Manifest) -> list[Sequence[int] | None]:
        """The labels of each shard, from files that are what the manifest says."""
        extras = {extra.name: extra for extra in manifest.extras}
        found: list[Sequence[int] | None] = []
        for name, run in groupby(manifest.shards, key=lambda shard: array_of(shard.name)):
            shards = list(run)
            plan = _plan(name, manifest.dtype, _shape(manifest), shards, True)
            if plan.labels_object not in extras:
                found += [None] * len(shards)
                continue
            path = root / plan.labels_object
            check_published(path, extras[plan.labels_object])
            values = np.frombuffer(decode_chunk(path.read_bytes(), str(path)), "<i8").tolist()
            ends = np.cumsum([0, *(shard.count for shard in shards)]).tolist()
            found += [values[start:stop] for start, stop in pairwise(ends)]
        return found


class ZarrShard:
    """One object, whose bytes are what the manifest says.

    Raises:
        StoreDamagedError: they are not.
    """

    def __init__(self, root: Path, shard: Published, manifest: Manifest) -> None:
        self._path, self._shard, self._shape = root / shard.name, shard, _shape(manifest)
        check_published(self._path, shard)
        self._array = [other for other in manifest.shards if array_of(other.name) == array_of(shard.name)]
        self._plan = _plan(array_of(shard.name), manifest.dtype, self._shape, self._array, False)

    def read(self) -> Iterator[StoredBatch]:
        plan, start = self._plan, 0
        chunks = plan.object_rows // plan.chunk_rows
        dtype = np.dtype(plan.dtype).newbyteorder("<")
        size = plan.chunk_rows * int(np.prod(self._shape)) * dtype.itemsize + 4
        if self._shard.size != -(-self._shard.count // plan.chunk_rows) * size + index_bytes(chunks):
            raise StoreDamagedError(f"{self._path} does not hold {self._shard.count} images, as its manifest says")
        with open(self._path, "rb") as file:
            while start < self._shard.count:
                values = np.frombuffer(decode_chunk(file.read(size), str(self._path)), dtype)
                images = values.reshape(-1, *self._shape)[: self._shard.count - start]
                yield StoredBatch(start, [""] * len(images), images.astype(plan.dtype, copy=False))
                start += len(images)

    def plain_file(self, name: str) -> None:
        """The images are not one array at fixed places."""

    def plain_writer(self, place: Place, index: int, name: str) -> ShardWriter:
        plan = _plan(array_of(name), "uint8", self._shape, self._array, False)
        return ZarrWriter(place.root, place.store_id, index, name, plan, self._shard.count, place.ops)


def _shape(manifest: Manifest) -> Shape:
    if manifest.shape is None:
        raise StoreDamagedError("a store of Zarr arrays has images of one size, and the manifest says none")
    return manifest.shape


def _plan(name: str, dtype: str, shape: Shape, shards: Sequence[Published], labelled: bool) -> ArrayPlan:
    """How an array of these shards is cut."""
    rows = rows_of_objects(shards[0].count, len(shards) > 1, shape, dtype)
    return ArrayPlan(name, labelled, (sum(shard.count for shard in shards), *shape), dtype, rows)
