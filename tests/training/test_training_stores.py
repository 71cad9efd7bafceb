"""A store and its source, transformed on the fly, give the same batches bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlmt_fast as dlmt
from dlmt_fast.errors import StoreDamagedError, StoreError, UsageError
from dlmt_fast.training import Data, TrainOptions, load_data, train
from dlmt_fast.training.batches import Batches, TrainKeys
from dlmt_fast.training.inputs import measure
from dlmt_fast.training.setup import make_transform

SCHEME = dlmt.DLMT("mat_mmt")
IDX_OUTPUTS = [("range", None), ("range", "float32"), ("none", None), ("minmax", "uint8")]
FOLDER_OUTPUTS = [*IDX_OUTPUTS, ("none", "narrowest"), ("minmax_channel", "float16")]
Stored = Callable[..., Path]


def all_batches(data: Data, options: TrainOptions, key: dlmt.Key | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What two epochs of training and one test pass see."""
    transform = make_transform(data, options, key, None if key is None else SCHEME)
    part = Batches(data.train, transform, options.augment, options.seed)
    keys = TrainKeys(len(part), 16, options.seed)
    found = []
    for keys.epoch in (0, 1):
        found += [part[key] for key in keys]
    test = Batches(data.test, transform)
    return [*found, test[0, np.arange(len(test))]]


def assert_equal_batches(plain: Data, stored: Data, key: dlmt.Key, **options: Any) -> None:
    assert stored.transformed
    assert not plain.transformed
    on_the_fly = all_batches(plain, TrainOptions(seed=5, **options), key)
    from_store = all_batches(stored, TrainOptions(seed=5), None)
    assert len(on_the_fly) == len(from_store) > 4
    for (images, labels), (stored_images, stored_labels) in zip(on_the_fly, from_store, strict=True):
        assert torch.equal(labels, stored_labels)
        assert images.dtype == stored_images.dtype
        assert torch.equal(images, stored_images)


@pytest.mark.parametrize(("normalize", "dtype"), IDX_OUTPUTS)
def test_idx(idx: Path, stored: Stored, key: dlmt.Key, normalize: str, dtype: str | None) -> None:
    store = stored(idx, normalize=normalize, dtype=dtype)
    plain, encrypted = load_data(idx, "mnist"), load_data(store, "mnist")
    assert_equal_batches(plain, encrypted, key, normalize=normalize, dtype=dtype)


@pytest.mark.parametrize(("normalize", "dtype"), FOLDER_OUTPUTS)
@pytest.mark.parametrize("classes", ["keep", "index"])
def test_folders_that_keep_their_names(
    folders: Path, stored: Stored, key: dlmt.Key, normalize: str, dtype: str | None, classes: str
) -> None:
    store = stored(folders, normalize=normalize, dtype=dtype, names="keep", classes=classes)
    plain, encrypted = load_data(folders, "folder"), load_data(store, "folder")
    assert_equal_batches(plain, encrypted, key, normalize=normalize, dtype=dtype)


def test_hashed_names_give_the_same_images_in_another_order(folders: Path, stored: Stored, key: dlmt.Key) -> None:
    options = TrainOptions()
    plain, encrypted = load_data(folders, "folder"), load_data(stored(folders), "folder")
    (ours, our_labels), (theirs, their_labels) = (
        all_batches(plain, options, key)[-1],
        all_batches(encrypted, options, None)[-1],
    )
    assert torch.equal(our_labels, their_labels)  # ordered by class
    assert not torch.equal(ours, theirs)
    assert sorted(image.numpy().tobytes() for image in ours) == sorted(image.numpy().tobytes() for image in theirs)


def test_whole_runs_give_the_same_numbers(idx: Path, stored: Stored, key: dlmt.Key, tmp_path: Path) -> None:
    options = TrainOptions(epochs=2, batch_size=32, subset=150, seed=3)
    ours = train(load_data(idx, "mnist"), tmp_path / "a", options, key, SCHEME)
    theirs = train(load_data(stored(idx), "mnist"), tmp_path / "b", options)
    assert ours["settings"]["data_sha256"] == theirs["settings"]["data_sha256"]
    assert ours["data"] == theirs["data"]
    assert [without_times(row) for row in ours["epochs"]] == [without_times(row) for row in theirs["epochs"]]
    assert theirs["settings"]["transform"] == "store"


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}


def test_another_key_gives_other_batches(idx: Path, stored: Stored) -> None:
    plain, encrypted = load_data(idx, "mnist"), load_data(stored(idx), "mnist")
    other = make_transform(plain, TrainOptions(), dlmt.Key(bytes(32)), SCHEME)
    digests = [measure(Batches(d.train, t), Batches(d.test, t)).sha256 for d, t in ((plain, other), (encrypted, None))]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"augment": "crop"}, "before the transform"),
        ({"check": 0.5}, "transformed already"),
        ({"normalize": "minmax"}, "transformed already"),
        ({"dtype": "float32"}, "transformed already"),
    ],
)
def test_what_a_store_cannot_serve_is_refused(
    idx: Path, stored: Stored, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    data = load_data(stored(idx), "mnist")
    with pytest.raises(UsageError, match=word):
        train(data, tmp_path / "run", TrainOptions(epochs=1, **options))
    assert not (tmp_path / "run").exists()


def test_a_key_for_a_store_is_refused(idx: Path, stored: Stored, key: dlmt.Key, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="transformed already"):
        train(load_data(stored(idx), "mnist"), tmp_path / "run", TrainOptions(epochs=1), key, SCHEME)


# --- stores that are not whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_altered_idx_store_is_refused(idx: Path, stored: Stored, name: str) -> None:
    store = stored(idx)
    data = bytearray((store / name).read_bytes())
    data[-1] ^= 1
    (store / name).write_bytes(bytes(data))
    with pytest.raises(StoreDamagedError, match=name):
        load_data(store, "mnist")


def test_an_altered_image_of_a_folder_store_is_refused(folders: Path, stored: Stored) -> None:
    store = stored(folders)
    image = next((store / "test").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreDamagedError, match=image.name):
        load_data(store, "folder")


def test_an_unfinished_store_is_not_taken_for_plain_images(idx: Path, stored: Stored) -> None:
    store = stored(idx)
    (store / "dlmt-store.json").rename(store / ".dlmt-job")
    with pytest.raises(StoreError, match="unfinished"):
        load_data(store, "mnist")


def test_float_values_without_a_manifest_are_refused(idx: Path, stored: Stored) -> None:
    store = stored(idx, dtype="float32")
    (store / "dlmt-store.json").unlink()
    with pytest.raises(StoreError, match="without a manifest"):
        load_data(store, "mnist")


def test_one_store_of_two_is_refused(folders: Path, stored: Stored) -> None:
    store = stored(folders)
    with pytest.raises(UsageError, match="needs two"):
        load_data(store / "train", "folder")
    (store / "test" / "dlmt-store.json").unlink()
    with pytest.raises(UsageError, match="both must be"):
        load_data(store, "folder")


def test_stores_of_two_kinds_of_values_are_refused(folders: Path, stored: Stored) -> None:
    one, other = stored(folders), stored(folders, dtype="float32")
    (one / "test").rename(one / "old")
    (other / "test").rename(one / "test")
    with pytest.raises(UsageError, match=r"float32.*same options"):
        load_data(one, "folder")


def test_an_idx_store_has_no_folders(idx: Path, stored: Stored) -> None:
    with pytest.raises(UsageError, match="--dataset mnist"):
        load_data(stored(idx), "folder")
