"""How much decryption can be off, worked out from the coefficients alone (contract section 4)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_MARGIN = 1 + 2.0**-20


def worst_errors(
    normalize: str,
    dtype: str,
    span: int,
    least_m: NDArray[np.int64],
    gain: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> tuple[bool, int]:
    """(exact, worst error in gray levels) over every image, from each channel's smallest abs(M).

    `span`, `gain` and `bias` are those of the whole data set. For min-max an image's span is at most that, and the
    bounds grow with the span, up to a rounding of the gain that the margin covers.
    """
    if normalize == "none":
        return True, 0
    if dtype == "uint8":
        worst = max(min(255, -(-span // (510 * int(m)))) for m in least_m)
        return worst == 0, worst
    exact, worst = True, 0
    for m, g, b in zip(least_m, gain, bias, strict=True):
        error = _channel_error(dtype, span, float(g), float(b), widened=normalize != "range") * _MARGIN
        exact = exact and error < m / 2
        worst = max(worst, min(255, math.floor(error / m + 0.5)))
    return exact, 0 if exact else max(worst, 1)


def _channel_error(dtype: str, span: int, g: float, b: float, widened: bool) -> float:
    """E of the contract: the largest error of v that comes back from a float output."""
    scaled = span * g * (_MARGIN if widened else 1.0)
    largest = max(abs(b), abs(b + scaled))
    error = (_ulp32(scaled) + (_ulp32(largest) if b != 0 else 0.0)) / (2 * g)
    if span >= 1 << 24:
        error += _ulp32(span) / 2
    if dtype != "float32":
        error += _ulp_half(dtype, largest) / (2 * g)
    return error


def _ulp32(x: float) -> float:
    return float(np.spacing(np.float32(abs(x))))


def _ulp_half(dtype: str, x: float) -> float:
    bits, least = (10, -24) if dtype == "float16" else (7, -133)
    return math.ldexp(1.0, max(math.frexp(x)[1] - 1 - bits, least)) if x else 0.0
