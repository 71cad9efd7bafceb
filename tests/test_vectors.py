"""The known answers of the contract, on every backend and CPU level, in both memory orders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.schemes.matrices import secret_matrix

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("vectors.json").read_text())
CASES = VECTORS["cases"]
NORMALIZED = ("range", "minmax", "minmax_channel")


def case_id(case: dict[str, Any]) -> str:
    size = "x".join(map(str, case["shape"]))
    return f"{case['mode']}-{case['max_v_add']}-{case['max_v_mul']}-{case['rise_v']}-{size}"


@pytest.fixture(params=CASES, ids=case_id)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(params=["NCHW", "NHWC"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


def scheme_of(case: dict[str, Any]) -> dlmt.DLMT:
    return dlmt.DLMT(case["mode"], case["max_v_add"], case["max_v_mul"], case["rise_v"])


def plan_of(case: dict[str, Any], **options: Any) -> dlmt.Plan:
    return scheme_of(case).plan(dlmt.Key(bytes.fromhex(case["secret_hex"])), case["shape"], **options)


def given(values: Any, layout: str, dtype: str = "uint8") -> np.ndarray:
    """Nested lists in NCHW order as an array that lies in memory as `layout`."""
    array = np.asarray(values, dtype)
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if layout == "NHWC" else array


def nchw(array: np.ndarray, layout: str) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if layout == "NHWC" else array


def float_bits(words: list[str], shape: tuple[int, ...]) -> np.ndarray:
    return np.array([int(word, 16) for word in words], np.uint32).reshape(shape)


def test_the_file_holds_what_these_tests_expect() -> None:
    assert VECTORS["contract"] == dlmt.keys.CONTRACT
    assert {case["mode"] for case in CASES} == {"mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat"}
    for case in CASES:
        for normalize in NORMALIZED:
            assert {"uint8", "float32_bits", "decrypted_from_uint8"} <= set(case[normalize]), normalize


def test_fingerprint() -> None:
    assert dlmt.Key(bytes(range(32))).fingerprint == VECTORS["fingerprint"]


@pytest.mark.parametrize("matrix", VECTORS["matrices"], ids=lambda m: f"{m['mode']}-{m['role']}-{m['shape']}")
def test_matrix(matrix: dict[str, Any], key: dlmt.Key) -> None:
    shape = tuple(matrix["shape"])
    settings = [str(matrix[name]) for name in ("max_v_add", "max_v_mul", "rise_v")]
    fields = (matrix["mode"], matrix["role"], "x".join(map(str, shape)), *settings)
    values = secret_matrix(key, fields, shape, matrix[f"max_v_{matrix['role']}"])
    assert values.dtype == np.int32
    assert values.shape == shape
    assert values.ravel()[:8].tolist() == matrix["first8"]
    assert int(values.sum(dtype=np.int64)) == matrix["sum"]
    assert hashlib.sha256(values.astype("<i4").tobytes()).hexdigest() == matrix["sha256_of_little_endian_int32"]


def test_coefficients(case: dict[str, Any]) -> None:
    scheme = scheme_of(case)
    m, b = scheme.matrices(dlmt.Key(bytes.fromhex(case["secret_hex"])), tuple(case["shape"]))
    assert (scheme.lo, scheme.hi) == (case["lo"], case["hi"])
    np.testing.assert_array_equal(m, case["M"])
    np.testing.assert_array_equal(b, case["B"])


def test_none_and_its_inverse(case: dict[str, Any], layout: str, target: Any) -> None:
    plan = plan_of(case, normalize="none")
    with target.active() as backend:
        y = dlmt.encrypt(given(case["images"], layout), plan, layout=layout, backend=backend)
        x = dlmt.decrypt(given(case["none"], layout, "int32"), plan, layout=layout, backend=backend)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(nchw(y, layout), case["none"])
    np.testing.assert_array_equal(nchw(x, layout), case["images"])


@pytest.mark.parametrize("normalize", NORMALIZED)
def test_uint8_and_its_inverse(case: dict[str, Any], normalize: str, layout: str, target: Any) -> None:
    plan, known = plan_of(case, normalize=normalize), case[normalize]
    with target.active() as backend:
        images = given(case["images"], layout)
        y, bounds = dlmt.encrypt(images, plan, layout=layout, backend=backend, return_bounds=True)
        x = dlmt.decrypt(given(known["uint8"], layout), plan, bounds, layout=layout, backend=backend)
    np.testing.assert_array_equal(nchw(y, layout), known["uint8"])
    expected = known.get("bounds", [[case["lo"], case["hi"]]] * len(case["images"]))
    np.testing.assert_array_equal(bounds, expected)
    np.testing.assert_array_equal(nchw(x, layout), known["decrypted_from_uint8"])


@pytest.mark.parametrize("normalize", NORMALIZED)
def test_float32(case: dict[str, Any], normalize: str, layout: str, target: Any) -> None:
    check_float32(case, layout, target, case[normalize]["float32_bits"], normalize=normalize)


def test_float32_with_mean_and_std(case: dict[str, Any], layout: str, target: Any) -> None:
    known = case["range_mean_std"]
    check_float32(case, layout, target, known["float32_bits"], mean=known["mean"], std=known["std"])


def check_float32(case: dict[str, Any], layout: str, target: Any, words: list[str], **options: Any) -> None:
    """The known bits; and where the plan says exact, the way back from exactly these bits."""
    plan = plan_of(case, dtype="float32", **options)
    images = given(case["images"], layout)
    with target.active() as backend:
        y, bounds = dlmt.encrypt(images, plan, layout=layout, backend=backend, return_bounds=True)
        x = dlmt.decrypt(y, plan, bounds, layout=layout, backend=backend)
    assert y.dtype == np.float32
    bits = nchw(y, layout).view(np.uint32)
    np.testing.assert_array_equal(bits, float_bits(words, bits.shape))
    off = np.abs(x.astype(int) - images).max()
    assert off <= plan.worst_error
    assert off == 0 or not plan.exact
