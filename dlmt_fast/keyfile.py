"""The key file on disk (`*.dlmtkey`, version 1): JSON, checked from the outside in.

Order of checks when loading: permissions of the open descriptor, size, JSON form, format and version, digest (damage),
costs of the key derivation, passphrase, and in `keys.py` the fingerprint. So each fault gets its own message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .canonical import DuplicateFieldError, canonical_json, parse_json
from .errors import (
    InputTypeError,
    KeyDamagedError,
    KeyExistsError,
    KeyFingerprintError,
    KeyPassphraseError,
    KeyPermissionError,
    KeyVersionError,
    ParameterError,
)
from .keys import CONTRACT

FORMAT = "dlmt-key"
VERSION = 1
MAX_BYTES = 64 * 1024
MEMORY_KIB, ITERATIONS, LANES = 262144, 3, 4
#: What loading accepts; a file that asks for more is refused before any derivation starts.
_COSTS = {"memory_kib": (19 * 1024, 4 * 1024 * 1024), "iterations": (1, 16), "lanes": (1, 16)}
_COMMON = {"format", "version", "contract", "fingerprint", "params", "sha256"}
_SEAL = {"kdf", "memory_kib", "iterations", "lanes", "salt", "cipher", "nonce", "ciphertext"}


class Content(NamedTuple):
    secret: bytes
    fingerprint: str
    params: dict[str, Any] | None

    def __repr__(self) -> str:
        return f"Content(fingerprint={self.fingerprint!r})"


def normalise_passphrase(passphrase: str) -> bytes:
    """UTF-8 of the NFC form without one trailing newline, so that a file and a prompt give the same key."""
    if not isinstance(passphrase, str):
        raise InputTypeError(f"the passphrase must be a str, got {type(passphrase).__name__}")
    text = unicodedata.normalize("NFC", passphrase)
    text = text[:-2] if text.endswith("\r\n") else text[:-1] if text.endswith("\n") else text
    if not text:
        raise KeyPassphraseError("the passphrase is empty; use no passphrase at all, or one with characters in it")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # its words and its attributes would show the passphrase
        raise KeyPassphraseError("the passphrase holds lone surrogates, which UTF-8 cannot say") from None


def _derive(passphrase: str, salt: bytes, memory_kib: int, iterations: int, lanes: int) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    secret = normalise_passphrase(passphrase)
    try:
        kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
        return kdf.derive(secret)
    except UnsupportedAlgorithm:
        raise KeyPassphraseError(
            "this build of the package 'cryptography' has no Argon2id (it needs OpenSSL 3.2): "
            "install cryptography's own wheel with pip install --force-reinstall cryptography"
        ) from None
    except MemoryError:
        raise KeyPassphraseError(f"opening a sealed key needs {memory_kib // 1024} MiB of free memory") from None


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _aad(document: Mapping[str, Any]) -> bytes:
    outer = {name: value for name, value in document.items() if name != "sha256"}
    outer["seal"] = {name: value for name, value in document["seal"].items() if name != "ciphertext"}
    return canonical_json(outer)


def _compose(secret: bytes, fingerprint: str, passphrase: str | None, params: Mapping[str, Any] | None) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        canonical_json(params if params is None else dict(params))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"params must be plain JSON without floats: {error}") from None
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "contract": CONTRACT,
        "fingerprint": fingerprint,
        "params": None if params is None else dict(params),
    }
    if passphrase is None:
        document["secret"] = _b64(secret)
    else:
        salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
        seal: dict[str, Any] = {"kdf": "argon2id", "memory_kib": MEMORY_KIB, "iterations": ITERATIONS, "lanes": LANES}
        seal |= {"salt": _b64(salt), "cipher": "aes-256-gcm", "nonce": _b64(nonce)}
        document["seal"] = seal
        wrapping = _derive(passphrase, salt, MEMORY_KIB, ITERATIONS, LANES)
        seal["ciphertext"] = _b64(AESGCM(wrapping).encrypt(nonce, secret, _aad(document)))
    document["sha256"] = hashlib.sha256(canonical_json(document)).hexdigest()
    data = json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8") + b"\n"
    if len(data) > MAX_BYTES:
        raise ParameterError(f"the key file would be {len(data)} bytes, over {MAX_BYTES}: params are too large")
    return data


def save(
    secret: bytes,
    fingerprint: str,
    path: Path,
    passphrase: str | None,
    params: Mapping[str, Any] | None,
    overwrite: bool,
) -> None:
    """Write a key file, mode 0600; file and directory are on disk when this returns."""
    data = _compose(secret, fingerprint, passphrase, params)
    if overwrite:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        _write_new(temporary, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    else:
        try:
            _write_new(path, data)
        except FileExistsError:
            raise KeyExistsError(
                f"{path} exists; a replaced key is lost for good and all that it encrypted with it. "
                "Choose another name (from Python, overwrite=True replaces it)"
            ) from None
    _sync_directory(path.parent)


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # a directory cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path, passphrase: str | None) -> Content:
    """Read, check and if need be unseal a key file. The caller checks the fingerprint."""
    data, status = _read(path)
    document = _parse(path, data)
    sealed = "seal" in document
    if not sealed and os.name != "nt" and status.st_mode & 0o077:
        raise KeyPermissionError(
            f"{path} holds an unsealed secret and can be read by others (mode {status.st_mode & 0o777:04o}); "
            f"mend it with: chmod 600 {path}"
        )
    secret = _open_seal(path, document, passphrase) if sealed else _bytes_field(path, document, "secret", 32)
    return Content(secret, document["fingerprint"], document["params"])


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """The bytes, at most one over the limit, and the status of the descriptor they came from."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO would wait for ever
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            _damaged(path, "it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1), status
    finally:
        os.close(descriptor)


def is_sealed(path: Path) -> bool:
    """Whether the key file needs a passphrase."""
    return "seal" in _parse(path, _read(path)[0])


def check_fingerprint(path: Path, written: str, actual: str) -> None:
    """Refuse a file whose fingerprint is not that of its secret."""
    if written != actual:
        raise KeyFingerprintError(
            f"{path} names the fingerprint {written} but its secret has {actual}: the file was put together from two "
            "keys or changed by hand; restore it from a backup"
        )


def _damaged(path: Path, why: str) -> NoReturn:
    raise KeyDamagedError(f"{path} is damaged or not a key file: {why}; restore it from a backup")


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        _damaged(path, f"it is larger than {MAX_BYTES} bytes")
    try:
        document = parse_json(data)
    except DuplicateFieldError as error:
        _damaged(path, str(error))
    except ValueError:
        _damaged(path, "it is not JSON" if data.strip() else "it is empty")
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        _damaged(path, f'it has no field "format": "{FORMAT}"')
    _check_version(path, document)
    secret_field = "seal" if "seal" in document else "secret"
    expected = _COMMON | {secret_field}
    if set(document) != expected:
        _damaged(path, f"unknown or missing fields: {sorted(set(document) ^ expected)}")
    _check_digest(path, document)
    if not isinstance(document["fingerprint"], str):
        _damaged(path, "the fingerprint is not a string")
    if document["params"] is not None and not isinstance(document["params"], dict):
        _damaged(path, "params is neither an object nor null")
    return document


def _check_version(path: Path, document: Mapping[str, Any]) -> None:
    version, contract = document.get("version"), document.get("contract")
    if type(version) is not int:
        _damaged(path, "the version is not an integer")
    if not isinstance(contract, str):
        _damaged(path, "the contract is not a string")
    if version != VERSION or contract != CONTRACT:
        raise KeyVersionError(
            f"{path} is a key file of version {version} for contract {contract!r}; this package reads version "
            f"{VERSION} for {CONTRACT!r}: upgrade dlmt-fast"
        )


def _check_digest(path: Path, document: Mapping[str, Any]) -> None:
    body = {name: value for name, value in document.items() if name != "sha256"}
    try:
        digest = hashlib.sha256(canonical_json(body)).hexdigest()
    except ValueError:
        _damaged(path, "it holds values that a key file cannot hold")
    if document["sha256"] != digest:
        _damaged(path, "its checksum does not match")


def _bytes_field(path: Path, document: Mapping[str, Any], name: str, length: int) -> bytes:
    value = document[name]
    try:
        if not isinstance(value, str):
            raise ValueError
        data = base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        _damaged(path, f"{name} is not base64")
    if len(data) != length:
        _damaged(path, f"{name} has {len(data)} bytes instead of {length}")
    return data


def _open_seal(path: Path, document: Mapping[str, Any], passphrase: str | None) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    seal = document["seal"]
    if not isinstance(seal, dict) or set(seal) != _SEAL:
        _damaged(path, "the seal has unknown or missing fields")
    if seal["kdf"] != "argon2id" or seal["cipher"] != "aes-256-gcm":
        raise KeyVersionError(f"{path} is sealed by an unknown method; upgrade dlmt-fast")
    for name, (least, most) in _COSTS.items():
        if type(seal[name]) is not int or not least <= seal[name] <= most:
            _damaged(path, f"the seal's {name} is outside {least}..{most}")
    salt, nonce = _bytes_field(path, seal, "salt", 16), _bytes_field(path, seal, "nonce", 12)
    ciphertext = _bytes_field(path, seal, "ciphertext", 48)
    if passphrase is None:
        raise KeyPassphraseError(f"{path} is sealed: it needs its passphrase (passphrase=, or --passphrase-file F)")
    wrapping = _derive(passphrase, salt, seal["memory_kib"], seal["iterations"], seal["lanes"])
    try:
        return AESGCM(wrapping).decrypt(nonce, ciphertext, _aad(document))
    except InvalidTag:
        raise KeyPassphraseError(f"wrong passphrase for {path} (the file itself is undamaged)") from None
