"""What of a store the key alone can make or open: its id, the hidden names, the sealed header, the ledger."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..canonical import canonical_json, parse_json
from ..errors import StoreDamagedError, StoreError, WrongKeyError
from ..keys import CONTRACT, Key

HEADER_BYTES = 4096
_NONCE = 12
_MOST = (1 << 31) - 1  # bytes that AES-GCM of `cryptography` takes at once


def store_id_of(key: Key, record: Mapping[str, Any]) -> str:
    """The only id that is uploaded: the same for the same job, and linked to nothing else."""
    return hmac.digest(key.sub(32, "store-id"), canonical_json(dict(record)), hashlib.sha256)[:16].hex()


class StoreSeal:
    """The keyed operations of one store."""

    def __init__(self, key: Key, store_id: str) -> None:
        self.store_id = store_id
        self._names = key.sub(32, "names", store_id)
        self._header = key.sub(32, "header", store_id)
        self._ledger = key.sub(32, "ledger", store_id)

    def name(self, path: str) -> str:
        """The hidden name (32 hex digits) of a relative POSIX path."""
        return hmac.digest(self._names, path.encode("utf-8"), hashlib.sha256)[:16].hex()

    def seal_header(self, header: Mapping[str, Any]) -> bytes:
        """The header encrypted at a fixed size, so that its length tells nothing."""
        plain = canonical_json(dict(header))
        if len(plain) > HEADER_BYTES:
            raise StoreError(f"the store's header needs {len(plain)} bytes, over {HEADER_BYTES}")
        return _encrypt(self._header, plain.ljust(HEADER_BYTES), self._header_aad())

    def open_header(self, sealed: bytes) -> dict[str, Any]:
        """The header.

        Raises:
            WrongKeyError: the store was made with another key, or its manifest was forged.
        """
        plain = _decrypt(self._header, sealed, self._header_aad())
        if plain is None:
            raise WrongKeyError(
                f"the store {self.store_id} was made with another key: its sealed header does not open with this one"
            )
        header: dict[str, Any] = json.loads(plain)
        return header

    def seal_ledger(self, shard: int, output_sha256: str, ledger: Mapping[str, Any]) -> bytes:
        """A shard's ledger, bound to the shard's published digest."""
        return _encrypt(self._ledger, canonical_json(dict(ledger)), self._ledger_aad(shard, output_sha256))

    def seal_bounds(self, shard: int, output_sha256: str, bounds: Iterable[bytes], other: Mapping[str, Any]) -> bytes:
        """A ledger whose bounds come as pieces of canonical JSON, as which many take less memory; `other` is its rest.

        Raises:
            StoreError: it is larger than a ledger can be.
        """
        left = {name: value for name, value in other.items() if name != "bounds"}
        assert min(left) > "bounds", "canonical JSON has its fields in order"
        rest = canonical_json(left)
        plain = b'{"bounds":[' + b",".join(piece for piece in bounds if piece) + b"]," + rest[1:]
        if len(plain) > _MOST:
            raise StoreError(
                f"the bounds of shard {shard} take {len(plain)} bytes, and a ledger holds at most {_MOST}: cut the "
                "array into several files, or take --normalize range"
            )
        return _encrypt(self._ledger, plain, self._ledger_aad(shard, output_sha256))

    def open_ledger(self, shard: int, output_sha256: str, sealed: bytes) -> dict[str, Any]:
        """A shard's ledger.

        Raises:
            StoreDamagedError: it is damaged, or belongs to another shard, store or key.
        """
        plain = _decrypt(self._ledger, sealed, self._ledger_aad(shard, output_sha256))
        if plain is None:
            raise StoreDamagedError(f"the ledger of shard {shard} is damaged or belongs to another store")
        ledger: dict[str, Any] = parse_json(plain)
        return ledger

    def seal_sources(self, part: int, files: Mapping[str, Any]) -> bytes:
        """A part of the list of source files, whose names are as secret as the ledger's."""
        return _encrypt(self._ledger, canonical_json(dict(files)), self._sources_aad(part))

    def open_sources(self, part: int, sealed: bytes) -> dict[str, Any]:
        """A part of the list of source files.

        Raises:
            StoreDamagedError: it is damaged, or belongs to another store or key.
        """
        plain = _decrypt(self._ledger, sealed, self._sources_aad(part))
        if plain is None:
            raise StoreDamagedError(f"the list of source files, part {part}, is damaged or belongs to another store")
        files: dict[str, Any] = parse_json(plain)
        return files

    def seal_segment(self, shard: int, segment: int, entry: Mapping[str, Any]) -> bytes:
        """The entry of a segment of a shard that is not done yet, with its bounds."""
        return _encrypt(self._ledger, canonical_json(dict(entry)), self._segment_aad(shard, segment))

    def open_segment(self, shard: int, segment: int, sealed: bytes) -> dict[str, Any] | None:
        """The entry of a segment; None where it is damaged, or of another one, store or key."""
        plain = _decrypt(self._ledger, sealed, self._segment_aad(shard, segment))
        if plain is None:
            return None
        entry: dict[str, Any] = parse_json(plain)
        return entry

    def _segment_aad(self, shard: int, segment: int) -> bytes:
        return f"{CONTRACT}/segment/{self.store_id}/{shard}/{segment}".encode("ascii")

    def _header_aad(self) -> bytes:
        return f"{CONTRACT}/header/{self.store_id}".encode("ascii")

    def _sources_aad(self, part: int) -> bytes:
        return f"{CONTRACT}/sources/{self.store_id}/{part}".encode("ascii")

    def _ledger_aad(self, shard: int, output_sha256: str) -> bytes:
        return f"{CONTRACT}/ledger/{self.store_id}/{shard}/{output_sha256}".encode("ascii")


def _encrypt(key: bytes, plain: bytes, aad: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, aad)


def _decrypt(key: bytes, sealed: bytes, aad: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], aad)
    except (InvalidTag, ValueError):
        return None
