"""Decryption: how far off it is at most, when it is exact, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import DecryptError

SCHEMES = {
    "mat": dlmt.DLMT("mat", max_v_add=2048),
    "mmt": dlmt.DLMT("mmt", max_v_mul=100),
    "rise_mmt": dlmt.DLMT("rise_mmt", max_v_mul=1000, rise_v=300),
    "mat_mmt": dlmt.DLMT("mat_mmt", 256, 10),
    "mmt_mat": dlmt.DLMT("mmt_mat", 1024, 10000),
    "mat-wide": dlmt.DLMT("mat", max_v_add=2147483391),
    "mat_mmt-wide": dlmt.DLMT("mat_mmt", 8388608, 255),
}
NORMALIZED = ("range", "minmax", "minmax_channel")
FLOATS = ("float32", "float16", "bfloat16")
PAIRS = [("none", "int32"), ("none", "narrowest"), *itertools.product(NORMALIZED, ("uint8", *FLOATS))]
OUTPUTS = [(*pair, "") for pair in PAIRS] + [(*pair, "mean_std") for pair in PAIRS if pair[1] in FLOATS]
SHAPE = (3, 4, 5)


def every_pixel_value() -> np.ndarray:
    """512 images in which every position takes each of the 256 values, at full contrast and at random."""
    rng = np.random.default_rng(7)
    stairs = (np.arange(256)[:, None] + 37 * np.arange(60)[None, :]) % 256
    values = np.concatenate([stairs, rng.permuted(stairs, axis=0)])
    return values.astype(np.uint8).reshape(-1, *SHAPE)


def kind_for(plan: dlmt.Plan, images: np.ndarray) -> Any:
    if plan.dtype != "bfloat16":
        return images
    import torch

    return torch.from_numpy(images)


def error_of(plan: dlmt.Plan, images: np.ndarray, backend: str) -> int:
    y, bounds = dlmt.encrypt(kind_for(plan, images), plan, backend=backend, return_bounds=True)
    back = np.asarray(dlmt.decrypt(y, plan, bounds, backend=backend))
    return int(np.abs(back.astype(int) - images).max())


@pytest.mark.parametrize(("normalize", "dtype", "statistics"), OUTPUTS)
@pytest.mark.parametrize("name", SCHEMES)
def test_round_trip_is_within_the_bound(
    name: str, normalize: str, dtype: str, statistics: str, key: dlmt.Key, backend: str
) -> None:
    options: dict[str, Any] = {"mean": (0.5, -2.0, 0.1), "std": (0.25, 3.0, 0.01)} if statistics else {}
    plan = SCHEMES[name].plan(key, SHAPE, normalize=normalize, dtype=dtype, **options)
    error = error_of(plan, every_pixel_value(), backend)
    assert error <= plan.worst_error
    assert plan.exact == (plan.worst_error == 0)


def test_the_paper_default_is_exact_from_float32_and_int32(key: dlmt.Key) -> None:
    for normalize, dtype in [("none", "int32"), ("range", "float32"), ("minmax", "float32")]:
        assert dlmt.DLMT("mat_mmt").plan(key, SHAPE, normalize, dtype).exact, (normalize, dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_a_wrong_key_is_refused(dtype: str, key: dlmt.Key, target: Any) -> None:
    scheme = {"uint8": dlmt.DLMT("mmt", max_v_mul=1), "uint16": dlmt.DLMT(), "int32": dlmt.DLMT("mat", 100000)}[dtype]
    plan = scheme.plan(key, SHAPE, normalize="none", dtype="narrowest")
    other = scheme.plan(dlmt.Key(bytes(32)), SHAPE, normalize="none", dtype="narrowest")
    assert plan.dtype == dtype
    y = dlmt.encrypt(every_pixel_value(), plan, backend="reference")
    with target.active() as backend:
        if dtype == "uint8":  # M is 1 and B is 0 under every key: nothing can tell
            assert np.array_equal(dlmt.decrypt(y, other, backend=backend), y)
            return
        with pytest.raises(DecryptError, match=r"first at image 0, channel \d, row \d, column \d\. The key"):
            dlmt.decrypt(y, other, backend=backend)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["int32", "narrowest"])
def test_damage_names_the_first_position(layout: str, dtype: str, key: dlmt.Key, target: Any) -> None:
    """Two damaged values: the smaller index in memory is named, by image, channel, row and column."""
    scheme = dlmt.DLMT("mat_mmt", 256, 10)
    plan = scheme.plan(key, SHAPE, normalize="none", dtype=dtype)
    places = [tuple(int(i) for i in place) for place in np.argwhere(scheme.matrices(key, SHAPE)[0] > 1)]
    y = dlmt.encrypt(every_pixel_value()[:66], plan, backend="reference")
    for (c, h, w), image in zip(places[::9], (0, 1, 3, 40, 65), strict=False):
        damaged = y.copy()
        damaged[image, c, h, w] += 1 if damaged[image, c, h, w] < plan.hi else -1  # M > 1 does not divide it any more
        damaged[65, 2, 3, 4] = 0  # below lo
        named = np.ascontiguousarray(damaged.transpose(0, 2, 3, 1)) if layout == "NHWC" else damaged
        words = f"first at image {image}, channel {c}, row {h}, column {w}"
        for threads, space in itertools.product((1, 5), (named, np.repeat(named, 2, axis=0)[::2])):
            with target.active() as backend, pytest.raises(DecryptError, match=words):
                dlmt.decrypt(space, plan, layout=layout, backend=backend, threads=threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("normalize", "dtype"), list(itertools.product(NORMALIZED, FLOATS)))
def test_nan_and_infinity_are_refused(normalize: str, dtype: str, value: float, key: dlmt.Key, target: Any) -> None:
    plan = dlmt.DLMT("mat_mmt").plan(key, SHAPE, normalize=normalize, dtype=dtype)
    images = kind_for(plan, every_pixel_value()[:9])
    y, bounds = dlmt.encrypt(images, plan, backend="reference", return_bounds=True)
    y[7, 2, 1, 3] = value
    y[8, 0, 0, 0] = value
    with target.active() as backend, pytest.raises(DecryptError, match="first at image 7, channel 2, row 1, column 3"):
        dlmt.decrypt(y, plan, bounds, backend=backend)


def received_values(plan: dlmt.Plan, rng: np.random.Generator) -> Any:
    """Any bits of the plan's dtype; floats finite and within +-2, with zeros, -0.0 and subnormals."""
    size = {"uint8": 1, "uint16": 2, "float16": 2, "bfloat16": 2}.get(plan.dtype, 4)
    bits = rng.integers(0, 256, (5, *SHAPE, size), np.uint8).view(f"i{size}")[..., 0]
    if plan.dtype in FLOATS:
        bits &= ~(1 << (30 if size == 4 else 14))
        bits.reshape(-1)[:4] = [0, -(2 ** (8 * size - 1)), 1, 2]
    if plan.dtype != "bfloat16":
        return bits.view(plan.dtype)
    import torch

    return torch.from_numpy(bits).view(torch.bfloat16)


