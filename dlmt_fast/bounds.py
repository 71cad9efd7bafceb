"""The bounds of each image, and the error for values that no key gave: what `decrypt` is told and what it tells.

Used by `functional` and `on_device`.
"""

from __future__ import annotations

import numpy as np

from .backends.contract import Bounds
from .errors import DecryptError, InputShapeError, ParameterError
from .schemes.plan import Plan


def is_minmax(plan: Plan) -> bool:
    """Whether each image has bounds of its own."""
    return plan.normalize.startswith("minmax")


def kernel_shape(plan: Plan, count: int) -> tuple[int, int, int]:
    """(N, 1 or C, 2): as backends see them."""
    return count, plan.shape[0] if plan.normalize == "minmax_channel" else 1, 2


def caller_shape(plan: Plan, count: int, batched: bool) -> tuple[int, ...]:
    """As callers see them: (N, 2), or (N, C, 2) for "minmax_channel"; without N for one image."""
    full = kernel_shape(plan, count)
    return (full if plan.normalize == "minmax_channel" else (full[0], 2))[0 if batched else 1 :]


def check_missing(plan: Plan) -> None:
    """Called where no bounds came.

    Raises:
        ParameterError: the plan needs them.
    """
    if is_minmax(plan):
        raise ParameterError(
            f'decrypting normalize="{plan.normalize}" needs each image\'s bounds: '
            "y, bounds = encrypt(..., return_bounds=True), then decrypt(y, plan, bounds=bounds)"
        )


def check_shape(shape: tuple[int, ...], plan: Plan, count: int, batched: bool) -> None:
    """Raise InputShapeError where bounds of this shape do not belong to the images."""
    expected = caller_shape(plan, count, batched)
    if shape != expected:
        raise InputShapeError(f"bounds must have shape {expected} for these images, got {shape}")


def check_values(bounds: Bounds, plan: Plan) -> None:
    """Raise DecryptError where the values cannot be bounds of this plan."""
    lo, hi = bounds[..., 0], bounds[..., 1]
    if bounds.size and (lo.min() < plan.lo or hi.max() > plan.hi or (lo > hi).any()):
        raise DecryptError(f"bounds must satisfy {plan.lo} <= lo <= hi <= {plan.hi}, the plan's; wrong key or damage")
    if not is_minmax(plan) and ((lo != plan.lo) | (hi != plan.hi)).any():
        raise DecryptError(f'for normalize="{plan.normalize}" every pair of bounds is ({plan.lo}, {plan.hi})')


def cannot_decrypt(flat: int, first_image: int, order: str, plan: Plan) -> DecryptError:
    """The error for the value at a flat index, in memory order over the images from `first_image` on."""
    c, h, w = plan.shape
    sizes = (c, h, w) if order == "CHW" else (h, w, c)
    image, inside = divmod(flat, c * h * w)
    place = dict(zip(order, np.unravel_index(inside, sizes), strict=True))
    return DecryptError(
        f"these values cannot come from this key and these parameters: first at image {first_image + image}, channel "
        f"{place['C']}, row {place['H']}, column {place['W']}. The key or the plan is another, or the data is damaged"
    )
