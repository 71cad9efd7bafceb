"""The public manifest of a store, `dlmt-store.json`: what training needs, and a sealed header for the owner.

It is published last; a store without one is unfinished, and readers say so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..canonical import DuplicateFieldError, canonical_json, parse_json
from ..errors import StoreDamagedError, StoreError
from .contract import Published
from .remote_errors import remote_errors
from .walk import exists, is_folder

FORMAT = "dlmt-store"
VERSION = 1
NAME = "dlmt-store.json"
NESTED = ("zarr",)  # whose files lie in folders
KINDS = ("folder", "idx", "npy", "webdataset", "parquet", "zarr")
DTYPES = ("uint8", "uint16", "int32", "float32", "float16")
MAX_BYTES = 256 << 20
_FIELDS = {"format", "version", "kind", "store_id", "dtype", "shape", "count", "shards", "extras", "sealed", "sha256"}
_STORE_ID = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """The public part of a store. `shape` is (C, H, W), or None where sizes differ; `extras` are labels files."""

    kind: str
    store_id: str
    dtype: str
    shape: tuple[int, int, int] | None
    count: int
    shards: tuple[Published, ...]
    extras: tuple[Published, ...]
    sealed: bytes

    def encode(self) -> bytes:
        """The bytes of the manifest file."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "store_id": self.store_id,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
            "count": self.count,
            "shards": [vars(shard) for shard in self.shards],
            "extras": [vars(extra) for extra in self.extras],
            "sealed": base64.b64encode(self.sealed).decode("ascii"),
        }
        document["sha256"] = hashlib.sha256(canonical_json(document)).hexdigest()
        return json.dumps(document, indent=1).encode("utf-8") + b"\n"


def manifest_path(store: Path) -> Path:
    """Where the manifest of a store is: inside a folder, beside a single file."""
    return store.with_name(f"{store.name}.{NAME}") if is_single(store) else store / NAME


def is_single(store: Path) -> bool:
    """Whether a store is one file, not a folder."""
    return not is_folder(store)


def read_manifest(store: Path) -> Manifest:
    """Read and check the manifest of the store at `store` (a folder or a single file).

    Raises:
        StoreError: there is none, so the store is unfinished or no store.
        StoreDamagedError: it is malformed.
    """
    path = manifest_path(store)
    if not exists(store):
        raise StoreError(f"{store} does not exist")
    try:
        with remote_errors(path), path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise StoreError(f"{store} has no manifest {path.name}: it is unfinished, or not a store of dlmt") from None
    return decode_manifest(data, path)


def decode_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest from its bytes; `path` is named in errors."""
    document = _parse(data, path)
    if set(document) != _FIELDS:
        _damaged(path, f"unknown or missing fields {sorted(set(document) ^ _FIELDS)}")
    body = {name: value for name, value in document.items() if name != "sha256"}
    if document["sha256"] != _digest(body, path):
        _damaged(path, "its checksum does not match")
    shape = document["shape"]
    if not (shape is None or (_integers(shape) and len(shape) == 3 and min(shape) >= 1)):
        _damaged(path, "the shape is not (C, H, W)")
    if not _integers([document["count"]]) or document["kind"] not in KINDS or document["dtype"] not in DTYPES:
        _damaged(path, "kind, dtype or count is malformed")
    if not isinstance(document["store_id"], str) or not _STORE_ID.fullmatch(document["store_id"]):
        _damaged(path, "the store id is malformed")
    nested = document["kind"] in NESTED
    manifest = Manifest(
        kind=document["kind"],
        store_id=document["store_id"],
        dtype=document["dtype"],
        shape=None if shape is None else tuple(shape),
        count=document["count"],
        shards=_published(document["shards"], path, nested),
        extras=_published(document["extras"], path, nested),
        sealed=_base64(document["sealed"], path),
    )
    if data != manifest.encode():  # the checksum covers the values, this the rest
        _damaged(path, "its bytes are not those that were written")
    return manifest


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        _damaged(path, "it is too large")
    try:
        document = parse_json(data)
    except DuplicateFieldError as error:
        _damaged(path, str(error))
    except ValueError:
        _damaged(path, "it is not JSON")
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        _damaged(path, f'it has no field "format": "{FORMAT}"')
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise StoreError(f"{path} is of version {document.get('version')!r}, this package reads {VERSION}: upgrade it")
    return document


def _digest(body: Mapping[str, Any], path: Path) -> str:
    try:
        return hashlib.sha256(canonical_json(body)).hexdigest()
    except ValueError:
        _damaged(path, "it holds values that a manifest cannot hold")


def _published(entries: Any, path: Path, nested: bool) -> tuple[Published, ...]:
    fields = {"name", "count", "size", "sha256"}
    if not isinstance(entries, list):
        _damaged(path, "shards or extras is not a list")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != fields or not _integers([entry["count"], entry["size"]]):
            _damaged(path, "a shard's entry is malformed")
        name, digest = entry["name"], entry["sha256"]
        if not isinstance(name, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            _damaged(path, "a shard's entry is malformed")
        parts = name.split("/") if nested else [name]
        if any(not part or part[0] == "." or set(part) & set("/\\\0") for part in parts):
            _damaged(path, "a shard's name leaves the store")
    return tuple(Published(**entry) for entry in entries)


def _integers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def _base64(value: Any, path: Path) -> bytes:
    try:
        if not isinstance(value, str):
            raise ValueError
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        _damaged(path, "the sealed header is not base64")


def _damaged(path: Path, why: str) -> NoReturn:
    raise StoreDamagedError(f"{path} is damaged or not a manifest: {why}")
