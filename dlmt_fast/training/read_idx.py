"""MNIST's four IDX files, plain or as a store of `dlmt encrypt`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import StoreDamagedError, StoreError
from ..pipeline.formats.contract import check_published
from ..stores.idx_format import checked_header, read_labels, read_slices
from ..stores.manifest import Manifest
from .arrays import Arrays

_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def missing_files(folder: Path) -> list[str]:
    """The names that are not there; empty where all are."""
    found = _found(entry.name for entry in folder.iterdir())
    return [f"{part}-ubyte" for part in _PARTS if part not in found]


def read_plain(folder: Path) -> tuple[Arrays, Arrays]:
    """(train, test) of a folder without missing files.

    Raises:
        StoreError: a file is damaged, or holds transformed values without a manifest.
    """
    train, test = _read(folder, _found(entry.name for entry in folder.iterdir()))
    if train.images.dtype != np.uint8 or test.images.dtype != np.uint8:
        raise StoreError(
            f"{folder} holds {train.images.dtype} values without a manifest: an unfinished or cut-up store"
        )
    return train, test


def read_store(folder: Path, manifest: Manifest) -> tuple[Arrays, Arrays]:
    """(train, test) of a finished store, every file checked against its manifest.

    Raises:
        StoreError: one of the four files is no part of it. StoreDamagedError: it is altered or missing.
    """
    published = {entry.name: entry for entry in (*manifest.shards, *manifest.extras)}
    found = _found(published)
    missing = [f"{part}-ubyte" for part in _PARTS if part not in found]
    if missing:
        raise StoreError(f"the store {folder} lacks {', '.join(missing)}; encrypt the folder with all four files")
    for name in found.values():
        check_published(folder / name, published[name])
    return _read(folder, found)


def _found(names: Iterable[str]) -> dict[str, str]:
    """File names by part; an unpacked file goes before the .gz that torchvision leaves beside it."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name.endswith(".gz"), name)):
        match = re.fullmatch(r"(train|t10k)-(images|labels)[-_.](idx[13])[-_.]ubyte(\.gz)?", name)
        if match:
            found.setdefault(f"{match[1]}-{match[2]}-{match[3]}", name)
    return found


def _read(folder: Path, names: dict[str, str]) -> tuple[Arrays, Arrays]:
    train, test = (
        _read_split(folder / names[f"{part}-images-idx3"], folder / names[f"{part}-labels-idx1"])
        for part in ("train", "t10k")
    )
    return train, test


def _read_split(images_path: Path, labels_path: Path) -> Arrays:
    header = checked_header(images_path)
    parts = [values for _, values in read_slices(images_path, header)]
    labels = np.frombuffer(read_labels(labels_path)[8:], np.uint8)
    if len(labels) != header.sizes[0]:
        raise StoreDamagedError(f"{images_path} holds {header.sizes[0]} images and {labels_path} {len(labels)} labels")
    images = np.concatenate(parts) if parts else np.empty((0, 1, *header.sizes[1:]), header.dtype)
    return Arrays(images.astype(header.dtype.newbyteorder("="), copy=False), labels.astype(np.int64), ())
