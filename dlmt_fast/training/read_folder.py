"""A folder a class, plain or as a store of `dlmt encrypt`.

Images come in the order of (class, path without suffix), which `--names keep` preserves: such a store and its source
have one order. Hashed names have an order of their own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, StoreDamagedError, StoreError, UsageError
from ..pipeline.formats.folder import decode_stored, read_shard_listing
from ..stores.contract import Refused
from ..stores.folder import FolderSource
from ..stores.listing import read_listed
from ..stores.manifest import Manifest
from .arrays import Arrays


def read_plain(folder: Path) -> Arrays:
    """The images of a plain folder.

    Raises:
        StoreError: there is no image. ImageError: one cannot be taken. UsageError: images lie outside a class's
            folder, or have several shapes.
    """
    source = FolderSource(folder)
    paths = [stamp.path for stamp in source.stamps()]
    names, order, labels = _arranged(folder, paths)
    images: dict[int, NDArray[Any]] = {}
    first = ""
    for item in source.read(range(len(paths)), os.cpu_count() or 1):
        if isinstance(item, Refused):
            raise ImageError(f"{folder / item.path}: {item.reason}")
        for index, image in zip(item.indices, item.images, strict=True):
            first = first or paths[index]
            images[index] = image
            if image.shape != images[0].shape:
                raise UsageError(
                    f"{folder / paths[index]} is {image.shape} and {folder / first} {images[0].shape} (channels, "
                    "height, width); training takes one shape: dlmt encrypt --size HxW --channels C makes them so"
                )
    return Arrays(np.stack([images[index] for index in order]), labels, names)


def read_store(folder: Path, manifest: Manifest) -> Arrays:
    """The images of a finished folder store, every file checked against its digest.

    Raises:
        StoreError: it holds no image. StoreDamagedError: a file is missing, altered or of another shape.
        UsageError: images lie outside a class's folder.
    """
    listed = [entry for shard in manifest.shards for entry in read_shard_listing(folder, shard)]
    if not listed:
        raise StoreError(f"the store {folder} holds no image")
    names, order, labels = _arranged(folder, [entry.name for entry in listed])
    images = []
    for index in order:
        image = decode_stored(read_listed(folder, listed[index]), listed[index].name, manifest.dtype)
        if image.shape != manifest.shape:
            raise StoreDamagedError(
                f"{folder / listed[index].name} has shape {image.shape}, the manifest says {manifest.shape}"
            )
        images.append(image)
    stacked = np.stack(images)
    return Arrays(stacked.astype(np.int32) if stacked.dtype == np.uint16 else stacked, labels, names)  # as `Batches`


def _arranged(folder: Path, paths: Sequence[str]) -> tuple[tuple[str, ...], list[int], NDArray[np.int64]]:
    """(names of the classes, indices into `paths` in training order, their labels)."""
    loose = [path for path in paths if "/" not in path]
    if loose:
        raise UsageError(f"{folder / loose[0]} lies in no class's folder; expected {folder}/CLASS/image.png")
    names = tuple(sorted({path.partition("/")[0] for path in paths}))
    label = {name: i for i, name in enumerate(names)}

    def place(index: int) -> tuple[int, str]:
        first, _, rest = paths[index].partition("/")
        return label[first], rest.rpartition(".")[0]

    order = sorted(range(len(paths)), key=place)
    return names, order, np.array([place(index)[0] for index in order], np.int64)
