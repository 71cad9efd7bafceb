"""Plans: which combinations exist, and whether `exact` and `worst_error` hold for every pixel value."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dlmt_fast as dlmt
from dlmt_fast.errors import ParameterError

SECRET = bytes(range(32))
SCHEME = dlmt.DLMT("mat_mmt")
NORMALIZED = ("range", "minmax", "minmax_channel")
FLOATS = ("float32", "float16", "bfloat16")
ALLOWED = {("none", "int32"), ("none", "narrowest"), *itertools.product(NORMALIZED, ("uint8", *FLOATS))}
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("dtype", [*DTYPES, "narrowest", "bool", "", "float", "INT32", "f4"])
@pytest.mark.parametrize("normalize", ["none", *NORMALIZED])
def test_allowed_and_refused_pairs(normalize: str, dtype: str, key: dlmt.Key) -> None:
    if (normalize, dtype) in ALLOWED:
        plan = SCHEME.plan(key, (3, 2, 2), normalize, dtype)
        assert plan.normalize == normalize
        assert plan.dtype == ("uint16" if dtype == "narrowest" else dtype)
    else:
        with pytest.raises(ParameterError, match='does not exist; allowed are normalize="none" with dtype "int32"'):
            SCHEME.plan(key, (3, 2, 2), normalize, dtype)


def test_default_dtypes(key: dlmt.Key) -> None:
    assert SCHEME.plan(key, (1, 2, 2)).normalize == "range"
    assert [SCHEME.plan(key, (1, 2, 2), name).dtype for name in ("none", *NORMALIZED)] == ["int32", *["uint8"] * 3]


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_of_numpy_and_torch_are_the_same_as_their_names(name: str, key: dlmt.Key) -> None:
    torch = pytest.importorskip("torch")
    spellings = [getattr(torch, name)]
    if name != "bfloat16":
        spellings += [np.dtype(name), getattr(np, name)]
    for spelling in spellings:
        for normalize in ("none", "range"):
            if (normalize, name) in ALLOWED:
                assert SCHEME.plan(key, (1, 2, 2), normalize, spelling).dtype == name
            else:
                with pytest.raises(ParameterError, match="does not exist"):
                    SCHEME.plan(key, (1, 2, 2), normalize, spelling)


@pytest.mark.parametrize("dtype", [5, object(), float, int, bool, complex, str, np.nan, {}, {"names": ["a"]}], ids=str)
def test_what_is_no_dtype(dtype: Any, key: dlmt.Key) -> None:
    with pytest.raises(ParameterError):
        SCHEME.plan(key, (1, 2, 2), "range", dtype)


@pytest.mark.parametrize("normalize", ["", "Range", "min-max", "channel", None, 0, True], ids=repr)
def test_unknown_normalizations(normalize: Any, key: dlmt.Key) -> None:
    with pytest.raises(ParameterError, match="expected one of none, range, minmax, minmax_channel"):
        SCHEME.plan(key, (1, 2, 2), normalize)


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        (dlmt.DLMT("mmt", max_v_mul=1), "uint8"),
        (dlmt.DLMT("mat", max_v_add=1), "uint16"),
        (dlmt.DLMT("mat", max_v_add=65535 - 255), "uint16"),
        (dlmt.DLMT("mat", max_v_add=65536 - 255), "int32"),
        (dlmt.DLMT("mmt", max_v_mul=257), "uint16"),
        (dlmt.DLMT("mmt", max_v_mul=258), "int32"),
    ],
    ids=str,
)
def test_narrowest_holds_every_value(scheme: dlmt.DLMT, dtype: str, key: dlmt.Key) -> None:
    plan = scheme.plan(key, (1, 2, 2), "none", "narrowest")
    assert plan.dtype == dtype
    assert np.iinfo(dtype).min <= plan.lo
    assert plan.hi <= np.iinfo(dtype).max


BAD_SHAPES = [(), (1, 2), (1, 2, 3, 4), (0, 2, 2), (1, -2, 2), (1, 2, 2.5), (True, 2, 2), (1, 2, math.nan)]


@pytest.mark.parametrize("shape", [*BAD_SHAPES, (1, 2, math.inf), 5, None, "123", "abc", (None, 2, 2)], ids=repr)
def test_shapes_that_are_none(shape: Any, key: dlmt.Key) -> None:
    with pytest.raises(ParameterError, match=r"shape must be \(C, H, W\)"):
        SCHEME.plan(key, shape)


@pytest.mark.parametrize("shape", [[3, 4, 5], np.array([3, 4, 5]), (np.uint8(3), 4, 5)], ids=lambda s: type(s).__name__)
def test_shapes_in_other_clothes(shape: Any, key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, shape)
    assert plan.shape == (3, 4, 5)
    assert [type(n) for n in plan.shape] == [int, int, int]


def test_a_plan_for_the_size_of_imagenet(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, (3, 224, 224), dtype="float32", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert plan.exact
    assert plan.worst_error == 0


def test_repr_holds_the_fingerprint_and_no_coefficient(key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, (1, 2, 2), "minmax")
    assert repr(plan) == (
        "Plan(DLMT(mode='mat_mmt', max_v_add=256, max_v_mul=10), shape=(1, 2, 2), normalize='minmax', dtype='uint8', "
        f"key='{key.fingerprint}')"
    )
    assert "array" not in repr(plan.coefficients("CHW"))
    assert (plan.lo, plan.hi, plan.scheme) == (SCHEME.lo, SCHEME.hi, SCHEME)


# --- mean and std ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalize", "dtype"), sorted(pair for pair in ALLOWED if pair[1] not in FLOATS))
@pytest.mark.parametrize("option", ["mean", "std"])
def test_mean_and_std_need_a_float_dtype(normalize: str, dtype: str, option: str, key: dlmt.Key) -> None:
    with pytest.raises(ParameterError, match="need a float dtype"):
        SCHEME.plan(key, (3, 2, 2), normalize, dtype, **{option: 1.0})


@pytest.mark.parametrize("option", ["mean", "std"])
@pytest.mark.parametrize(
    "value",
    [(1, 2), (1, 2, 3, 4), [[1, 2, 3]], [], math.nan, math.inf, -math.inf, (1, math.nan, 1), "x", 1j, object()],
    ids=lambda value: str(value)[:12],
)
def test_means_and_stds_that_are_none(option: str, value: Any, key: dlmt.Key) -> None:
    with pytest.raises(ParameterError, match=option):
        SCHEME.plan(key, (3, 2, 2), dtype="float32", **{option: value})


def test_the_borders_of_mean_and_std(key: dlmt.Key) -> None:
    for option, value in [("mean", 1e6), ("mean", -1e6), ("std", 1e-6), ("std", 1e6)]:
        plan = SCHEME.plan(key, (3, 2, 2), dtype="float32", **{option: value})
        assert getattr(plan, option).tolist() == [value] * 3
    for option, value in [("mean", 1.000001e6), ("mean", -1.000001e6), ("std", 0.999999e-6), ("std", 1.000001e6)]:
        with pytest.raises(ParameterError, match=f"{option} must lie in"):
            SCHEME.plan(key, (3, 2, 2), dtype="float32", **{option: (1, 1, value)})
    for value in (0, -1, -0.5):
        with pytest.raises(ParameterError, match="std must lie in"):
            SCHEME.plan(key, (3, 2, 2), dtype="float32", std=value)


@pytest.mark.parametrize("value", [0.5, [0.5], (0.5, 0.5, 0.5), np.float32(0.5), np.full(3, 0.5)], ids=repr)
def test_a_scalar_stands_for_every_channel(value: Any, key: dlmt.Key) -> None:
    plan = SCHEME.plan(key, (3, 2, 2), dtype="float32", mean=value, std=value)
    assert plan.mean.tolist() == plan.std.tolist() == [0.5] * 3


@pytest.mark.parametrize("mean", [0.0, -0.0])
def test_a_bias_of_zero_is_plus_zero(mean: float, key: dlmt.Key) -> None:
    bias = SCHEME.plan(key, (1, 2, 2), dtype="float32", mean=mean).coefficients("CHW").b
    assert bias is not None
    assert not np.signbit(bias).any()


@pytest.mark.parametrize(
    ("mean", "std", "fits"),
    [
        (0.0, 1 / 65519.9, True),
        (0.0, 1 / 65520.0, False),
        (-65519.9 + 1, 1.0, True),
        (-65520.0 + 1, 1.0, False),
        (65519.9, 1.0, True),
        (65520.0, 1.0, False),
        ((0.0, 0.0, 1e6), (1.0, 1.0, 1.0), False),
        ((0.0, 0.0, 1e6), (1.0, 1.0, 16.0), True),
    ],
)
def test_float16_ends_at_65520(mean: Any, std: Any, fits: bool, key: dlmt.Key) -> None:
    scheme = dlmt.DLMT("mmt", max_v_mul=1)
    if fits:
        plan = scheme.plan(key, (3, 1, 2), dtype="float16", mean=mean, std=std)
        extremes = np.array([[[0, 255]]] * 3, np.uint8)
        assert np.isfinite(dlmt.encrypt(extremes, plan, backend="reference")).all()
    else:
        with pytest.raises(ParameterError, match="where float16 ends"):
            scheme.plan(key, (3, 1, 2), dtype="float16", mean=mean, std=std)
        scheme.plan(key, (3, 1, 2), dtype="bfloat16", mean=mean, std=std)


# --- exact and worst_error -------------------------------------------------------------------------------------------


def brute_force(plan: dlmt.Plan) -> int:
    """The largest error of any pixel: every value at every position, beside constant and extreme neighbours."""
    c, h, w = plan.shape
    values = np.arange(256, dtype=np.uint8)
    batches = [np.broadcast_to(values[:, None, None, None], (256, c, h, w)).copy()]
    if plan.normalize.startswith("minmax"):  # the bounds depend on the neighbours
        for seed in range(3):
            batches.append(
                np.random.default_rng(seed).permuted(np.tile(values, (c * h * w, 1)), axis=1).T.reshape(-1, c, h, w)
            )
        extremes = batches[0].copy()
        extremes[:, :, 0, 0], extremes[:, :, -1, -1] = 0, 255
        batches.append(extremes)
    worst = 0
    for images in batches:
        given_images: Any = images
        if plan.dtype == "bfloat16":
            import torch

            given_images = torch.from_numpy(images)
        y, bounds = dlmt.encrypt(given_images, plan, backend="reference", return_bounds=True)
        back = np.asarray(dlmt.decrypt(y, plan, bounds, backend="reference"))
        worst = max(worst, int(np.abs(back.astype(int) - images).max()))
    return worst


def check(plan: dlmt.Plan) -> None:
    error = brute_force(plan)
    assert error <= plan.worst_error, f"{plan}: off by {error}, the bound is {plan.worst_error}"
    assert plan.exact == (plan.worst_error == 0)
    assert 0 <= plan.worst_error <= 255


@pytest.mark.parametrize(("normalize", "dtype"), sorted(ALLOWED))
@pytest.mark.parametrize("mode", ["mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat"])
def test_the_bound_holds_at_the_papers_largest_settings(mode: str, normalize: str, dtype: str, key: dlmt.Key) -> None:
    scheme = dlmt.DLMT(mode, 2048, 10000, 400 if mode == "rise_mmt" else 0)
    check(scheme.plan(key, (2, 3, 4), normalize, dtype))


def test_plans_that_are_exact_and_plans_that_are_not(key: dlmt.Key) -> None:
    """The claim is not empty on either side: each of these is what brute force finds."""
    for scheme, dtype, exact in [
        (dlmt.DLMT("mat"), "float32", True),
        (dlmt.DLMT("mat_mmt", 2048, 10), "float32", True),
        (dlmt.DLMT("mat", 2**30), "float32", False),
        (dlmt.DLMT("mat_mmt", 2048, 10), "bfloat16", False),
        (dlmt.DLMT("mat"), "uint8", False),
    ]:
        plan = scheme.plan(key, (1, 4, 8), dtype=dtype)
        assert plan.exact == exact, plan
        assert (brute_force(plan) == 0) == exact, plan


@given(
    mode=st.sampled_from(["mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat"]),
    add=st.integers(0, 30),
    mul=st.integers(0, 22),
    rise=st.integers(0, 400),
    jitter=st.integers(0, 2**30),
    pair=st.sampled_from(sorted(ALLOWED)),
    mean=st.floats(-1e6, 1e6) | st.floats(-3, 3) | st.just(0.0),
    std=st.floats(1e-6, 1e6) | st.floats(0.05, 4) | st.just(1.0),
)
def test_the_bound_holds_for_any_plan(
    mode: str, add: int, mul: int, rise: int, jitter: int, pair: tuple[str, str], mean: float, std: float
) -> None:
    max_add, max_mul = (1 << add) + jitter % (1 << add), (1 << mul) + jitter % (1 << mul)
    options: dict[str, Any] = {"mean": [mean, 0.25], "std": [1.0, std]} if pair[1] in FLOATS else {}
    try:
        scheme = dlmt.DLMT(mode, max_add, max_mul, rise if mode == "rise_mmt" else 0)
        plan = scheme.plan(dlmt.Key(SECRET), (2, 1, 5), *pair, **options)
    except ParameterError as error:
        assert "2**31" in str(error) or "float16 ends" in str(error)  # noqa: PT017
        return
    check(plan)
