"""Small synthetic data sets for the tests of training: a bright square whose place tells the class, under noise."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, encrypt_store
from dlmt_fast.training import Split

CLASSES = 10
SCHEME = dlmt.DLMT("mat_mmt")
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def squares(count: int, shape: tuple[int, int, int], seed: int) -> tuple[Images, Labels]:
    """(N, C, H, W) images and their labels; the classes take turns."""
    channels, height, width = shape
    random = np.random.default_rng(seed)
    images = random.integers(0, 120, (count, *shape), np.uint8)
    labels = np.arange(count) % CLASSES
    side = width // 5
    for image, label in zip(images, labels, strict=True):
        top, left = (height // 2) * (label // 5), side * (label % 5)
        image[:, top : top + height // 2, left : left + side] += np.uint8(100)
    assert images.shape[1] == channels
    return images, labels.astype(np.int64)


def write_idx(folder: Path, train: int = 200, test: int = 100, shape: tuple[int, int] = (28, 28)) -> Path:
    """MNIST's four files, unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", train, 1), ("t10k", test, 2)):
        images, labels = squares(count, (1, *shape), seed)
        head = struct.pack(">BBBB3I", 0, 0, 8, 3, count, *shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">BBBBI", 0, 0, 8, 1, count)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())
    return folder


def write_folders(root: Path, train: int = 60, test: int = 40, shape: tuple[int, int, int] = (3, 8, 10)) -> Path:
    """`train` and `test`, a folder a class, some images one level deeper, PNG and lossless WebP."""
    for part, count, seed in (("train", train, 3), ("test", test, 4)):
        images, labels = squares(count, shape, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / part / f"class {label}" / ("deep" if i % 3 == 0 else "")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = image[0] if shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
            # "1.q.png" goes before "1.webp" and after "1.png", as which it is stored: names without suffix decide
            name = folder / f"{i // 20}{'.q' if i // 10 % 2 else ''}"
            if i // 10 % 2:
                PIL.Image.fromarray(pixels).save(f"{name}.png")
            else:
                PIL.Image.fromarray(pixels).save(f"{name}.webp", lossless=True)
    return root


def write_cifar(folder: Path, each: int = 20) -> Path:
    """CIFAR-10's files as the originals are: pickles of protocol 2."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate((*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")):
        images, labels = squares(each, (3, 32, 32), seed)
        content = {"batch_label": name, "labels": labels.tolist(), "data": images.reshape(each, -1)}
        content["filenames"] = [f"{i}.png" for i in range(each)]
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums, and so the last bits, depend on how many threads share them; and one never waits for another."""
    torch.set_num_threads(1)


@pytest.fixture
def key() -> dlmt.Key:
    return dlmt.Key(bytes(range(32)))


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """A folder of MNIST's four files: 200 and 100 images."""
    return write_idx(tmp_path / "plain-idx")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """train/CLASS and test/CLASS: 60 and 40 images of 3x8x10."""
    return write_folders(tmp_path / "plain-folders")


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """CIFAR-10's six files, 20 images each."""
    return write_cifar(tmp_path / "plain-cifar")


@pytest.fixture
def split() -> Callable[..., Split]:
    """Makes synthetic splits: (count, shape, seed)."""

    def make(count: int, shape: tuple[int, int, int], seed: int = 0) -> Split:
        images, labels = squares(count, shape, seed)
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    return make


@pytest.fixture
def stored(tmp_path: Path, key: dlmt.Key) -> Callable[..., Path]:
    """Encrypts a data set into a new store, the two parts of folders one after the other."""

    def owner(store_id: str) -> Path:
        return tmp_path / "owner" / store_id

    def encrypt(source: Path, **options: Any) -> Path:
        target = tmp_path / f"store-{len(list(tmp_path.glob('store-*')))}"
        parts = [""] if (source / "train-images-idx3-ubyte").exists() else ["train", "test"]
        for part in parts:
            encrypt_store(source / part, target / part, key, SCHEME, owner, JobOptions(**options))
        return target

    return encrypt
