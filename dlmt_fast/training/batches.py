"""Which images make a batch, what augmentation does to them, and their transform: all decided by the seed.

Every random number comes from Philox, keyed by (seed, epoch, purpose), and belongs to an image by its place in the data
set. So the batches are the same for any number of workers, from any step on, on any machine and NumPy version.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .datasets import Split

Transform = Callable[[Tensor], Tensor]
Key = tuple[int, NDArray[np.int64]]  # (epoch, places in the split)
Batch = tuple[Tensor, Tensor]

_PURPOSES = ("order", "augment", "subset")
_PAD = 4
_DRAWS = 3  # random numbers an image: top, left, flip


def draws(seed: int, epoch: int, purpose: str, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit numbers."""
    source = np.random.Philox(np.random.SeedSequence([seed, epoch, _PURPOSES.index(purpose)]))
    return np.asarray(source.random_raw(count))


def permutation(seed: int, epoch: int, purpose: str, count: int) -> NDArray[np.int64]:
    """The places 0 to count - 1 in random order."""
    return np.argsort(draws(seed, epoch, purpose, count), kind="stable")


def choose(split: Split, seed: int, most: int | None) -> Split:
    """At most `most` images of a split, chosen by the seed, in the split's order."""
    if most is None or most >= len(split):
        return split
    places = torch.from_numpy(np.sort(permutation(seed, 0, "subset", len(split))[:most]))
    return Split(split.images[places], split.labels[places])


def augmented(images: NDArray[np.uint8], random: NDArray[np.uint64], flip: bool) -> NDArray[np.uint8]:
    """Each image padded by 4 black pixels and cropped back at a random place; with `flip`, every other one mirrored.

    Args:
        images: (N, C, H, W). random: (N, 3).
    """
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    top, left = (random[:, i] % np.uint64(2 * _PAD + 1) for i in (0, 1))
    cropped = windows[np.arange(len(images)), :, top.astype(np.intp), left.astype(np.intp)]
    if flip:
        mirrored = (random[:, 2] & np.uint64(1)).astype(bool)
        cropped[mirrored] = cropped[mirrored][..., ::-1]
    return np.ascontiguousarray(cropped)


class Batches(Dataset[Batch]):
    """A split by whole batches: `batches[epoch, places]` is (images, labels), augmented, then transformed.

    Args:
        split: the images.
        transform: what `transforms.Encrypt` does, or None for images that are to stay as they are.
        augment: "none", "crop" or "crop-flip".
        seed: of the augmentation.
    """

    def __init__(self, split: Split, transform: Transform | None, augment: str = "none", seed: int = 0) -> None:
        self._images, self._labels, self._transform = split.images, split.labels, transform
        self._augment, self._seed = augment, seed
        self._drawn: tuple[int, NDArray[np.uint64]] | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        chosen = torch.from_numpy(places)
        images = self._images[chosen]
        if self._augment != "none":
            random = self._random(epoch)[places]
            images = torch.from_numpy(augmented(images.numpy(), random, self._augment == "crop-flip"))
        if self._transform is not None:
            images = self._transform(images)
        if images.dtype == torch.uint16:  # which torch stores, and hardly calculates with
            images = images.to(torch.int32)
        return images, self._labels[chosen]

    def _random(self, epoch: int) -> NDArray[np.uint64]:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, draws(self._seed, epoch, "augment", _DRAWS * len(self)).reshape(-1, _DRAWS)
        return self._drawn[1]


class TrainKeys(Sampler[Key]):
    """The keys of one epoch's batches, shuffled by the seed; images that fill no batch are left out.

    Attributes:
        epoch, first: which epoch, and from which batch on; set before each pass.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self._count // self._batch_size - self.first

    def __iter__(self) -> Iterator[Key]:
        order = permutation(self._seed, self.epoch, "order", self._count)
        for batch in range(self.first, self._count // self._batch_size):
            yield self.epoch, order[batch * self._batch_size : (batch + 1) * self._batch_size]


def in_order(count: int, batch_size: int) -> list[Key]:
    """The keys of all images in their order."""
    return [(0, np.arange(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


def loader(batches: Batches, keys: Any, workers: int, pin: bool) -> DataLoader[Batch]:
    """The batches of `keys`, prepared in `workers` processes."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # else each pass would take a number from torch's own
    )


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the run ends after its step, for which workers must live on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
