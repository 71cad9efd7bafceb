"""Writing the samples of an array in their own order, though they come in another: through a temporary beside the
target, so that memory does not grow with the array."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..stores.contract import Allow, Array, Published, ShardWriter, anyway
from ..stores.publish import temporary_name
from .formats import Place
from .order import Order

_SLICE_BYTES = 1 << 20


class ReorderedWriter:
    """Gives `writer` the `count` samples of an array, uint8 of one shape, in the order that they had before `order`."""

    def __init__(self, writer: ShardWriter, order: Order, count: int, place: Place, shard: int) -> None:
        self._writer, self._order, self._count, self._ops = writer, order, count, place.ops
        self._path = place.root / temporary_name(place.store_id, shard)
        self._descriptor: int | None = None
        self._shape: tuple[int, ...] = ()
        self._names: list[str] | None = None
        self._labels: Array | None = None

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None:
        """Samples at `positions` of the order."""
        if self._descriptor is None:
            self._shape = images.shape[1:]
            self._descriptor = self._ops.create(self._path, 0o600)
        places = self._order.sample(positions).tolist()
        for place, image in zip(places, images, strict=True):
            os.lseek(self._descriptor, place * image.nbytes, os.SEEK_SET)
            self._ops.write(self._descriptor, np.ascontiguousarray(image).data)
        if any(names):
            self._names = self._names or [""] * self._count
            for place, name in zip(places, names, strict=True):
                self._names[place] = name
        if labels is not None:
            if self._labels is None:
                self._labels = np.zeros(self._count, np.int64)
            self._labels[places] = labels

    def publish(self, allow: Allow = anyway) -> Published:
        if self._descriptor is not None:
            size = int(np.prod(self._shape))
            step = max(1, _SLICE_BYTES // size)
            for start in range(0, self._count, step):
                run = range(start, min(start + step, self._count))
                data = os.pread(self._descriptor, len(run) * size, start * size)
                images = np.frombuffer(data, np.uint8).reshape(len(run), *self._shape)
                labels = None if self._labels is None else self._labels[run.start : run.stop].tolist()
                names = [""] * len(run) if self._names is None else self._names[run.start : run.stop]
                self._writer.write(run, names, images, labels)
        published = self._writer.publish(allow)
        self._discard()
        return published

    def abort(self) -> None:
        try:
            self._writer.abort()
        finally:
            self._discard()

    def _discard(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            self._ops.close(descriptor)
            self._ops.unlink(self._path)
