"""The measuring itself: contenders take turns in every round, results are compared before any is timed.

A sample is long enough for the clock; a contender's figure is the median over rounds with the 20th and 80th percentile.
Shares are ratios inside one run, since machines drift between runs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends import reference
from .workloads import Operation, Workload

_SAMPLE_SECONDS = 0.002  # repeat short calls within a sample until it is this long
_SLOW_TIMES = 8  # a contender that takes longer than so many times the limit gets few rounds
_SLOW_ROUNDS = 3
_SETTLE_SECONDS = 0.02  # threads of OpenMP wait for more work in a loop, on processors that the next one needs
_CHECKED_IMAGES = 512  # images whose results are compared with the reference


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to do the work.

    Attributes:
        name: shown in tables.
        group: "limit" (only moves the bytes), "ours", or "peer".
        call: does the work once, into memory that it has already.
        result: the output of the last call as an array (N, C, H, W), or None where there is nothing to compare.
        agreement: "equal" demands the reference's bits; "1 level" allows one gray level (1/255 for floats), as other
            tools round differently; "no key" marks a tool that does less work than asked.
    """

    name: str
    group: str
    call: Callable[[], Any]
    result: Callable[[], NDArray[Any]] | None = None
    agreement: str = "equal"


@dataclass
class Row:
    """One line of results."""

    workload: str
    shape: tuple[int, ...]
    operation: str
    contender: str
    group: str
    threads: int
    median_s: float
    p20_s: float
    p80_s: float
    rounds: int
    bytes: int
    gigapixels_per_s: float
    limit_s: float
    share_of_limit: float
    agreement: str
    samples_s: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)


class Disagreement(AssertionError):
    """A contender's output is not what it should be; it is not timed."""


def measure(
    workload: Workload,
    operation: Operation,
    contenders: Sequence[Contender],
    images: NDArray[np.uint8],
    threads: int,
    rounds: int = 15,
    budget_seconds: float = 60.0,
) -> list[Row]:
    """Check and time the contenders on one workload.

    Args:
        images: the workload's images.
        threads: what the contenders were made with, for the record.
        rounds: turns each contender gets at most; those that are many times slower than the limit get three.
        budget_seconds: no new round begins after this, not counting the first rounds, in which slow ones take part.

    Raises:
        Disagreement: an output differs from the reference.
    """
    _check(workload, operation, contenders, images)
    seconds = {contender.name: min(_timed(contender, 1) for _ in range(2)) for contender in contenders}
    repeats = {name: max(1, round(_SAMPLE_SECONDS / max(taken, 1e-9))) for name, taken in seconds.items()}
    limit = min(seconds[contender.name] for contender in contenders if contender.group == "limit")
    quick = {name for name, taken in seconds.items() if taken <= _SLOW_TIMES * limit}
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    started = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            if turn == _SLOW_ROUNDS:  # from here on only the quick ones run, and the budget is theirs
                started = time.perf_counter()
            for contender in contenders:
                if turn < _SLOW_ROUNDS or contender.name in quick:
                    if threads > 1:
                        time.sleep(_SETTLE_SECONDS)
                    if contender.name in quick:
                        contender.call()  # wakes its threads, and its memory, which machines map anew after a pause
                    samples[contender.name].append(_timed(contender, repeats[contender.name]))
            if turn >= _SLOW_ROUNDS and time.perf_counter() - started > budget_seconds:
                break
    finally:
        gc.enable()
    return _rows(workload, operation, contenders, samples, threads)


def _timed(contender: Contender, repeats: int) -> float:
    call = contender.call
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _rows(
    workload: Workload,
    operation: Operation,
    contenders: Sequence[Contender],
    samples: dict[str, list[float]],
    threads: int,
) -> list[Row]:
    limit = min(float(np.median(samples[c.name])) for c in contenders if c.group == "limit")
    rows = []
    for contender in contenders:
        taken = samples[contender.name]
        median = float(np.median(taken))
        rows.append(
            Row(
                workload=workload.name,
                shape=workload.shape,
                operation=operation.name,
                contender=contender.name,
                group=contender.group,
                threads=threads,
                median_s=median,
                p20_s=float(np.percentile(taken, 20)),
                p80_s=float(np.percentile(taken, 80)),
                rounds=len(taken),
                bytes=workload.pixels * operation.bytes_per_pixel,
                gigapixels_per_s=workload.pixels / median / 1e9,
                limit_s=limit,
                share_of_limit=limit / median,
                agreement=contender.agreement,
                samples_s=taken,
            )
        )
    return rows


def _check(
    workload: Workload, operation: Operation, contenders: Sequence[Contender], images: NDArray[np.uint8]
) -> None:
    """Compare every contender's first and last images with the reference."""
    n = len(images)
    chosen = np.unique(np.r_[0 : min(n, _CHECKED_IMAGES // 2), max(0, n - _CHECKED_IMAGES // 2) : n])
    chosen = chosen[:: max(1, len(chosen) * images[0].size // (1 << 24))]  # large images: fewer
    expected = _reference(operation, workload, images[chosen])
    for contender in contenders:
        contender.call()
        if contender.result is None or contender.agreement == "no key":
            continue
        got = contender.result()[chosen]
        if got.dtype != expected.dtype or got.shape != expected.shape:
            raise Disagreement(f"{contender.name} gave {got.dtype} {got.shape}, not {expected.dtype} {expected.shape}")
        difference = np.abs(got.astype(np.float64) - expected)
        allowed = 0.0 if contender.agreement == "equal" else (1.0 if expected.dtype == np.uint8 else 1 / 255)
        if difference.max(initial=0.0) > allowed:
            where = np.unravel_index(int(difference.argmax()), difference.shape)
            raise Disagreement(f"{contender.name} differs at {where}: {got[where]} instead of {expected[where]}")


def _reference(operation: Operation, workload: Workload, images: NDArray[np.uint8]) -> NDArray[Any]:
    k = operation.plan(workload).coefficients("CHW")
    grouped = np.ascontiguousarray(images).reshape(len(images), *k.M.shape)
    out = np.empty(grouped.shape, operation.dtype)
    bounds = np.empty((len(images), 1, 2), np.int32) if operation.normalize == "minmax" else None
    reference.affine(grouped, k, out, bounds)
    return out.reshape(images.shape)
