"""Unnamed samples, numbered through one array after the other."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .contract import ShardSpec

_SAMPLE = re.compile(r"(.+?)(\.npy|([-_.]idx3[-_.]ubyte)?(\.gz)?)#(\d+)")


def sample_name(path: str) -> str | None:
    """What a sample of an array is called where it becomes a file: `train-images-000012` of `train-images.npy#12`; None
    for paths of files, which end as images do."""
    found = _SAMPLE.fullmatch(path)
    return None if found is None else f"{found[1]}-{int(found[5]):06d}"


class Runs:
    """Where each array's samples lie among those of all: an array is a shard.

    Args:
        names: of the arrays.
        counts: how many samples each has.
    """

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self._names = list(names)
        self._starts = np.cumsum([0, *counts]).tolist()

    def shards(self, suffix: str = "") -> list[ShardSpec]:
        """A shard for each array, named as it is with `suffix`."""
        bounds = zip(self._starts, self._starts[1:], strict=False)
        return [
            ShardSpec(i, name + suffix, range(*ends))
            for i, (name, ends) in enumerate(zip(self._names, bounds, strict=True))
        ]

    def find(self, index: int) -> tuple[int, int]:
        """(the array that holds a sample, the index of that array's first sample)."""
        array = int(np.searchsorted(self._starts, index, side="right")) - 1
        return array, self._starts[array]

    def path_of(self, index: int) -> str:
        """What a sample is called: its array, and its place there."""
        array, first = self.find(index)
        return f"{self._names[array]}#{index - first}"


def labels_beside(images: str, suffix: str = "") -> str:
    """What the labels of an array are called: `train-images` and `train-labels`, `x_train` and `y_train`, and `a` and
    `a-labels`, before the `suffix`."""
    if "images" in images:
        return "labels".join(images.rsplit("images", 1))
    if images.startswith(("x_", "X_")):
        return f"y_{images[2:]}"
    return f"{images.removesuffix(suffix)}-labels{suffix}"
