"""Arrays that become files: IDX, .npy, CIFAR and Zarr to folders and tars, cut into shards, and back."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import ParameterError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.stores.cifar import CifarSource
from dlmt_fast.stores.contract import Batch
from dlmt_fast.stores.runs import sample_name

KEY, SCHEME = dlmt.Key(bytes(range(32))), dlmt.DLMT("mat_mmt")
COUNTS = {"train": 23, "test": 9}
KINDS = ("idx", "npy", "cifar", "zarr")
Arrays = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]  # by split: images (N, C, H, W) and labels


def arrays_of(kind: str) -> Arrays:
    rng, shape = np.random.default_rng(3), (1, 6, 5) if kind == "idx" else (3, 32, 32)
    return {
        split: (rng.integers(0, 256, (count, *shape), np.uint8), rng.permutation(count) % 12)
        for split, count in COUNTS.items()
    }


def write(kind: str, root: Path, arrays: Arrays) -> None:
    """As the data sets lie on disk."""
    root.mkdir()
    for split, (images, labels) in arrays.items():
        if kind == "idx":
            head = struct.pack(">BBBB3I", 0, 0, 8, 3, len(images), *images.shape[2:])
            (root / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
            head = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
            (root / f"{split}-labels-idx1-ubyte.gz").write_bytes(
                gzip.compress(head + labels.astype(np.uint8).tobytes())
            )
        elif kind == "npy":
            np.save(root / f"{split}-images.npy", images)
            np.save(root / f"{split}-labels.npy", labels)
        elif kind == "cifar":
            rows = {"data": images.reshape(len(images), -1), "fine_labels": labels.tolist()}
            (root / split).write_bytes(pickle.dumps(rows | {"coarse_labels": [0] * len(labels)}))
        else:
            zarr = pytest.importorskip("zarr")
            group = zarr.open_group(root, mode="a")
            group.create_array(f"{split}-images", data=images, chunks=(4, *images.shape[1:]))
            group.create_array(f"{split}-labels", data=labels.astype(np.int64))


class Place:
    """A source of a kind, and where its store and what comes back lie."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind, self.arrays = root, kind, arrays_of(kind)
        self.source, self.store, self.back = root / "source", root / "store", root / "back"
        write(kind, self.source, self.arrays)

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, to: str, store: Path | None = None, **options: Any) -> Summary:
        given = JobOptions(**{"shard_size": 10} | options)
        return encrypt_store(
            self.source, store or self.store, KEY, SCHEME, self.owner, given, self.kind, target_named=to
        )

    def decrypt(self) -> Summary:
        return decrypt_store(self.store, self.back, KEY, self.owner)

    def images(self) -> dict[str, tuple[np.ndarray[Any, Any], int]]:
        """Image (C, H, W) and label by what a sample is called as a file."""
        return {
            f"{self.stem(split)}-{place:06d}": (image, int(label))
            for split, (images, labels) in self.arrays.items()
            for place, (image, label) in enumerate(zip(images, labels, strict=True))
        }

    def stem(self, split: str) -> str:
        return split if self.kind == "cifar" else f"{split}-images"


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Place]:
    return lambda kind: Place(tmp_path, kind)


def pixels(path: Any) -> np.ndarray[Any, Any]:
    image = np.asarray(PIL.Image.open(path))
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def in_folder(root: Path) -> dict[str, tuple[np.ndarray[Any, Any], int]]:
    return {path.stem: (pixels(path), int(path.parent.name)) for path in root.glob("*/*.png")}


def in_tars(root: Path) -> dict[str, tuple[np.ndarray[Any, Any], int]]:
    found: dict[str, Any] = {}
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, field = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[field] = pixels(file) if field == "png" else int(file.read())
    return {key: (fields["png"], fields["cls"]) for key, fields in found.items()}


READERS = {"folder": in_folder, "webdataset": in_tars}


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(one[name][0], two[name][0]) and one[name][1] == two[name][1] for name in one
    )


