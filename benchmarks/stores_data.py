"""The images that `stores.py` encrypts: crops of scikit-image's colour photographs, each other than the rest."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import skimage.data

PHOTOGRAPHS = ("coffee.png", "astronaut.png", "motorcycle_left.png", "rocket.jpg", "chelsea.png", "retina.jpg")
#: As cameras and tools write them: JPEG of quality 90 with halved chroma, PNG with Pillow's defaults.
SAVED = {"jpeg": ("JPEG", {"quality": 90}), "png": ("PNG", {})}


def make_folder(root: Path, form: str, side: int, count: int, classes: int = 4) -> Path:
    """`count` files of side x side pixels in `classes` folders; each crop is of another place and zoom."""
    name, options = SAVED[form]
    for place in range(classes):
        (root / f"class{place}").mkdir(parents=True)
    for place, image in enumerate(crops(side, count)):
        image.save(root / f"class{place % classes}" / f"{place:05d}.{form}", name, **options)
    return root


def crops(side: int, count: int, seed: int = 0) -> Iterator[PIL.Image.Image]:
    """Squares of some 45 to 100 % of a photograph's height, scaled to side x side, some of them mirrored.

    At 1024 pixels most are enlarged, so that they hold less detail than a camera's file of that size would: decoders
    are a little faster on them.
    """
    folder = Path(skimage.data.__file__).parent
    photographs = [PIL.Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    rng = np.random.default_rng(seed)
    for place in range(count):
        photograph = photographs[place % len(photographs)]
        edge = int(min(photograph.size) * rng.uniform(0.45, 1))
        x, y = (int(rng.integers(0, length - edge + 1)) for length in photograph.size)
        image = photograph.resize((side, side), PIL.Image.Resampling.BICUBIC, (x, y, x + edge, y + edge))
        yield image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def encoded(image: PIL.Image.Image, form: str) -> bytes:
    """The file of one image."""
    name, options = SAVED[form]
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()
