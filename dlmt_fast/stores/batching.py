"""Decoding image files in threads, in order, with a bounded number ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ImageError
from .contract import Array, Batch, Refused
from .threads import in_order, threads

_BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Encoded:
    """A sample to decode: its index, what it is called in messages, and the work, which may raise ImageError."""

    index: int
    path: str
    decode: Callable[[], Array]


def decode_all(samples: Iterator[Encoded], workers: int) -> Iterator[Batch | Refused]:
    """Decode in `workers` threads (Pillow releases the GIL); at most a few batches are in memory.

    Runs of images of one shape come as batches; what cannot be decoded is refused in its place.
    """
    pending: list[tuple[int, Array]] = []
    size = 0
    workers = max(1, workers)
    for index, result in in_order(threads("decode", workers), _decode, samples, 4 * workers):
        if isinstance(result, Refused):
            yield result
            continue
        if pending and (pending[0][1].shape != result.shape or size + result.nbytes > _BATCH_BYTES):
            yield _batch(pending)
            pending, size = [], 0
        pending.append((index, result))
        size += result.nbytes
    if pending:
        yield _batch(pending)


def _decode(sample: Encoded) -> tuple[int, Array | Refused]:
    try:
        return sample.index, sample.decode()
    except ImageError as error:
        return sample.index, Refused(sample.index, sample.path, str(error))


def _batch(pending: list[tuple[int, Array]]) -> Batch:
    """Images (C, H, W) of memory (H, W, C), one after the other in memory of the batch's own; alone stays there."""
    images = [image.transpose(1, 2, 0) for _, image in pending]
    together = (np.stack(images) if len(images) > 1 else images[0][None]).transpose(0, 3, 1, 2)
    return Batch([index for index, _ in pending], together, spare=together.flags.writeable)
