"""What is timed: sets of images and outputs, as data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..keys import Key
from ..schemes import DLMT, Plan

SCHEME = DLMT("mat_mmt", max_v_add=256, max_v_mul=10)


@dataclass(frozen=True)
class Workload:
    """A batch of images (N, C, H, W)."""

    name: str
    shape: tuple[int, int, int, int]

    @property
    def pixels(self) -> int:
        """Values in all images."""
        n, c, h, w = self.shape
        return n * c * h * w

    def images(self) -> NDArray[np.uint8]:
        """Random uint8 images, the same in every run."""
        return np.random.default_rng(0).integers(0, 256, self.shape, dtype=np.uint8)


@dataclass(frozen=True)
class Operation:
    """A normalisation and an output dtype. `code` is R for "range" and M for "minmax"."""

    code: str
    normalize: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.code} u8->{'u8' if self.dtype == 'uint8' else 'f32'}"

    @property
    def bytes_per_pixel(self) -> int:
        """Read and written, the key not counted."""
        return 1 + np.dtype(self.dtype).itemsize

    def plan(self, workload: Workload) -> Plan:
        """The plan of a fixed key: a benchmark's data is no secret."""
        return SCHEME.plan(Key(bytes(range(32))), workload.shape[1:], self.normalize, self.dtype)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("cifar-batch", (256, 3, 32, 32)),
        Workload("cifar-set", (50000, 3, 32, 32)),
        Workload("imagenet", (64, 3, 224, 224)),
        Workload("4096", (1, 3, 4096, 4096)),
        Workload("mnist-set", (60000, 1, 28, 28)),
    )
}
#: Smaller ones for `dlmt bench --quick`.
QUICK = {
    w.name: w
    for w in (
        Workload("cifar-batch", (256, 3, 32, 32)),
        Workload("cifar-8192", (8192, 3, 32, 32)),
        Workload("imagenet", (64, 3, 224, 224)),
    )
}
OPERATIONS = {
    o.name: o
    for o in (
        Operation("R", "range", "uint8"),
        Operation("R", "range", "float32"),
        Operation("M", "minmax", "uint8"),
    )
}
