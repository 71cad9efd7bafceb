"""Timing on a GPU: trains of launches between CUDA events, over several sets of images, equal results before any time.

A set is images and memory for a result; a train goes through the sets in turn, so that no launch finds its images in
the cache. Contenders take turns in every round. Needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ..functional import encrypt
from ..keys import Key
from ..schemes import Plan
from .workloads import SCHEME

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TRAIN_SECONDS = 0.012
_MOST_LAUNCHES = 100
_AHEAD_CYCLES = 1_000_000  # the device waits about half a millisecond, so that the train is queued when it begins

Set = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Cell:
    """One workload and operation, with the share of the limit that it should reach."""

    workload: str
    shape: tuple[int, int, int, int]
    normalize: str
    dtype: str
    target: float
    key_counts: bool = False

    @property
    def operation(self) -> str:
        """As "R u8->bf16": R for "range", M for "minmax"."""
        short = {"uint8": "u8", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}[self.dtype]
        return f"{'R' if self.normalize == 'range' else 'M'} u8->{short}"

    @property
    def itemsize(self) -> int:
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def moved(self) -> int:
        """Bytes of images read and results written."""
        return math.prod(self.shape) * (1 + self.itemsize)

    @property
    def needed(self) -> int:
        """`moved`, and 8 bytes of key a position, once, where the key is large beside the images."""
        return self.moved + (8 * math.prod(self.shape[1:]) if self.key_counts else 0)

    def plan(self) -> Plan:
        """The plan of a fixed key: a benchmark's data is no secret. Floats come with mean and std."""
        statistics = {} if self.dtype == "uint8" else {"mean": MEAN, "std": STD}
        return SCHEME.plan(Key(bytes(range(32))), self.shape[1:], self.normalize, self.dtype, **statistics)


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to do the work.

    Attributes:
        group: "limit" (only moves the bytes), "ours", or "peer".
        run: (images, memory for a result) -> the result, put on the current stream.
        agreement: "equal" demands our bits, "1 level" allows one gray level (1/255 of floats' range), None compares
            nothing: a limit.
    """

    name: str
    group: str
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    agreement: str | None = "equal"


@dataclass
class Row:
    """One line of results; `samples_s` are seconds a launch, one of each round."""

    workload: str
    shape: tuple[int, ...]
    operation: str
    contender: str
    group: str
    agreement: str | None
    median_s: float
    p20_s: float
    p80_s: float
    launches: int
    sets: int
    bytes_moved: int
    bytes_needed: int
    gb_per_s: float
    target: float
    share_of_limit: float = 0.0
    limit: str = ""
    samples_s: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)


class Disagreement(AssertionError):
    """A contender's output is not what it should be; it is not timed."""


def make_sets(cell: Cell, count: int) -> tuple[list[Set], torch.Tensor]:
    """(sets on the GPU, what the first one must give). The other sets hold the same images in another order.

    The expected result is the CPU's, for every value, by the fast backend whose bits the tests compare with the
    reference.
    """
    chance = torch.Generator("cuda").manual_seed(20230524)
    images = torch.randint(0, 256, cell.shape, dtype=torch.uint8, device="cuda", generator=chance)
    expected = encrypt(images.cpu(), cell.plan()).cuda()
    dtype = getattr(torch, cell.dtype)
    return [
        (images.roll(i, 0) if i else images, torch.empty(cell.shape, dtype=dtype, device="cuda")) for i in range(count)
    ], expected


def check(contender: Contender, sets: Sequence[Set], expected: torch.Tensor) -> None:
    """Run a contender over every set, into poisoned memory, and compare every value.

    Raises:
        Disagreement: a value differs by more than allowed, or the dtype or shape does.
    """
    if contender.agreement is None:
        return
    for i, (images, out) in enumerate(sets):
        poison(out)
        got = contender.run(images, out)
        if got.dtype != expected.dtype or got.shape != expected.shape:
            raise Disagreement(f"{contender.name} gave {got.dtype} {tuple(got.shape)}")
        wrong, where, pair = compare(got, expected.roll(i, 0) if i else expected, contender.agreement == "equal")
        if wrong:
            raise Disagreement(
                f"{contender.name}, set {i}: {wrong} of {got.numel()} values differ, first at {where}: {pair[0]}, not "
                f"{pair[1]}"
            )


def poison(out: torch.Tensor) -> None:
    """Fill memory with what no right result holds, or holds at every place."""
    out.fill_(float("nan") if out.is_floating_point() else 0xA5)


def compare(
    got: torch.Tensor, want: torch.Tensor, exactly: bool, values: int = 1 << 26
) -> tuple[int, int, tuple[float, float]]:
    """(how many values differ, the flat index of the first, both values there), in pieces of `values`."""
    a, b = got.reshape(-1), want.reshape(-1)
    wrong, first = 0, -1
    for start in range(0, a.numel(), values):
        x, y = a[start : start + values], b[start : start + values]
        if exactly:
            bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()]
            differs = x.view(bits) != y.view(bits)
        else:
            allowed = 1.0 if x.dtype == torch.uint8 else 1 / 255 / min(STD) + 2**-6
            differs = ~((x.float() - y.float()).abs() <= allowed)  # so that NaN differs
        found = int(differs.sum())
        if found and not wrong:
            first = start + int(differs.to(torch.uint8).argmax())
        wrong += found
    pair = (float(a[first]), float(b[first])) if wrong else (0.0, 0.0)
    return wrong, first, pair


def measure(cell: Cell, contenders: Sequence[Contender], sets: Sequence[Set], rounds: int) -> list[Row]:
    """Time contenders that were checked; each row's share is of the fastest limit among them."""
    launches = {}
    for contender in contenders:
        for images, out in sets:
            contender.run(images, out)
        torch.cuda.synchronize()
        seconds = train(contender, sets, len(sets))
        wished = min(_MOST_LAUNCHES, max(2, math.ceil(_TRAIN_SECONDS / seconds)))
        launches[contender.name] = -(-wished // len(sets)) * len(sets)
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            samples[contender.name].append(train(contender, sets, launches[contender.name]))
    rows = [_row(cell, contender, samples[contender.name], launches[contender.name], sets) for contender in contenders]
    limit = min((row for row in rows if row.group == "limit"), key=lambda row: row.median_s)
    for row in rows:
        row.limit = limit.contender
        row.share_of_limit = (row.bytes_needed / row.median_s) / (limit.bytes_moved / limit.median_s)
    return rows


def train(contender: Contender, sets: Sequence[Set], launches: int) -> float:
    """Seconds a launch, over a train of them that is queued before it begins."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(_AHEAD_CYCLES)  # type: ignore[no-untyped-call]
    start.record()
    for i in range(launches):
        contender.run(*sets[i % len(sets)])
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / launches


def _row(cell: Cell, contender: Contender, taken: list[float], launches: int, sets: Sequence[Set]) -> Row:
    median = float(np.median(taken))
    limit = contender.group == "limit"
    return Row(
        workload=cell.workload,
        shape=cell.shape,
        operation=cell.operation,
        contender=contender.name,
        group=contender.group,
        agreement=contender.agreement,
        median_s=median,
        p20_s=float(np.percentile(taken, 20)),
        p80_s=float(np.percentile(taken, 80)),
        launches=launches,
        sets=len(sets),
        bytes_moved=cell.moved,
        bytes_needed=cell.moved if limit else cell.needed,
        gb_per_s=cell.moved / median / 1e9,
        target=cell.target,
        samples_s=taken,
    )
