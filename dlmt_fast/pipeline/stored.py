"""Reading a finished store with the key: its manifest, header, plans and transformed images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..errors import StoreDamagedError
from ..keys import Key
from ..schemes import DLMT, Plan
from ..stores import idx, npy_arrays
from ..stores.contract import Array, Published
from ..stores.folder import Listed, read_listed, read_listing
from ..stores.manifest import read_manifest
from ..stores.npy import decode_npy
from ..stores.publish import file_digest
from .seal import StoreSeal
from .worker import Plans


@dataclass(frozen=True)
class StoredBatch:
    """Transformed images (N, C, H, W) with their names in the store ("" in IDX and .npy files)."""

    position: int
    names: list[str]
    images: Array


class StoredImages:
    """A finished store that the key opens.

    Raises:
        StoreError: it is unfinished, damaged, or no store.
        WrongKeyError: it was made with another key.
    """

    def __init__(self, path: Path, key: Key) -> None:
        self.path = path
        self.root = path if path.is_dir() else path.parent
        self.manifest = read_manifest(path)
        self.seal = StoreSeal(key, self.manifest.store_id)
        self.header = self.seal.open_header(self.manifest.sealed)
        self.plans = Plans(self._planner(key))
        self._compared: set[str] = set()

    def _planner(self, key: Key) -> Any:
        header = self.header
        try:
            scheme = DLMT.from_params(header["scheme"])
            normalize, dtype = header["normalize"], header["dtype"]
            asked = "narrowest" if normalize == "none" and dtype != "int32" else dtype
            mean, std = (_floats(header[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreDamagedError(f"the sealed header of {self.path} cannot be understood: {error}") from None

        def make(shape: tuple[int, ...]) -> Plan:
            return scheme.plan(key, shape, normalize, asked, mean, std)

        return make

    @property
    def needs_bounds(self) -> bool:
        """Whether decrypting needs the owner's ledger."""
        return str(self.header["normalize"]).startswith("minmax")

    def read(self, shard: Published) -> Iterator[StoredBatch]:
        """A shard's images, every file checked against its published digest first."""
        if self.manifest.kind == "idx":
            yield from self._read_idx(shard)
        elif self.manifest.kind == "npy":
            yield from self._read_npy(shard)
        else:
            for position, entry in enumerate(read_shard_listing(self.root, shard)):
                image = decode_stored(read_listed(self.root, entry), entry, self.manifest.dtype)
                self._check_shape(image.shape, self.root / entry.name)
                yield StoredBatch(position, [entry.name], image[None])

    def idx_header(self, shard: Published) -> idx.Header:
        """The header of an IDX shard, whose bytes and sizes (N, H, W) are what the manifest says.

        Raises:
            StoreDamagedError: they are not.
        """
        path = self._compared_file(shard)
        header = idx.checked_header(path)
        if header.dtype.newbyteorder("=") != np.dtype(self.manifest.dtype) or header.sizes[0] != shard.count:
            raise StoreDamagedError(
                f"{path} holds {header.sizes[0]} images of {header.dtype}, not as its manifest says"
            )
        self._check_shape((1, *header.sizes[1:]), path)
        return header

    def _read_idx(self, shard: Published) -> Iterator[StoredBatch]:
        for start, values in idx.read_slices(self.root / shard.name, self.idx_header(shard)):
            yield StoredBatch(start, [""] * len(values), values.astype(self.manifest.dtype, copy=False))

    def npy_header(self, shard: Published) -> npy_arrays.ArrayHeader:
        """The header of a .npy shard, whose bytes, type and shape are what the manifest says.

        Raises:
            StoreDamagedError: they are not.
        """
        path = self._compared_file(shard)
        header = npy_arrays.read_array_header(path)
        if header.dtype != np.dtype(self.manifest.dtype) or header.shape[:1] != (shard.count,):
            raise StoreDamagedError(f"{path} holds an array {header.shape} of {header.dtype}, not as its manifest says")
        self._check_shape(npy_arrays.image_shape(header.shape, path), path)
        return header

    def _read_npy(self, shard: Published) -> Iterator[StoredBatch]:
        path = self.root / shard.name
        for start, values in npy_arrays.read_slices(path, self.npy_header(shard), range(shard.count)):
            yield StoredBatch(start, [""] * len(values), values.astype(self.manifest.dtype, copy=False))

    def _compared_file(self, shard: Published) -> Path:
        """A shard that is one file; its bytes are compared with what was published once, whoever asks first."""
        path = self.root / shard.name
        if shard.name not in self._compared:
            check_published(path, shard)
            self._compared.add(shard.name)
        return path

    def _check_shape(self, shape: tuple[int, ...], path: Path) -> None:
        if shape[0] not in (1, 3) or self.manifest.shape not in (None, shape):
            raise StoreDamagedError(f"{path} holds an image of shape {shape}, the manifest says {self.manifest.shape}")


def check_published(path: Path, published: Published) -> None:
    """Compare a file with what was published.

    Raises:
        StoreDamagedError: it is missing or altered.
    """
    try:
        found = file_digest(path)
    except (FileNotFoundError, IsADirectoryError):
        raise StoreDamagedError(f"{path} is missing, and the manifest names it") from None
    if found != (published.size, published.sha256):
        raise StoreDamagedError(f"{path} is damaged: its bytes are not those that were published")


def read_shard_listing(root: Path, shard: Published) -> list[Listed]:
    """A folder shard's listing, checked against the manifest.

    Raises:
        StoreDamagedError: it is missing or altered.
    """
    path = root / shard.name
    try:
        digest = file_digest(path)[1]
    except (FileNotFoundError, IsADirectoryError):
        raise StoreDamagedError(f"{path} is missing, and the manifest names it") from None
    if digest != shard.sha256:
        raise StoreDamagedError(f"{path} is damaged: its bytes are not those that were published")
    listing = read_listing(path.read_bytes(), str(path))
    if len(listing) != shard.count or sum(entry.size for entry in listing) != shard.size:
        raise StoreDamagedError(f"{path} lists {len(listing)} files, the manifest says {shard.count}")
    return listing


def decode_stored(data: bytes, entry: Listed, dtype: str) -> Array:
    """One file of a folder store as (C, H, W)."""
    if not entry.name.endswith(".png"):
        return decode_npy(data, np.dtype(dtype), entry.name)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mode, pixels = image.mode, np.array(image)
    except Exception as error:  # noqa: BLE001  the plugin raises almost anything on damaged content
        raise StoreDamagedError(f"{entry.name} is no PNG file ({type(error).__name__})") from None
    if mode not in ("L", "RGB") or dtype != "uint8":
        raise StoreDamagedError(f"{entry.name} is not a PNG file of this store")
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float.fromhex(value) for value in values)
