"""The equality walk: every fast backend, at every CPU level, gives the bits of the reference. There is no tolerance.

The full product of modes, outputs, shapes, batches, layouts and threads is too large, so a covering array takes every
pair of values of any two factors at least once; several such arrays, so that other triples meet. Backends and levels
are crossed with all of it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import dlmt_fast as dlmt

SEED = 20230524
LEAST_VALUES = 100_000_000
REFERENCE_IMAGES = 8  # the reference runs over slices of this many images, to stay within the cache

#: Per mode (max_v_add, max_v_mul, rise_v): the smallest, one of the paper's, and one near 2**31.
SETTINGS = {
    "mat": [(1, 1, 0), (512, 1, 0), (2147483391, 1, 0)],
    "mmt": [(1, 1, 0), (1, 100, 0), (1, 8421504, 0)],
    "rise_mmt": [(1, 1, 1), (1, 1000, 300), (1, 3865470, 300)],
    "mat_mmt": [(1, 1, 0), (2048, 10, 0), (8388608, 255, 0)],
    "mmt_mat": [(1, 1, 0), (256, 10000, 0), (1073741824, 4210752, 0)],
}
NORMALIZED = ("range", "minmax", "minmax_channel")
#: (normalize, dtype, whether with mean and std)
OUTPUTS = [
    ("none", "int32", False),
    ("none", "narrowest", False),
    *((normalize, "uint8", False) for normalize in NORMALIZED),
    *itertools.product(NORMALIZED, ("float32", "float16", "bfloat16"), (False, True)),
]
FACTORS: dict[str, list[Any]] = {
    "mode": list(SETTINGS),
    "setting": [0, 1, 2],
    "output": OUTPUTS,
    "shape": [(1, 1, 1), (3, 7, 5), (1, 28, 28), (3, 32, 32), (3, 224, 224), (4, 33, 17)],
    "batch": [0, 1, 3, 65],
    "layout": ["NCHW", "NHWC", "channels_last", "strided"],
    "threads": [1, 2, 5],
}
MEANS, STDS = (0.4914, -0.25, 0.4465, 3.0), (0.247, 0.2435, 1.5, 0.02)


class Row(NamedTuple):
    mode: str
    setting: int
    output: tuple[str, str, bool]
    shape: tuple[int, int, int]
    batch: int
    layout: str
    threads: int

    @property
    def id(self) -> str:
        normalize, dtype, statistics = self.output
        size = "x".join(map(str, (self.batch, *self.shape)))
        name = f"{self.mode}{self.setting}-{normalize}-{dtype}{'-mean_std' if statistics else ''}"
        return f"{name}-{size}-{self.layout}-t{self.threads}"


def pairs_of(row: tuple[Any, ...]) -> set[tuple[int, Any, int, Any]]:
    return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


def all_pairs(factors: list[list[Any]]) -> set[tuple[int, Any, int, Any]]:
    return {
        (i, a, j, b)
        for i, j in itertools.combinations(range(len(factors)), 2)
        for a, b in itertools.product(factors[i], factors[j])
    }


def covering_rows(seed: int) -> list[Row]:
    """Greedy: of some random rows through an uncovered pair, take the one that covers most. The same on each run."""
    chance, factors = random.Random(seed), list(FACTORS.values())
    missing, rows = sorted(all_pairs(factors), key=repr), []
    while missing:
        i, a, j, b = missing[0]
        candidates = []
        for _ in range(30):
            row = [chance.choice(values) for values in factors]
            row[i], row[j] = a, b
            candidates.append(tuple(row))
        best = max(candidates, key=lambda row: len(pairs_of(row).intersection(missing)))
        rows.append(Row(*best))
        covered = pairs_of(best)
        missing = [pair for pair in missing if pair not in covered]
    return rows


ROWS = [row for seed in range(SEED, SEED + 3) for row in covering_rows(seed)]
WIDTHS = range(1, 141)  # every remainder of the vectors of 16, 32 and 64 bytes, past two of the longest


def paper_rows() -> list[tuple[str, int, int, int]]:
    """Every setting of the paper once: (mode, max_v_add, max_v_mul, rise_v)."""
    adds, muls, rises = (5, 256, 512, 1024, 2048), (10, 100, 1000, 10000), (100, 200, 300, 400)
    return [
        *(("mat", add, 10, 0) for add in adds),
        *(("mmt", 256, mul, 0) for mul in muls),
        *(("rise_mmt", 256, mul, rise) for mul, rise in itertools.product(muls, rises)),
        *((mode, add, mul, 0) for mode in ("mat_mmt", "mmt_mat") for add, mul in itertools.product(adds, muls)),
    ]


def make_images(batch: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """NCHW, with constant images and channels among them (hi == lo under a constant key) and both ends of the scale."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, *shape), np.uint8)
    images[1::5] = rng.integers(0, 256)
    images[2::5, 0] = 255
    images[3::7] &= 1
    images[4::7] = 255 * (images[4::7] & 1)
    return images


