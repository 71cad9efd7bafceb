"""The public parameters, their borders, and the secret matrices that they and a key give."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import InputTypeError, ParameterError
from dlmt_fast.schemes.matrices import secret_matrix

MODES = ("mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat")
ADDS, MULS, RISES = (5, 256, 512, 1024, 2048), (10, 100, 1000, 10000), (100, 200, 300, 400)
INT_END = 2**31


def table(mode: str, add: int, mul: int, rise: int) -> tuple[int, int]:
    """lo and hi as the contract's table words them."""
    return {
        "mat": (1, 255 + add),
        "mmt": (0, 255 * mul),
        "rise_mmt": (rise, (255 + rise) * mul),
        "mat_mmt": (1, (255 + add) * mul),
        "mmt_mat": (1, 255 * mul + add),
    }[mode]


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_settings_of_the_paper(mode: str) -> None:
    for add, mul, rise in itertools.product(ADDS, MULS, RISES if mode == "rise_mmt" else (0,)):
        scheme = dlmt.DLMT(mode, add, mul, rise)
        assert (scheme.lo, scheme.hi) == table(mode, add, mul, rise)
        assert scheme.mode == mode


def test_the_defaults() -> None:
    assert dlmt.DLMT() == dlmt.DLMT("mat_mmt", max_v_add=256, max_v_mul=10, rise_v=0)


@pytest.mark.parametrize("mode", ["MAT", "mat-mmt", "", "matmmt", None, 3, [], ("mat",), b"mat"], ids=repr)
def test_unknown_modes(mode: Any) -> None:
    with pytest.raises(ParameterError, match="expected one of mat, mmt, rise_mmt, mat_mmt, mmt_mat"):
        dlmt.DLMT(mode)


ODD = [True, False, np.True_, 1.0, np.float64(5), 2.5, "5", None, [5], float("nan"), 5j]


@pytest.mark.parametrize("name", ["max_v_add", "max_v_mul", "rise_v"])
@pytest.mark.parametrize("mode", MODES)
def test_values_that_are_no_integers(mode: str, name: str) -> None:
    for value in ODD:
        with pytest.raises(ParameterError, match=f"{name} must be an integer, got"):
            dlmt.DLMT(mode, **{name: value})


@pytest.mark.parametrize("mode", MODES)
def test_values_that_are_too_small_even_where_unused(mode: str) -> None:
    for name, value, least in [("max_v_add", 0, 1), ("max_v_mul", 0, 1), ("max_v_add", -7, 1), ("rise_v", -1, 0)]:
        with pytest.raises(ParameterError, match=f"{name} must be at least {least}, got {value}"):
            dlmt.DLMT(mode, **{name: value})


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "rise_mmt"])
def test_rise_has_no_meaning_in_other_modes(mode: str) -> None:
    with pytest.raises(ParameterError, match=f"rise_v=1 has no meaning in mode '{mode}'"):
        dlmt.DLMT(mode, rise_v=1)


