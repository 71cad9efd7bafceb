"""Data sets from local folders: the layouts that are read, and what is said where one is not what it should be."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from torch.utils.data import DataLoader

from dlmt_fast.errors import DlmtError, ImageError, ParameterError, StoreDamagedError, StoreError, UsageError
from dlmt_fast.training import Data, load_data

FASHION = Path("/usr/share/datasets/fashion-mnist")


def same(a: Data, b: Data) -> bool:
    pairs = ((a.train, b.train), (a.test, b.test))
    return all(torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in pairs)


def test_idx_as_torchvision_reads_it(idx: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "FashionMNIST").mkdir(parents=True)
    shutil.copytree(idx, root / "FashionMNIST" / "raw")
    data = load_data(root, "fashion-mnist")
    assert (data.classes, data.transformed, len(data.train), len(data.test)) == (10, False, 200, 100)
    for train, ours in ((True, data.train), (False, data.test)):
        theirs = torchvision.datasets.FashionMNIST(str(root), train=train)
        assert torch.equal(ours.images[:, 0], theirs.data)
        assert torch.equal(ours.labels, theirs.targets)


def test_idx_in_the_folder_itself_and_packed(idx: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in idx.iterdir():
        (packed / f"{file.name.replace('-idx', '.idx')}.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert same(load_data(idx, "mnist"), load_data(packed, "mnist"))


def test_an_unpacked_file_goes_before_a_packed_one(idx: Path) -> None:
    (idx / "train-images-idx3-ubyte.gz").write_bytes(b"what a download left")
    assert len(load_data(idx, "mnist").train) == 200


def test_cifar10_as_torchvision_reads_it(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    cifar.rename(root / "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    data = load_data(root, "cifar10")
    for train, ours in ((True, data.train), (False, data.test)):
        theirs = torchvision.datasets.CIFAR10(str(root), train=train)
        assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert ours.labels.tolist() == theirs.targets
    assert same(data, load_data(root / "cifar-10-batches-py", "cifar10"))


def test_folders_by_class_and_name(folders: Path) -> None:
    data = load_data(folders, "folder")
    assert data.train.images.shape == (60, 3, 8, 10)
    assert data.train.labels.tolist() == sorted(data.train.labels.tolist())
    assert data.classes == 10
    first = np.asarray(PIL.Image.open(folders / "train" / "class 1" / "0.webp")).transpose(2, 0, 1)
    place = data.train.labels.tolist().index(1)
    assert np.array_equal(data.train.images[place].numpy(), first)


def test_a_split_is_a_data_set(idx: Path) -> None:
    images, labels = next(iter(DataLoader(load_data(idx, "mnist").train, batch_size=7)))
    assert images.shape == (7, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    data = load_data(FASHION, "fashion-mnist")
    assert data.train.images.shape == (60000, 1, 28, 28)
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10


# --- what is wrong is said -------------------------------------------------------------------------------------------


def test_unknown_names_and_folders(idx: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="expected one of mnist, fashion-mnist, cifar10, folder"):
        load_data(idx, "fasion")
    with pytest.raises(StoreError, match="does not exist; --data takes a folder with train-images"):
        load_data(tmp_path / "nowhere", "mnist")
    with pytest.raises(StoreError, match="is a file"):
        load_data(idx / "train-images-idx3-ubyte", "mnist")


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("mnist", "lacks train-images-idx3-ubyte, "), ("cifar10", "lacks data_batch_1, "), ("folder", "folder 'train'")],
)
def test_an_empty_folder(dataset: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=words):
        load_data(tmp_path, dataset)


def test_one_missing_file(idx: Path) -> None:
    (idx / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(StoreError, match="lacks t10k-labels-idx1-ubyte; expected train-images"):
        load_data(idx, "mnist")


def test_the_name_of_another_data_set(idx: Path, cifar: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(idx, root / "FashionMNIST" / "raw")
    with pytest.raises(StoreError, match="holds fashion-mnist: --dataset fashion-mnist"):
        load_data(root, "mnist")
    with pytest.raises(StoreError, match="lacks"):
        load_data(cifar, "mnist")


def test_images_of_another_size(split: Callable[..., Any], folders: Path, cifar: Path, tmp_path: Path) -> None:
    small = folders / "train" / "class 0" / "small.png"
    PIL.Image.new("RGB", (5, 5)).save(small)
    with pytest.raises(UsageError, match=r"small\.png.*--size HxW"):
        load_data(folders, "folder")
    small.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"small\.png"):
        load_data(folders, "folder")
    small.unlink()
    for image in (folders / "test").rglob("*.*"):
        PIL.Image.new("RGB", (6, 6)).save(image)
    with pytest.raises(UsageError, match="must have one size"):
        load_data(folders, "folder")


def test_a_shape_that_the_name_does_not_have(tmp_path: Path) -> None:
    from struct import pack

    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(pack(">BBBB3I", 0, 0, 8, 3, 2, 32, 32) + bytes(2048))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(pack(">BBBBI", 0, 0, 8, 1, 2) + bytes(2))
    with pytest.raises(UsageError, match=r"mnist has images of \(1, 28, 28\), these are \(1, 32, 32\)"):
        load_data(tmp_path, "mnist")


def test_labels_that_do_not_fit(idx: Path) -> None:
    labels = idx / "train-labels-idx1-ubyte"
    good = labels.read_bytes()
    labels.write_bytes(good[:-1] + b"\x0a")
    with pytest.raises(UsageError, match="training labels go up to 10"):
        load_data(idx, "mnist")
    labels.write_bytes(good[:4] + b"\0\0\0\x64" + good[8:108])
    with pytest.raises(StoreDamagedError, match=r"200 images and .* 100 labels"):
        load_data(idx, "mnist")


def test_classes_that_differ(folders: Path) -> None:
    shutil.rmtree(folders / "test" / "class 9")
    with pytest.raises(UsageError, match="must have the same classes"):
        load_data(folders, "folder")


def test_an_image_outside_the_classes(folders: Path) -> None:
    PIL.Image.new("RGB", (10, 8)).save(folders / "train" / "loose.png")
    with pytest.raises(UsageError, match=r"loose\.png lies in no class's folder"):
        load_data(folders, "folder")


# --- CIFAR-10's pickles ----------------------------------------------------------------------------------------------


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def test_a_pickle_that_calls_something_is_refused(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (cifar / "data_batch_2").write_bytes(pickle.dumps({"data": Harm(), "labels": [0]}, protocol=2))
    with pytest.raises(StoreDamagedError, match=r"data_batch_2.*mkdir"):
        load_data(cifar, "cifar10")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, protocol=2),
    ],
    ids=["empty", "text", "list", "float", "short", "labels", "label"],
)
def test_a_file_that_is_not_cifar10(cifar: Path, content: bytes) -> None:
    (cifar / "test_batch").write_bytes(content)
    with pytest.raises(DlmtError, match="test_batch"):
        load_data(cifar, "cifar10")
