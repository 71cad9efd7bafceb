"""`--shuffle`: a source in a secret order, that of the store's id. A folder is shuffled whole, an array in itself, so
that a training set stays one and labels stay beside it.

The shards of a shuffled source are those of the source, by place instead of by sample: shard k has the k-th run of the
order. All else of a job goes by place too, so that nothing in it knows of the order.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..keys import Key
from ..stores import idx_format
from ..stores.contract import Batch, FileStamp, Reader, Refused, ShardSpec, Source, Survey
from ..stores.npy_arrays import labels_name
from .order import Numbers, Order

_RUN = 4096  # places that are looked up at once

SAMPLES, ARRAYS = "samples", "arrays"  # what was shuffled, as the sealed header says it: all samples, or each array


class Shuffle:
    """The order of a store: one permutation over all samples, or one over those of each array.

    Args:
        counts: of the samples that are shuffled together.
    """

    def __init__(self, key: Key, store_id: str, counts: Sequence[int]) -> None:
        secret = key.sub(32, "order", store_id)
        self._starts = [0, *accumulate(counts)]
        self._orders = [Order(secret, count, number) for number, count in enumerate(counts)]

    def samples(self, places: Sequence[int]) -> Numbers:
        """Which samples stand at these places."""
        return self._each(places, "sample")

    def places(self, samples: Any) -> Numbers:
        """Where these samples stand."""
        return self._each(samples, "place")

    def array(self, number: int) -> Order:
        """The order of one array in itself."""
        return self._orders[number]

    def _each(self, numbers: Any, which: str) -> Numbers:
        values = np.array(numbers, np.int64)
        arrays = np.searchsorted(self._starts, values, side="right") - 1
        found = np.empty_like(values)
        for array in np.unique(arrays):
            mask, start = arrays == array, self._starts[array]
            found[mask] = getattr(self._orders[array], which)(values[mask] - start) + start
        return found


def shuffle_of(source: Source, key: Key, store_id: str) -> Shuffle:
    """The order that a source gets in a store."""
    counts = [len(shard.samples) for shard in source.shards()]
    return Shuffle(key, store_id, [sum(counts)] if source.named else counts)


class _Samples(Sequence[int]):
    """The samples that stand at a run of places, looked up as they are asked for. What is pickled has the numbers, not
    the secret that they come from."""

    def __init__(self, shuffle: Shuffle, places: range) -> None:
        self._shuffle: Shuffle | None = shuffle
        self._places = places
        self._known: dict[int, Numbers] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: Any) -> Any:
        run, place = divmod(number, _RUN)
        if run not in self._known:
            assert self._shuffle is not None, "all are known after pickling"
            self._known = {run: self._shuffle.samples(self._places[run * _RUN : (run + 1) * _RUN])}
        return int(self._known[run][place])

    def of(self, place: int) -> int:
        """The sample at a place of the run."""
        return int(self[place - self._places.start])

    def __getstate__(self) -> dict[str, Any]:
        known = dict(self._known)
        if self._shuffle is not None:
            runs = range(-(-len(self) // _RUN))
            known = {run: self._shuffle.samples(self._places[run * _RUN : (run + 1) * _RUN]) for run in runs}
        return {"_shuffle": None, "_places": self._places, "_known": known}


class ShuffledSamples:
    """Reads the samples at a run of places; all indices are places."""

    def __init__(self, base: Reader, samples: _Samples) -> None:
        self._base, self._samples = base, samples

    def path_of(self, index: int) -> str:
        return self._base.path_of(self._samples.of(index))

    def label_of(self, index: int) -> int | None:
        return self._base.label_of(self._samples.of(index))

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """In the order of `indices`."""
        for start in range(0, len(indices), _RUN):
            places = {self._samples.of(index): index for index in indices[start : start + _RUN]}
            for item in self._base.read(list(places), workers):
                if isinstance(item, Refused):
                    yield Refused(places[item.index], item.path, item.reason)
                else:
                    yield replace(item, indices=[places[sample] for sample in item.indices])


class ShuffledSource:
    """A source by place; see the module. `base` is the source itself.

    Raises:
        StoreError: the source has no random access.
    """

    def __init__(self, base: Source, shuffle: Shuffle) -> None:
        base.pick(())
        self.base, self.shuffle = base, shuffle
        self.kind, self.root, self.named, self.in_folders = base.kind, base.root, base.named, base.in_folders
        self.single, self.own_names = base.single, base.own_names

    @property
    def left_alone(self) -> str:
        return self.base.left_alone

    @property
    def extras(self) -> Sequence[str]:
        return self.base.extras

    def extra_bytes(self, name: str) -> bytes:
        """As they are in the source; `reordered` brings them into the order."""
        return self.base.extra_bytes(name)

    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
        return self.base.extra_names(shards)

    def stamps(self) -> Iterator[FileStamp]:
        return self.base.stamps()

    def survey(self) -> Survey:
        return self.placed(self.base.survey())

    def placed(self, survey: Survey) -> Survey:
        """A survey of the base with places for indices."""
        places = self.shuffle.places([item.index for item in survey.refused]).tolist()
        moved = [Refused(place, item.path, item.reason) for place, item in zip(places, survey.refused, strict=True)]
        odd = self.shuffle.places(list(survey.odd)).tolist()
        left_out = {place: replace(item, index=place) for place, item in zip(odd, survey.odd.values(), strict=True)}
        return Survey(survey.shapes, moved, left_out)

    def shards(self) -> list[ShardSpec]:
        return self.base.shards()

    def number_classes(self) -> tuple[str, ...] | None:
        return self.base.number_classes()

    def array_shape(self, shard: int) -> tuple[int, ...]:
        return self.base.array_shape(shard)

    def part(self, samples: range) -> ShuffledSamples:
        """What reads the samples at these places."""
        found = _Samples(self.shuffle, samples)
        return ShuffledSamples(self.base.pick(found), found)

    def pick(self, samples: Sequence[int]) -> Reader:
        raise NotImplementedError("it is shuffled once")

    def path_of(self, index: int) -> str:
        return self.base.path_of(self._sample(index))

    def label_of(self, index: int) -> int | None:
        return self.base.label_of(self._sample(index))

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        return self.part(range(indices[0], indices[-1] + 1)).read(indices, workers) if indices else iter(())

    def _sample(self, index: int) -> int:
        return int(self.shuffle.samples([index])[0])


def array_of_labels(labels: str, shards: Sequence[str]) -> int:
    """Which of the published arrays a published labels file belongs to.

    Raises:
        StoreError: none, so that nothing tells its order.
    """
    for number, shard in enumerate(shards):
        if labels == labels_name(shard) or idx_format.stem(labels) == idx_format.stem(shard):
            return number
    for number, shard in enumerate(shards):  # CIFAR-100 has two kinds of labels
        if shard.endswith("-images.npy") and labels.startswith(shard.removesuffix("images.npy")):
            return number
    raise StoreError(f"nothing tells which images the labels {labels} belong to, so they cannot be shuffled alike")


def reordered(labels: bytes, name: str, rows: NDArray[np.int64]) -> bytes:
    """A labels file, .npy or IDX by its content, with these rows in this order.

    Raises:
        StoreError: it has another number of rows.
    """
    plain = gzip.decompress(labels) if labels[:2] == b"\x1f\x8b" else labels
    start = 10 + int.from_bytes(plain[8:10], "little") if plain[:6] == b"\x93NUMPY" else idx_format.LABELS_HEADER
    count = len(rows)
    if (len(plain) - start) % max(1, count) or len(plain) - start < count:
        raise StoreError(f"{name} does not hold a label for each of {count} images")
    values = np.frombuffer(plain, np.uint8, offset=start).reshape(count, -1) if count else np.empty((0, 1), np.uint8)
    moved = plain[:start] + values[rows].tobytes()
    return idx_format.encode_labels(moved, name) if plain is not labels else moved
