"""Which axis of an array of images is which, told from its shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import StoreError
from .contract import Array, Shape


def layout_of(shape: tuple[int, ...], path: Path) -> str:
    """NHW, NHWC or NCHW: where the axis of 1 or 3 channels is.

    Raises:
        StoreError: none or both of the axes could be it.
    """
    if len(shape) == 3 and min(shape[1:]) >= 1:
        return "NHW"
    if len(shape) == 4 and min(shape[1:]) >= 1 and (shape[1] in (1, 3)) != (shape[3] in (1, 3)):
        return "NCHW" if shape[1] in (1, 3) else "NHWC"
    which = "either axis 1 or axis 3 could be the channels" if len(shape) == 4 and shape[1] in (1, 3) else "no fit"
    raise StoreError(
        f"{path} has shape {shape} ({which}); images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels"
    )


def channels_first(values: Array, shape: tuple[int, ...], path: Path) -> Array:
    """Some images of an array of this `shape`, as (n, C, H, W).

    Raises:
        StoreError: as `layout_of`.
    """
    layout = layout_of(shape, path)
    if layout == "NHWC":
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    return values[:, None] if layout == "NHW" else values


def image_shape(shape: tuple[int, ...], path: Path) -> Shape:
    """(C, H, W) of an array's images.

    Raises:
        StoreError: as `layout_of`.
    """
    layout = layout_of(shape, path)
    if layout == "NHW":
        return 1, shape[1], shape[2]
    return (shape[3], shape[1], shape[2]) if layout == "NHWC" else (shape[1], shape[2], shape[3])
