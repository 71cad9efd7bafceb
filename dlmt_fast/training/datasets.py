"""Data sets from a local folder: plain images, or the stores that `dlmt encrypt` made of them. Nothing is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ParameterError, StoreError, UsageError
from ..stores.location import is_remote, located
from ..stores.manifest import NAME, Manifest, read_manifest
from . import read_cifar, read_folder, read_idx
from .arrays import Arrays


@dataclass(frozen=True)
class Known:
    """A data set by name: the shape (C, H, W) and number of classes, where fixed; torchvision's folder; its network."""

    shape: tuple[int, int, int] | None
    classes: int | None
    inner: str
    network: str
    expected: str


_IDX = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k, each plain or .gz"
_CLASSES = "train/CLASS/*.png and test/CLASS/*.png (or other lossless or JPEG images)"
DATASETS: dict[str, Known] = {
    "mnist": Known((1, 28, 28), 10, "MNIST/raw", "fiveconv", _IDX),
    "fashion-mnist": Known((1, 28, 28), 10, "FashionMNIST/raw", "fiveconv", _IDX),
    "cifar10": Known((3, 32, 32), 10, "cifar-10-batches-py", "resnet18", "data_batch_1 to data_batch_5 and test_batch"),
    "folder": Known(None, None, "", "resnet18", _CLASSES),
}


class Split(Dataset[tuple[Tensor, int]]):
    """Images and labels in memory; a map-style data set of (image, label).

    Attributes:
        images: (N, C, H, W): uint8 where they are plain, the store's dtype else (uint16 as int32, which torch can
            calculate with).
        labels: int64 (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    Attributes:
        name: one of `DATASETS`.
        train, test: the images, in the order of the files (IDX, CIFAR-10), or by class and file name (folders).
        classes: how many.
        transformed: whether the images come from stores of `dlmt encrypt`.
    """

    name: str
    train: Split
    test: Split
    classes: int
    transformed: bool


def load_data(folder: Path | str, dataset: str) -> Data:
    """Read a data set, whole, into memory.

    Args:
        folder: torchvision's root or the folder with the files themselves; or a store of `dlmt encrypt`: one of IDX
            files, or two folder stores `train` and `test` in `folder`. Stores are checked against their manifests.
        dataset: "mnist", "fashion-mnist", "cifar10" or "folder" (a folder a class, all images of one size).

    Raises:
        ParameterError: there is no data set of that name.
        UsageError: what is there does not fit the name.
        StoreError: files are missing, damaged or unfinished.
    """
    if dataset not in DATASETS:
        raise ParameterError(f"there is no data set {dataset!r}; expected one of {', '.join(DATASETS)}")
    root = located(folder)
    if is_remote(root):
        raise UsageError(f"{root} is remote, and training reads folders of this machine; copy the data here first")
    if not root.is_dir():
        raise StoreError(
            f"{root} {'is a file' if root.exists() else 'does not exist'}; --data takes a folder with {_words(dataset)}"
        )
    stored = _stored(root)
    train, test = stored if stored is not None else _plain(root, dataset)
    return _checked(dataset, train, test, stored is not None)


def _stored(root: Path) -> tuple[Arrays, Arrays] | None:
    """The splits of a store at `root` or of two below it; None where there is none."""
    if (root / NAME).exists():
        manifest = read_manifest(root)
        if manifest.kind != "idx":
            raise UsageError(
                f"{root} is one store of images, and training needs two: encrypt the training and the test images, "
                f"with one key, into {root}/train and {root}/test, and pass --data {root}"
            )
        return read_idx.read_store(root, manifest)
    found = {name: (root / name / NAME).exists() for name in ("train", "test")}
    for part in (root, *(root / name for name in found)):
        if part.is_dir() and any(entry.name.endswith(".dlmt-job") for entry in part.iterdir()):
            raise StoreError(f"{part} is a store that a job is writing or left unfinished; encrypt it again")
    if not any(found.values()):
        return None
    if not all(found.values()):
        one, other = sorted(found, key=lambda name: not found[name])
        raise UsageError(f"{root / one} is a finished store and {root / other} is none; both must be, under one key")
    train, test = read_manifest(root / "train"), read_manifest(root / "test")
    _same_kind(root, train, test)
    return read_folder.read_store(root / "train", train), read_folder.read_store(root / "test", test)


def _same_kind(root: Path, train: Manifest, test: Manifest) -> None:
    if {train.kind, test.kind} != {"folder"}:
        raise UsageError(f"{root}/train and {root}/test must be folder stores; IDX files are one store with all four")
    if (train.dtype, train.shape) != (test.dtype, test.shape) or train.shape is None:
        raise UsageError(
            f"the stores in {root} must hold images of one size and dtype: train has {train.shape} {train.dtype}, test "
            f"{test.shape} {test.dtype}; encrypt both with the same options and --size HxW"
        )


def _plain(root: Path, dataset: str) -> tuple[Arrays, Arrays]:
    known = DATASETS[dataset]
    if dataset == "folder":
        for name in ("train", "test"):
            if not (root / name).is_dir():
                raise StoreError(f"{root} has no folder {name!r}; expected {_words(dataset)}")
        return read_folder.read_plain(root / "train"), read_folder.read_plain(root / "test")
    folder = root / known.inner if (root / known.inner).is_dir() else root
    cifar = dataset == "cifar10"
    missing = read_cifar.missing_files(folder) if cifar else read_idx.missing_files(folder)
    if missing:
        others = [name for name, other in DATASETS.items() if other.inner and (root / other.inner).is_dir()]
        hint = f"; {root} holds {others[0]}: --dataset {others[0]}" if others and dataset not in others else ""
        raise StoreError(f"{folder} lacks {', '.join(missing)}{hint}; expected {_words(dataset)}")
    return read_cifar.read_plain(folder) if cifar else read_idx.read_plain(folder)


def _words(dataset: str) -> str:
    known = DATASETS[dataset]
    below = f", in it or in {known.inner}/" if known.inner else ""
    return f"{known.expected}{below}"


def _checked(dataset: str, train: Arrays, test: Arrays, transformed: bool) -> Data:
    known = DATASETS[dataset]
    if train.names != test.names:
        raise UsageError(
            f"training and test images must have the same classes; train has {_short(train.names)}, test "
            f"{_short(test.names)}"
        )
    shapes = {part.images.shape[1:] for part in (train, test)}
    if len(shapes) > 1:
        raise UsageError(f"training and test images must have one size, got {' and '.join(map(str, sorted(shapes)))}")
    shape = shapes.pop()
    if known.shape is not None and shape != known.shape:
        fits = [name for name, other in DATASETS.items() if other.shape in (None, shape)]
        raise UsageError(
            f"{dataset} has images of {known.shape}, these are {shape}; --dataset {' or '.join(fits)} may fit"
        )
    classes = known.classes or len(train.names)
    if not classes:
        raise UsageError("a store of IDX files has no folder a class; --dataset mnist or fashion-mnist reads it")
    for part, name in ((train, "training"), (test, "test")):
        if not len(part.labels):
            raise StoreError(f"there are no {name} images")
        if int(part.labels.max()) >= classes:
            raise UsageError(
                f"{dataset} has {classes} classes, and the {name} labels go up to {int(part.labels.max())}"
            )
    return Data(dataset, _split(train), _split(test), classes, transformed)


def _split(part: Arrays) -> Split:
    return Split(torch.from_numpy(part.images), torch.from_numpy(part.labels))


def _short(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
