"""Decoders of this package beside Pillow: the same pixels where they take a file, else Pillow's word."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest

from dlmt_fast.errors import ImageError
from dlmt_fast.stores import decode as decoding
from dlmt_fast.stores.decode import decode_bytes


def picture(width: int, height: int, mode: str, seed: int = 0) -> PIL.Image.Image:
    """Smooth colours with some noise, as photographs have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    bands = [128 + 90 * np.sin(x / rng.uniform(2, 30) + y / rng.uniform(2, 30) + band) for band in range(3)]
    noisy = np.stack(bands, -1) + rng.normal(0, rng.uniform(0, 40), (height, width, 3))
    return PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def outcome(data: bytes, channels: int | None = None) -> tuple[np.ndarray[Any, Any] | None, str]:
    """The pixels, or why there are none."""
    try:
        return decode_bytes(data, channels), ""
    except ImageError as error:
        return None, str(error)


def agree(decoder: str, data: bytes, channels: int | None = None) -> bool:
    """Whether it is an image; without this decoder Pillow must say the same, to the last bit or word."""
    pixels, reason = outcome(data, channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, decoder, lambda *arguments: None)
        expected, words = outcome(data, channels)
    assert reason == words
    assert (pixels is None) == (expected is None)
    if pixels is not None and expected is not None:
        assert np.array_equal(pixels, expected)
    return pixels is not None