@pytest.mark.parametrize(
    ("mode", "name", "others", "largest"),
    [
        ("mat", "max_v_add", {}, INT_END - 1 - 255),
        ("mmt", "max_v_mul", {}, (INT_END - 1) // 255),
        ("rise_mmt", "max_v_mul", {"rise_v": 300}, (INT_END - 1) // 555),
        ("rise_mmt", "max_v_mul", {"rise_v": 0}, (INT_END - 1) // 255),
        ("rise_mmt", "rise_v", {"max_v_mul": 10}, (INT_END - 1) // 10 - 255),
        ("mat_mmt", "max_v_add", {"max_v_mul": 10}, (INT_END - 1) // 10 - 255),
        ("mat_mmt", "max_v_mul", {"max_v_add": 256}, (INT_END - 1) // 511),
        ("mmt_mat", "max_v_add", {"max_v_mul": 10}, INT_END - 1 - 2550),
        ("mmt_mat", "max_v_mul", {"max_v_add": 256}, (INT_END - 1 - 256) // 255),
    ],
)
def test_the_border_of_int32(mode: str, name: str, others: dict[str, int], largest: int, key: dlmt.Key) -> None:
    scheme = dlmt.DLMT(mode, **others, **{name: largest})
    assert scheme.hi < INT_END
    m, b = scheme.matrices(key, (1, 8, 8))
    v = 255 * m.astype(np.int64) + b
    assert (b >= 0).all()
    assert scheme.lo <= v.min()
    assert v.max() <= scheme.hi
    with pytest.raises(ParameterError, match=r"could reach \d+, at or over 2\*\*31"):
        dlmt.DLMT(mode, **others, **{name: largest + 1})


def test_numpy_integers_are_integers() -> None:
    scheme = dlmt.DLMT("rise_mmt", max_v_mul=np.uint8(10), rise_v=np.int64(300))
    assert scheme == dlmt.DLMT("rise_mmt", max_v_mul=10, rise_v=300)
    assert [type(value) for value in scheme.params.values()] == [str, str, int, int]


def test_unused_parameters_are_ignored() -> None:
    for a, b, other in [
        (dlmt.DLMT("mat", 256, 10), dlmt.DLMT("mat", 256, 2**40), dlmt.DLMT("mat", 257, 10)),
        (dlmt.DLMT("mmt", 256, 10), dlmt.DLMT("mmt", 2**40, 10), dlmt.DLMT("mmt", 256, 11)),
        (dlmt.DLMT("rise_mmt", 256, 10, 5), dlmt.DLMT("rise_mmt", 9, 10, 5), dlmt.DLMT("rise_mmt", 256, 10, 6)),
    ]:
        assert a == b
        assert hash(a) == hash(b)
        assert repr(a) == repr(b)
        assert a.params == b.params
        assert len({a, b, other}) == 2
    assert dlmt.DLMT("mat_mmt") != dlmt.DLMT("mmt_mat")
    assert dlmt.DLMT("mat") != dlmt.DLMT("mat").params


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        (dlmt.DLMT("mat"), "DLMT(mode='mat', max_v_add=256)"),
        (dlmt.DLMT("mmt"), "DLMT(mode='mmt', max_v_mul=10)"),
        (dlmt.DLMT("rise_mmt", rise_v=3), "DLMT(mode='rise_mmt', max_v_mul=10, rise_v=3)"),
        (dlmt.DLMT("mat_mmt"), "DLMT(mode='mat_mmt', max_v_add=256, max_v_mul=10)"),
        (dlmt.DLMT("mmt_mat", 5, 6), "DLMT(mode='mmt_mat', max_v_add=5, max_v_mul=6)"),
    ],
    ids=lambda value: value.mode if isinstance(value, dlmt.DLMT) else "",
)
def test_repr_and_params_make_the_scheme_again(scheme: dlmt.DLMT, text: str) -> None:
    assert repr(scheme) == text
    assert eval(text, {"DLMT": dlmt.DLMT}) == scheme
    assert dlmt.DLMT.from_params(scheme.params) == scheme


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"mode": "mat", "max_v_add": 256},
        {"scheme": "other", "mode": "mat", "max_v_add": 256},
        {"scheme": "dlmt", "mode": "mat"},
        {"scheme": "dlmt", "mode": "mat", "max_v_add": 256, "max_v_mul": 10},
        {"scheme": "dlmt", "mode": "mat", "max_v_add": 256, "comment": "x"},
        {"scheme": "dlmt", "mode": "other", "max_v_add": 256},
        {"scheme": "dlmt", "mode": ["mat"], "max_v_add": 256},
        {"scheme": "dlmt", "mode": "mat", "max_v_add": "256"},
        {"scheme": "dlmt", "mode": "mat", "max_v_add": True},
        {"scheme": "dlmt", "mode": "mmt", "max_v_mul": 2**31},
    ],
    ids=str,
)
def test_params_of_nothing(params: dict[str, Any]) -> None:
    before = dict(params)
    with pytest.raises(ParameterError):
        dlmt.DLMT.from_params(params)
    assert params == before


def test_a_plan_needs_a_key(secret: bytes) -> None:
    with pytest.raises(InputTypeError, match="Key, got bytes") as caught:
        dlmt.DLMT().plan(secret, (1, 2, 2))  # type: ignore[arg-type]
    assert secret.hex() not in str(caught.value)


# --- matrices --------------------------------------------------------------------------------------------------------


def slow_matrix(secret: bytes, fields: tuple[str, ...], count: int, max_v: int) -> tuple[list[int], int]:
    """The contract's words one number at a time, the counter by hand; also how many numbers were rejected."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    prk = hmac.new(b"dlmt-fast/v1", secret, hashlib.sha256).digest()
    info = "/".join(("matrix", *fields)).encode()
    first = hmac.new(prk, info + b"\x01", hashlib.sha256).digest()
    okm = first + hmac.new(prk, first + info + b"\x02", hashlib.sha256).digest()[:16]
    block = Cipher(AES(okm[:32]), ECB()).encryptor()
    counter = int.from_bytes(okm[32:48], "big")
    values: list[int] = []
    rejected = 0
    while len(values) < count:
        words = block.update(counter.to_bytes(16, "big"))
        counter = (counter + 1) % 2**128
        for at in range(0, 16, 4):
            u = int.from_bytes(words[at : at + 4], "little")
            if u > 0xFFFFFFFF - 2**32 % max_v:
                rejected += 1
            else:
                values.append(1 + u % max_v)
    return values[:count], rejected


@pytest.mark.parametrize(
    ("max_v", "rejects"),
    [(1, 0), (2, 0), (3, 0), (10, 0), (256, 0), (2**31 - 1, 0), (2**30 + 1, 60), (3 * 2**29, 60), (2**31 - 2**29, 0)],
)
def test_matrices_as_the_contract_words_them(max_v: int, rejects: int, secret: bytes, key: dlmt.Key) -> None:
    """A quarter of the numbers is rejected for the awkward bounds, so the stream goes on several times."""
    shape, fields = (2, 9, 17), ("mat", "add", "2x9x17", str(max_v), "0", "0")
    values, rejected = slow_matrix(secret, fields, 2 * 9 * 17, max_v)
    assert rejected >= rejects
    np.testing.assert_array_equal(secret_matrix(key, fields, shape, max_v).ravel(), values)


@pytest.mark.parametrize("mode", MODES)
def test_the_coefficients_of_each_mode(mode: str, secret: bytes, key: dlmt.Key) -> None:
    """M and B from Radd and Rmul as the paper's equations make them; what the mode does not use is written 0."""
    add, mul, rise = 512, 100, 300 if mode == "rise_mmt" else 0
    uses_add, uses_mul = mode in ("mat", "mat_mmt", "mmt_mat"), mode != "mat"
    tail = (str(add if uses_add else 0), str(mul if uses_mul else 0), str(rise))
    radd = np.array(slow_matrix(secret, (mode, "add", "1x4x5", *tail), 20, add)[0]).reshape(1, 4, 5)
    rmul = np.array(slow_matrix(secret, (mode, "mul", "1x4x5", *tail), 20, mul)[0]).reshape(1, 4, 5)
    expected = {
        "mat": (np.ones_like(radd), radd),
        "mmt": (rmul, np.zeros_like(rmul)),
        "rise_mmt": (rmul, rise * rmul),
        "mat_mmt": (rmul, radd * rmul),
        "mmt_mat": (rmul, radd),
    }[mode]
    m, b = dlmt.DLMT(mode, add, mul, rise).matrices(key, (1, 4, 5))
    assert m.dtype == b.dtype == np.int32
    np.testing.assert_array_equal(m, expected[0])
    np.testing.assert_array_equal(b, expected[1])


@pytest.mark.parametrize("max_v", [2, 5, 10, 256, 1000])
def test_matrices_are_uniform(max_v: int, key: dlmt.Key) -> None:
    values = secret_matrix(key, ("mat", "add", "3x128x128", str(max_v), "0", "0"), (3, 128, 128), max_v)
    counts = np.bincount(values.ravel(), minlength=max_v + 1)
    assert counts.size == max_v + 1
    assert counts[0] == 0
    assert counts[1:].min() > 0
    expected = values.size / max_v
    chi_square = float(((counts[1:] - expected) ** 2 / expected).sum())
    assert abs(chi_square - (max_v - 1)) < 5 * (2 * (max_v - 1)) ** 0.5 + 5  # five standard deviations


def test_no_two_sizes_modes_settings_or_keys_share_a_matrix(key: dlmt.Key) -> None:
    """Under a shared matrix, images of two data sets would break each other."""
    seen: dict[bytes, str] = {}
    for number, k in enumerate((key, dlmt.Key(bytes(32)))):
        for shape in [(1, 16, 32), (1, 32, 16), (2, 16, 16), (32, 4, 4), (512, 1, 1)]:
            for mode, add, mul in itertools.product(MODES, (256, 512), (256, 512)):
                for rise in (1, 2) if mode == "rise_mmt" else (0,):
                    scheme = dlmt.DLMT(mode, add, mul, rise)
                    for role, matrix in zip("MB", scheme.matrices(k, shape), strict=True):
                        if len(np.unique(matrix)) > 1:  # not the constant 1 of mat and 0 of mmt
                            name = f"{number} {shape} {scheme} {role}"
                            known = seen.setdefault(matrix.tobytes(), name)
                            assert known == name or known.startswith(f"{number} {shape} {scheme} "), (known, name)
    assert len(seen) > 2 * 5 * 12