def arrange(array: np.ndarray, layout: str) -> np.ndarray:
    """The NCHW values of `array` as the caller of this layout holds them; the shape is NHWC for "NHWC" alone."""
    if layout == "NCHW":
        return np.ascontiguousarray(array)
    if layout == "strided":
        n, c, h, w = array.shape
        spaced = np.zeros((n, c, 2 * h, w + 3), array.dtype)[:, :, ::2, 2 : w + 2]
        spaced[...] = array
        return spaced
    last = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    return last if layout == "NHWC" else last.transpose(0, 3, 1, 2)


def nchw(array: np.ndarray, layout: str) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if layout == "NHWC" else array


def from_caller(result: Any, layout: str) -> np.ndarray:
    """A backend's result in NCHW order as integers: the IEEE bits of floats, so that -0.0 and 0.0 differ."""
    if not isinstance(result, np.ndarray):  # torch, where the plan's dtype is bfloat16
        import torch

        result = (result.view(torch.int16) if result.dtype == torch.bfloat16 else result).numpy()
    if result.dtype.kind == "f":
        result = result.view(f"i{result.dtype.itemsize}")
    return nchw(result, layout)


def to_caller(bits: np.ndarray, dtype: str, layout: str) -> Any:
    """The inverse of `from_caller`."""
    arranged = arrange(bits, layout)
    if dtype == "bfloat16":
        import torch

        return torch.from_numpy(arranged).view(torch.bfloat16)
    return arranged.view(dtype)


def by_slices(function: Callable[..., Any], plan: dlmt.Plan, arrays: list[Any], **options: Any) -> list[Any]:
    """`function` of the reference over slices of the batch; an empty batch in one call."""
    count = len(arrays[0])
    starts = range(0, max(count, 1), REFERENCE_IMAGES)
    return [
        function(
            arrays[0][s : s + REFERENCE_IMAGES], plan, *(a[s : s + REFERENCE_IMAGES] for a in arrays[1:]), **options
        )
        for s in starts
    ]


