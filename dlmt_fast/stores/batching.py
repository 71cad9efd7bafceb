"""Decoding image files in threads, in order, with a bounded number ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from ..errors import ImageError
from .contract import Array, Batch, Refused
from .threads import kept_threads

T = TypeVar("T")
R = TypeVar("R")

FETCHERS = 12  # threads that wait for remote files: there the time of an answer is the bound, not the CPU
WAITING = "dlmt-fetch"  # what the names of these threads begin with
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
    size, threads = 0, max(1, workers)
    for index, result in in_threads(_decode, samples, threads, 4 * threads):
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


def fetched_ahead(fetch: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `fetch` gives for each item, in order; `FETCHERS` at most are under way or wait for their turn."""
    return in_threads(fetch, items, FETCHERS, FETCHERS, patient=False)


def in_threads(
    work: Callable[[T], R], items: Iterable[T], threads: int, most: int, patient: bool = True
) -> Iterator[R]:
    """The result of each item in order; `most` are worked on or wait for their turn.

    Args:
        patient: when it is interrupted or closed, wait until nothing is worked on; a server may let that take long.
    """
    left, ahead = iter(items), deque[Future[R]]()
    pool = kept_threads("decode", threads) if patient else ThreadPoolExecutor(threads, WAITING)
    waits = True
    try:
        ahead.extend(pool.submit(work, item) for item in islice(left, most))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(work, item) for item in islice(left, 1))
            yield result
    except BaseException as error:
        waits = patient or isinstance(error, Exception)
        raise
    finally:
        if patient:
            wait([future for future in ahead if not future.cancel()])
        else:
            pool.shutdown(waits, cancel_futures=True)


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
