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
from ..stores.contract import Array, Published
from ..stores.folder import Listed, read_listed, read_listing
from ..stores.idx import Header, open_idx, read_header, read_slices
from ..stores.manifest import read_manifest
from ..stores.npy import decode_npy
from ..stores.publish import file_digest
from .seal import StoreSeal
from .worker import Plans

_DTYPES = ("uint8", "uint16", "int32", "float32", "float16")


@dataclass(frozen=True)
class StoredBatch:
    """Transformed images (N, C, H, W) with their names in the store ("" in an IDX file)."""

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
            path = self.root / shard.name
            if file_digest(path) != (shard.size, shard.sha256):
                raise StoreDamagedError(f"{path} is damaged: its bytes are not those that were published")
            yield from self._read_idx(path)
        else:
            for position, entry in enumerate(read_shard_listing(self.root, shard)):
                image = decode_stored(read_listed(self.root, entry), entry, self.manifest.dtype)
                yield StoredBatch(position, [entry.name], image[None])

    def _read_idx(self, path: Path) -> Iterator[StoredBatch]:
        header = idx_header(path)
        dtype = np.dtype(self.manifest.dtype)
        if header.dtype.newbyteorder("=") != dtype:
            raise StoreDamagedError(f"{path} holds {header.dtype}, its manifest says {dtype}")
        for start, values in read_slices(path, header):
            yield StoredBatch(start, [""] * len(values), values.astype(dtype, copy=False))


def idx_header(path: Path) -> Header:
    """The header of a store's IDX file."""
    with open_idx(path) as file:
        return read_header(file, path)


def read_shard_listing(root: Path, shard: Published) -> list[Listed]:
    """A folder shard's listing, checked against the manifest.

    Raises:
        StoreDamagedError: it is missing or altered.
    """
    path = root / shard.name
    try:
        digest = file_digest(path)[1]
    except FileNotFoundError:
        raise StoreDamagedError(f"{path} is missing, and the manifest names it") from None
    if digest != shard.sha256:
        raise StoreDamagedError(f"{path} is damaged: its bytes are not those that were published")
    listing = read_listing(path.read_bytes(), str(path))
    if len(listing) != shard.count or sum(entry.size for entry in listing) != shard.size:
        raise StoreDamagedError(f"{path} lists {len(listing)} files, the manifest says {shard.count}")
    return listing


def decode_stored(data: bytes, entry: Listed, dtype: str) -> Array:
    """One file of a folder store as (C, H, W)."""
    if dtype not in _DTYPES:
        raise StoreDamagedError(f"the manifest names the dtype {dtype!r}, which no store has")
    if not entry.name.endswith(".png"):
        return decode_npy(data, np.dtype(dtype), entry.name)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.array(image)
    except Exception as error:  # noqa: BLE001  the plugin raises almost anything on damaged content
        raise StoreDamagedError(f"{entry.name} is no PNG file ({type(error).__name__})") from None
    if pixels.dtype != np.uint8 or dtype != "uint8" or pixels.ndim not in (2, 3):
        raise StoreDamagedError(f"{entry.name} is not a PNG file of this store")
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float.fromhex(value) for value in values)