def join(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def expected_of(plan: dlmt.Plan, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference's bits, bounds and decryption, all NCHW."""
    tensor = images
    if plan.dtype == "bfloat16":
        import torch

        tensor = torch.from_numpy(images)
    parts = by_slices(dlmt.encrypt, plan, [tensor], backend="reference", return_bounds=True)
    bits = join([from_caller(y, "NCHW") for y, _ in parts])
    bounds = join([np.asarray(pair) for _, pair in parts])
    back = by_slices(dlmt.decrypt, plan, [to_caller(bits, plan.dtype, "NCHW"), bounds], backend="reference")
    return bits, bounds, join([from_caller(x, "NCHW") for x in back])


def differences(what: str, target: Any, got: np.ndarray, want: np.ndarray, walk: Any) -> list[str]:
    """Count the values; describe the first that differs."""
    assert got.shape == want.shape, f"{what} on {target}: shape {got.shape} instead of {want.shape}"
    assert got.dtype.itemsize == want.dtype.itemsize, f"{what} on {target}: dtype {got.dtype} instead of {want.dtype}"
    walk.values += want.size
    if np.array_equal(got, want):
        return []
    wrong = np.argwhere(got != want)
    walk.differ += len(wrong)
    first = tuple(int(i) for i in wrong[0])
    bits = [hex(int(a[first]) & (256**a.dtype.itemsize - 1)) for a in (got, want)]
    level = f"level {target.level}" if target.level else "its only level"
    return [
        f"{what}: backend {target.backend}, {level}: {len(wrong)} of {want.size} values differ, first at NCHW index "
        f"{first}: got {got[first]} ({bits[0]}), reference {want[first]} ({bits[1]})"
    ]


def compare(plan: dlmt.Plan, images: np.ndarray, layout: str, threads: int, fast_targets: Any, walk: Any) -> None:
    """Both directions on every target against one run of the reference."""
    bits, bounds, back = expected_of(plan, images)
    source = arrange(images, layout)
    if plan.dtype == "bfloat16":
        import torch

        source = torch.from_numpy(source)
    received = to_caller(bits, plan.dtype, layout)
    named = {"layout": "NHWC" if layout == "NHWC" else "NCHW", "threads": threads}
    failures: list[str] = []
    for target in fast_targets:
        with target.active() as backend:
            y, pairs = dlmt.encrypt(source, plan, backend=backend, return_bounds=True, **named)
            x = dlmt.decrypt(received, plan, bounds, backend=backend, **named)
        failures += differences("encrypt", target, from_caller(y, layout), bits, walk)
        failures += differences("bounds", target, np.asarray(pairs), bounds, walk)
        failures += differences("decrypt", target, from_caller(x, layout), back, walk)
    assert not failures, "\n" + "\n".join(failures)


LO_IS_HI = list(itertools.product(NORMALIZED, ("uint8", "float32")))
IN_PLACE = list(itertools.product(NORMALIZED, FACTORS["layout"]))
WHOLE_WALK = sum(map(len, (ROWS, paper_rows(), OUTPUTS, LO_IS_HI, IN_PLACE)))


def plan_for(row: Row, key: dlmt.Key) -> dlmt.Plan:
    normalize, dtype, statistics = row.output
    options: dict[str, Any] = {"normalize": normalize, "dtype": dtype}
    if statistics:
        options |= {"mean": MEANS[: row.shape[0]], "std": STDS[: row.shape[0]]}
    return dlmt.DLMT(row.mode, *SETTINGS[row.mode][row.setting]).plan(key, row.shape, **options)


def test_every_pair_of_factors_is_covered() -> None:
    covered = set().union(*(pairs_of(row) for row in covering_rows(SEED)))
    assert covered == all_pairs(list(FACTORS.values()))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_equal(row: Row, key: dlmt.Key, fast_targets: Any, walk: Any) -> None:
    walk.done += 1
    images = make_images(row.batch, row.shape, SEED + ROWS.index(row))
    compare(plan_for(row, key), images, row.layout, row.threads, fast_targets, walk)


@pytest.mark.parametrize("setting", paper_rows(), ids=lambda setting: "-".join(map(str, setting)))
def test_equal_at_every_setting_of_the_paper(
    setting: tuple[Any, ...], key: dlmt.Key, fast_targets: Any, walk: Any
) -> None:
    walk.done += 1
    number = paper_rows().index(setting)
    images = make_images(5, (3, 6, 11), SEED - number)
    for normalize, dtype, statistics in OUTPUTS[(number + number // 4) % 4 :: 4]:
        row = Row(setting[0], 0, (normalize, dtype, statistics), (3, 6, 11), 5, "NCHW", 2)
        scheme, options = dlmt.DLMT(*setting), {"normalize": normalize, "dtype": dtype}
        if statistics:
            options |= {"mean": MEANS[:3], "std": STDS[:3]}
        compare(scheme.plan(key, row.shape, **options), images, "NCHW", 2, fast_targets, walk)


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: "-".join(map(str, output)))
def test_equal_at_every_width(output: tuple[str, str, bool], key: dlmt.Key, fast_targets: Any, walk: Any) -> None:
    """The ends of rows that no vector fills."""
    walk.done += 1
    for width in WIDTHS:
        mode = list(SETTINGS)[width % 5]
        row = Row(mode, width % 3, output, (1 + width % 3, 1, width), 2, "NCHW", 1)
        for layout in ("NCHW", "NHWC"):
            compare(plan_for(row, key), make_images(2, row.shape, width), layout, 1, fast_targets, walk)


@pytest.mark.parametrize(("normalize", "dtype"), LO_IS_HI)
def test_equal_where_lo_is_hi(normalize: str, dtype: str, key: dlmt.Key, fast_targets: Any, walk: Any) -> None:
    """Images and channels of one value under a key that leaves them so: min-max divides by nothing."""
    walk.done += 1
    statistics: dict[str, Any] = {"mean": MEANS[:3], "std": STDS[:3]} if dtype == "float32" else {}
    plan = dlmt.DLMT("mat_mmt", 1, 1).plan(key, (3, 9, 13), normalize=normalize, dtype=dtype, **statistics)
    images = np.full((6, 3, 9, 13), 7, np.uint8)
    images[1], images[2], images[3, 1], images[4, 2, 8, 12] = 0, 255, 8, 8
    bounds = expected_of(plan, images)[1].reshape(6, -1, 2)
    assert (bounds[0, :, 0] == bounds[0, :, 1]).all() == (normalize != "range")
    for layout in FACTORS["layout"]:
        compare(plan, images, layout, 2, fast_targets, walk)


@pytest.mark.parametrize(("normalize", "layout"), IN_PLACE)
def test_equal_in_place(normalize: str, layout: str, key: dlmt.Key, fast_targets: Any, walk: Any) -> None:
    walk.done += 1
    plan = dlmt.DLMT("mmt_mat", 256, 100).plan(key, (3, 33, 47), normalize=normalize)
    images = make_images(9, plan.shape, SEED)
    bits, bounds, back = expected_of(plan, images)
    named = {"layout": "NHWC" if layout == "NHWC" else "NCHW", "threads": 2}
    failures: list[str] = []
    for target in fast_targets:
        memory = arrange(images.copy(), layout)
        with target.active() as backend:
            assert dlmt.encrypt(memory, plan, out=memory, backend=backend, **named) is memory
            failures += differences("encrypt in place", target, from_caller(memory, layout), bits, walk)
            assert dlmt.decrypt(memory, plan, bounds, out=memory, backend=backend, **named) is memory
            failures += differences("decrypt in place", target, from_caller(memory, layout), back, walk)
    assert not failures, "\n" + "\n".join(failures)


def test_enough_was_compared(walk: Any) -> None:
    """Stands last; conftest.py prints the count at the end of the run."""
    if walk.done != WHOLE_WALK:
        pytest.skip(f"{walk.done} of {WHOLE_WALK} parts of the walk were selected; the count means the whole file")
    assert walk.differ == 0
    assert walk.values >= LEAST_VALUES
