"""What the network is fed: batches brought to float32, mean 0 and deviation 1 a channel, as measured over the data.

The measure serves every kind of output alike (0..255, 0..1, raw integers up to 2**31) and needs no key, so that plain
images, images transformed on the fly and stores are treated in the same way.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batches import Batches, in_order

_CHUNK = 1024  # images


@dataclass(frozen=True)
class Measured:
    """Mean and deviation a channel of the training images, transformed, and what identifies the data.

    Attributes:
        sha256: over all transformed images and labels, train and test, in their order: equal for a store and for the
            same images transformed on the fly.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {"mean": list(self.mean), "std": list(self.std), "sha256": self.sha256}


def measure(train: Batches, test: Batches) -> Measured:
    """Read all images once. A channel that never varies keeps its scale."""
    digest, count = hashlib.sha256(), 0
    total, squares = np.zeros(1), np.zeros(1)
    for which, part in enumerate((train, test)):
        for key in in_order(len(part), _CHUNK):
            images, labels = (tensor.contiguous() for tensor in part[key])
            digest.update(f"{images.dtype} {tuple(images.shape)}\n".encode("ascii"))
            digest.update(images.view(torch.uint8).numpy().data)
            digest.update(labels.numpy().data)
            if which == 0:
                values = images.to(torch.float64).numpy()
                total = total + values.sum((0, 2, 3))
                squares = squares + np.square(values).sum((0, 2, 3))
                count += values.size // values.shape[1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std[std <= 1e-9 * np.maximum(1, np.abs(mean))] = 1.0
    return Measured(tuple(mean.tolist()), tuple(std.tolist()), digest.hexdigest())


class Standardize:
    """From a batch (N, C, H, W) of any dtype to float32 on the device, channels last."""

    def __init__(self, measured: Measured, device: torch.device) -> None:
        self._device = device
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (measured.mean, measured.std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input."""
        x = images.to(self._device, non_blocking=True).to(torch.float32)
        return x.sub(self._mean).div_(self._std).contiguous(memory_format=torch.channels_last)
