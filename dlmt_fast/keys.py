"""The secret and everything that is derived from it. Knows no scheme.

A `Key` is 32 bytes from the operating system's generator. All other values come from it through `Key.sub`, which is
HKDF-SHA256 under the contract's name, for a closed list of purposes.
"""

from __future__ import annotations

import hmac
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from .errors import InputTypeError, ParameterError, refuse_export

CONTRACT = "dlmt-fast/v1"
SECRET_BYTES = 32

#: The closed list of what the secret serves. Nothing else may use it.
PURPOSES = frozenset({"matrix", "key-id", "store-id", "names", "order", "header", "ledger"})

_FIELD = re.compile(r"[a-z0-9_x.-]+")
_export_allowed: ContextVar[bool] = ContextVar("dlmt_fast_export_allowed", default=False)


@contextmanager
def allow_export() -> Iterator[None]:
    """Let keys, plans and transforms be pickled inside this block.

    Whoever reads the pickle has the secret. Outside such a block only `multiprocessing` may pickle them, while it
    starts a child process.
    """
    token = _export_allowed.set(True)
    try:
        yield
    finally:
        _export_allowed.reset(token)


def export_is_allowed() -> bool:
    """Whether the secret may leave in a pickle now (see `allow_export`)."""
    context = sys.modules.get("multiprocessing.context")  # where it is not loaded, nothing is being spawned
    return _export_allowed.get() or (context is not None and context.get_spawning_popen() is not None)


class SecretHolder:
    """Mixin of key, plan and transform: copies share the object, pickles are refused outside `allow_export`."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not export_is_allowed():
            raise refuse_export(type(self).__name__)
        return super().__reduce_ex__(protocol)

    def __copy__(self) -> SecretHolder:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SecretHolder:
        return self


class Key(SecretHolder):
    """A secret of 32 bytes, with an optional plain dict of scheme parameters beside it.

    Args:
        secret: exactly 32 bytes. Use `Key.generate()` for a new key.
        params: what the key is meant for (`scheme.params`), saved with it; not secret and not interpreted here.

    Raises:
        InputTypeError: `secret` is not bytes.
        ParameterError: `secret` has another length.
    """

    __slots__ = ("_fingerprint", "_params", "_secret")

    def __init__(self, secret: bytes, params: Mapping[str, Any] | None = None) -> None:
        if not isinstance(secret, (bytes, bytearray)):
            raise InputTypeError(f"the secret must be bytes, got {type(secret).__name__}")
        if len(secret) != SECRET_BYTES:
            raise ParameterError(
                f"the secret must be {SECRET_BYTES} bytes, got {len(secret)}; Key.generate() makes a new one"
            )
        self._secret = bytes(secret)
        self._params = None if params is None else dict(params)
        self._fingerprint = self.sub(16, "key-id").hex()

    @classmethod
    def generate(cls, params: Mapping[str, Any] | None = None) -> Key:
        """A new key from the operating system's generator."""
        return cls(os.urandom(SECRET_BYTES), params)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that name the key to its owner. Never uploaded: it would link stores to each other."""
        return self._fingerprint

    @property
    def params(self) -> dict[str, Any] | None:
        """The parameters that were saved with the key, as a new plain dict, or None."""
        return None if self._params is None else dict(self._params)

    def sub(self, length: int, purpose: str, *fields: str) -> bytes:
        """`length` bytes of HKDF-SHA256 for one purpose of the closed list (contract section 2).

        Raises:
            ParameterError: unknown purpose, or a field with characters outside ``[a-z0-9_x.-]``.
        """
        if purpose not in PURPOSES:
            raise ParameterError(f"unknown key purpose {purpose!r}; the closed list is {sorted(PURPOSES)}")
        for field in fields:
            if not _FIELD.fullmatch(field):
                raise ParameterError(f"key derivation field {field!r} holds characters outside [a-z0-9_x.-]")
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        info = "/".join((purpose, *fields)).encode("ascii")
        return HKDF(algorithm=SHA256(), length=length, salt=CONTRACT.encode("ascii"), info=info).derive(self._secret)

    def save(
        self,
        path: str | os.PathLike[str],
        passphrase: str | None = None,
        params: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the key file, readable by its owner only (contract: key files, version 1).

        Args:
            path: where to. An existing file is refused unless `overwrite`.
            passphrase: seals the secret with Argon2id and AES-256-GCM; None writes it in the clear, mode 0600.
            params: replaces `key.params` in the file.

        Raises:
            KeyExistsError: the file is there already.
            KeyPassphraseError: the passphrase is empty.
            ParameterError: `params` is not plain JSON, holds floats, or is too large.
        """
        from . import keyfile

        keyfile.save(self._secret, self._fingerprint, Path(path), passphrase, params or self._params, overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str | None = None) -> Key:
        """Read a key file written by `save` or ``dlmt keygen``.

        Raises:
            KeyDamagedError, KeyVersionError, KeyPassphraseError, KeyFingerprintError, KeyPermissionError: each says
                what is wrong with the file and what to do.
            FileNotFoundError: there is no such file.
        """
        from . import keyfile

        content = keyfile.load(Path(path), passphrase)
        key = cls(content.secret, content.params)
        keyfile.check_fingerprint(Path(path), content.fingerprint, key.fingerprint)
        return key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    def __repr__(self) -> str:
        return f"Key(fingerprint={self._fingerprint!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not export_is_allowed():
            raise refuse_export("Key")
        return (Key, (self._secret, self._params))