@pytest.mark.parametrize("to", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_pass_and_names_come_back(kind: str, to: str, place: Callable[[str], Place]) -> None:
    here = place(kind)
    summary = here.encrypt(to)
    assert (summary.inputs, summary.outputs) == (32, 32)
    manifest = json.loads((here.store / "dlmt-store.json").read_text())
    assert [shard["count"] for shard in manifest["shards"]] == ([9, 10, 10, 3] if kind != "cifar" else [10, 10, 3, 9])
    shape = next(iter(here.images().values()))[0].shape
    plan = SCHEME.plan(KEY, shape)
    expected = sorted((dlmt.encrypt(image, plan).tobytes(), label) for image, label in here.images().values())
    stored = READERS[to](here.store)
    assert sorted((image.tobytes(), label) for image, label in stored.values()) == expected
    assert not stored.keys() & here.images().keys()  # hidden
    assert verify_store(here.store, KEY, here.owner).outputs == 32
    here.decrypt()
    back = READERS[to](here.back)
    assert back.keys() == here.images().keys()
    assert all(back[name][1] == here.images()[name][1] for name in back)


@pytest.mark.parametrize("to", READERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", ["none", "minmax"])
def test_decrypted_pixels(kind: str, to: str, normalize: str, place: Callable[[str], Place]) -> None:
    """Exactly without normalisation; with bounds from the ledger each image gets its own."""
    here = place(kind)
    here.encrypt(to, normalize=normalize, names="keep")
    here.decrypt()
    back, expected = READERS[to](here.back), here.images()
    if normalize == "none":
        assert same(back, expected)
        return
    plan = SCHEME.plan(KEY, next(iter(expected.values()))[0].shape, normalize)
    for name, (image, label) in expected.items():
        stored, bounds = dlmt.encrypt(image, plan, return_bounds=True)
        assert np.array_equal(back[name][0], dlmt.decrypt(stored, plan, bounds=bounds))
        assert back[name][1] == label


@pytest.mark.parametrize("to", READERS)
def test_names_that_are_kept(to: str, place: Callable[[str], Place]) -> None:
    here = place("npy")
    here.encrypt(to, names="keep")
    assert READERS[to](here.store).keys() == here.images().keys()


@pytest.mark.parametrize("to", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_do_not_depend_on_workers(kind: str, to: str, place: Callable[[str], Place]) -> None:
    here = place(kind)
    here.encrypt(to)
    here.encrypt(to, here.root / "other", workers=2)

    def files(root: Path) -> dict[str, bytes]:
        named = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        return {name: data for name, data in named.items() if name != "dlmt-store.json"}

    assert files(here.store) == files(here.root / "other")


def test_class_folders_sort_as_their_numbers(place: Callable[[str], Place]) -> None:
    """Readers number folders in the order of their names: the numbers must be the labels."""
    here = place("npy")
    here.encrypt("folder")
    folders = sorted(path.name for path in here.store.iterdir() if path.is_dir())
    assert folders == [f"{number:02d}" for number in range(12)]


def test_arrays_without_labels_lie_in_no_class(place: Callable[[str], Place]) -> None:
    here = place("npy")
    for path in here.source.glob("*-labels.npy"):
        path.unlink()
    here.encrypt("folder", names="keep")
    assert {path.stem for path in here.store.glob("*.png")} == here.images().keys()


@pytest.mark.parametrize("to", READERS)
def test_shuffled(to: str, place: Callable[[str], Place]) -> None:
    here = place("npy")
    here.encrypt(to, shuffle=True, normalize="none", names="keep")
    if to == "webdataset":
        with tarfile.open(here.store / "shard-000001.tar") as tar:  # the first of the training images
            keys = [name.partition(".")[0] for name in tar.getnames()[::2]]
        assert len(keys) == 10
        assert keys != sorted(keys)
    here.decrypt()
    assert same(READERS[to](here.back), here.images())


def test_equal_images_are_dropped(place: Callable[[str], Place]) -> None:
    here = place("npy")
    images = here.arrays["train"][0]
    images[20], images[5] = images[0], images[0]
    np.save(here.source / "train-images.npy", images)
    summary = here.encrypt("folder", duplicates="drop", names="keep")
    assert (summary.inputs, summary.outputs, summary.dropped) == (32, 30, 2)
    gone = {"train-images-000005", "train-images-000020"}
    assert in_folder(here.store).keys() == here.images().keys() - gone


@pytest.mark.parametrize("to", ["parquet", "zarr"])
def test_names_can_be_kept_elsewhere_too(to: str, place: Callable[[str], Place]) -> None:
    pytest.importorskip({"parquet": "pyarrow", "zarr": "zarr"}[to])
    here = place("npy")
    here.encrypt(to, names="keep", shard_size=JobOptions().shard_size)
    here.decrypt()
    assert verify_store(here.store, KEY, here.owner).outputs == 32


def test_options_that_a_target_of_arrays_has_no_use_for(place: Callable[[str], Place]) -> None:
    here = place("idx")
    with pytest.raises(ParameterError, match="--shard-size does not apply to IDX files"):
        here.encrypt("idx")
    with pytest.raises(ParameterError, match="--names does not apply to IDX files"):
        here.encrypt("idx", names="keep", shard_size=JobOptions().shard_size)


def test_a_part_of_cifar_holds_its_samples_alone(place: Callable[[str], Place]) -> None:
    here = place("cifar")
    source = CifarSource(here.source)
    part = pickle.loads(pickle.dumps(source.part(range(25, 31))))  # of the second split
    assert len(pickle.dumps(part)) < 6 * 3072 + 2000
    (batch,) = part.read(range(26, 30), 1)
    assert isinstance(batch, Batch)
    assert np.array_equal(batch.images, here.arrays["test"][0][3:7])
    for index in range(25, 31):
        assert (part.path_of(index), part.label_of(index)) == (source.path_of(index), source.label_of(index))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("train-images.npy#12", "train-images-000012"),
        ("train-images-idx3-ubyte.gz#0", "train-images-000000"),
        ("t10k-images.idx3-ubyte#7", "t10k-images-000007"),
        ("train#1234567", "train-1234567"),
        ("group/x_all#2", "group/x_all-000002"),
        ("cats/a.png", None),
        ("a#1.png", None),
        ("x.tar//a#1.png", None),
        ("x.parquet//5", None),
    ],
)
def test_what_a_sample_is_called(path: str, name: str | None) -> None:
    assert sample_name(path) == name