def any_bounds(plan: dlmt.Plan, rng: np.random.Generator) -> np.ndarray | None:
    """Bounds that the plan allows, of no image in particular; lo is hi in one of them."""
    if not plan.normalize.startswith("minmax"):
        return None
    bounds = np.sort(rng.integers(plan.lo, plan.hi, (5, SHAPE[0], 2)), axis=-1).astype(np.int32)
    bounds[0, 0, 1] = bounds[0, 0, 0]
    return bounds if plan.normalize == "minmax_channel" else np.ascontiguousarray(bounds[:, 0])


def outcome(received: Any, plan: dlmt.Plan, bounds: Any, backend: str) -> Any:
    """The decrypted values as a list, or the words of the refusal."""
    try:
        return dlmt.decrypt(received, plan, bounds, backend=backend).tolist()
    except DecryptError as error:
        return str(error)


@pytest.mark.parametrize(("normalize", "dtype"), PAIRS)
@pytest.mark.parametrize("name", SCHEMES)
def test_values_that_encrypt_never_gives(
    name: str, normalize: str, dtype: str, key: dlmt.Key, fast_target: Any
) -> None:
    """Damage that cannot be told is clipped as the reference does; what can be told is refused in the same words."""
    plan, rng = SCHEMES[name].plan(key, SHAPE, normalize=normalize, dtype=dtype), np.random.default_rng(11)
    received, bounds = received_values(plan, rng), any_bounds(plan, rng)
    with fast_target.active() as backend:
        assert outcome(received, plan, bounds, backend) == outcome(received, plan, bounds, "reference")


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_floats_are_clipped(dtype: str, key: dlmt.Key, target: Any) -> None:
    plan = dlmt.DLMT("mmt", max_v_mul=10).plan(key, (1, 2, 3), dtype=dtype)
    huge = 65504.0 if dtype == "float16" else 3e38
    values = [huge, -huge, huge, 0.0, -0.0, -huge]
    if dtype == "bfloat16":
        import torch

        received: Any = torch.tensor(values, dtype=torch.bfloat16).view(1, 2, 3)
    else:
        received = np.array(values, dtype).reshape(1, 2, 3)
    with target.active() as backend:
        assert dlmt.decrypt(received, plan, backend=backend).reshape(-1).tolist() == [255, 0, 255, 0, 0, 0]
