"""Images in a form that a transform does not take, and would leave as they are. Used by the transforms, which raise."""

from __future__ import annotations

from typing import Any

import numpy as np

_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")  # JPEG, PNG, GIF, TIFF


def is_array_of_images(value: Any) -> bool:
    """Whether `value` is a NumPy array that could be an image or several, channels first or last."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim in (3, 4)
        and not {value.shape[-1], value.shape[-3]}.isdisjoint({1, 3})
    )


def is_image_file(value: Any) -> bool:
    """Whether `value` is the content of an image file."""
    if not isinstance(value, (bytes, bytearray)):
        return False
    return value.startswith(_STARTS) or (value[:4] == b"RIFF" and value[8:12] == b"WEBP")
