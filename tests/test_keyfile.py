"""The key file: what is in it, how it is written, who may read it, and its passphrase."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dlmt_fast as dlmt
from dlmt_fast import keyfile
from dlmt_fast.errors import (
    InputTypeError,
    KeyDamagedError,
    KeyExistsError,
    KeyPassphraseError,
    KeyPermissionError,
    ParameterError,
)

REAL_COSTS = (keyfile.MEMORY_KIB, keyfile.ITERATIONS, keyfile.LANES)
PARAMS = {"scheme": "dlmt", "mode": "mat_mmt", "max_v_add": 256, "max_v_mul": 10}
PASSPHRASE = "correct horse battery staple"
posix = pytest.mark.skipif(os.name != "posix", reason="permissions and special files of POSIX")


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least costs that loading accepts."""
    for name, cost in zip(("MEMORY_KIB", "ITERATIONS", "LANES"), (19 * 1024, 1, 1), strict=True):
        monkeypatch.setattr(keyfile, name, cost)


@pytest.fixture
def plain(key: dlmt.Key, tmp_path: Path) -> Path:
    key.save(tmp_path / "plain.dlmtkey", params=PARAMS)
    return tmp_path / "plain.dlmtkey"


@pytest.fixture
def sealed(key: dlmt.Key, tmp_path: Path) -> Path:
    key.save(tmp_path / "sealed.dlmtkey", PASSPHRASE, params=PARAMS)
    return tmp_path / "sealed.dlmtkey"


def canonical(value: Any) -> bytes:
    """Canonical JSON as the contract words it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(canonical({name: v for name, v in document.items() if name != "sha256"})).hexdigest()


def argon2(passphrase: bytes, seal: dict[str, Any]) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    costs = {"iterations": seal["iterations"], "lanes": seal["lanes"], "memory_cost": seal["memory_kib"]}
    return Argon2id(salt=base64.b64decode(seal["salt"]), length=32, **costs).derive(passphrase)


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE, " ", "ключ ключ", "x" * 5000], ids=lambda p: str(p)[:20])
@pytest.mark.parametrize("params", [None, {}, PARAMS, {"deep": [{"ä": [1, None, True, "\n"]}]}], ids=str)
def test_round_trip(passphrase: str | None, params: Any, secret: bytes, tmp_path: Path) -> None:
    path, key = tmp_path / "k.dlmtkey", dlmt.Key(secret, params)
    key.save(path, passphrase)
    again = dlmt.Key.load(path, passphrase)
    assert again == key
    assert again.params == params
    assert keyfile.is_sealed(path) == (passphrase is not None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["k.dlmtkey"]


def test_given_params_replace_the_keys_own(tmp_path: Path) -> None:
    dlmt.Key(bytes(32), {"a": 1}).save(tmp_path / "k", params={"b": 2})
    assert dlmt.Key.load(str(tmp_path / "k")).params == {"b": 2}


def test_an_unsealed_file_as_the_contract_words_it(plain: Path, secret: bytes, key: dlmt.Key) -> None:
    document = json.loads(plain.read_text())
    assert document.pop("sha256") == hashlib.sha256(canonical(document)).hexdigest()
    assert base64.b64decode(document.pop("secret")) == secret
    common = {"format": "dlmt-key", "version": 1, "contract": "dlmt-fast/v1"}
    assert document == common | {"fingerprint": key.fingerprint, "params": PARAMS}


def test_a_sealed_file_as_the_contract_words_it(sealed: Path, secret: bytes, key: dlmt.Key) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    document = json.loads(sealed.read_text())
    assert document.pop("sha256") == hashlib.sha256(canonical(document)).hexdigest()
    seal = document["seal"]
    ciphertext = base64.b64decode(seal.pop("ciphertext"))
    assert len(ciphertext) == 48
    wrapping, nonce = argon2(PASSPHRASE.encode(), seal), base64.b64decode(seal["nonce"])
    assert AESGCM(wrapping).decrypt(nonce, ciphertext, canonical(document)) == secret
    assert (len(nonce), len(base64.b64decode(seal["salt"]))) == (12, 16)
    names = {"kdf": "argon2id", "cipher": "aes-256-gcm"}
    assert {name: seal[name] for name in names} == names
    assert set(document) == {"format", "version", "contract", "fingerprint", "params", "seal"}
    assert document["fingerprint"] == key.fingerprint


def test_a_sealed_file_written_by_another_program(secret: bytes, key: dlmt.Key, tmp_path: Path) -> None:
    """Made here from the words of the contract alone; fields in another order, without line breaks."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = base64.b64encode(bytes(range(16))).decode(), base64.b64encode(bytes(range(12))).decode()
    seal: dict[str, Any] = {"nonce": nonce, "salt": salt, "cipher": "aes-256-gcm", "kdf": "argon2id"}
    seal |= {"lanes": 2, "iterations": 2, "memory_kib": 20000}
    document = {"params": None, "seal": seal, "fingerprint": key.fingerprint, "contract": "dlmt-fast/v1"}
    document |= {"version": 1, "format": "dlmt-key"}
    tagged = AESGCM(argon2(b"pass", seal)).encrypt(bytes(range(12)), secret, canonical(document))
    seal["ciphertext"] = base64.b64encode(tagged).decode()
    document["sha256"] = digest(document)
    (tmp_path / "k").write_text(json.dumps(document))
    assert dlmt.Key.load(tmp_path / "k", "pass") == key


def test_the_real_costs(monkeypatch: pytest.MonkeyPatch, key: dlmt.Key, tmp_path: Path) -> None:
    assert REAL_COSTS == (262144, 3, 4)
    for name, cost in zip(("MEMORY_KIB", "ITERATIONS", "LANES"), REAL_COSTS, strict=True):
        monkeypatch.setattr(keyfile, name, cost)
    key.save(tmp_path / "k", PASSPHRASE)
    seal = json.loads((tmp_path / "k").read_text())["seal"]
    assert (seal["memory_kib"], seal["iterations"], seal["lanes"]) == REAL_COSTS
    assert dlmt.Key.load(tmp_path / "k", PASSPHRASE) == key


def test_two_saves_share_nothing_secret(key: dlmt.Key, tmp_path: Path) -> None:
    seals = []
    for name in "ab":
        key.save(tmp_path / name, PASSPHRASE)
        seals.append(json.loads((tmp_path / name).read_text())["seal"])
    for field in ("salt", "nonce", "ciphertext"):
        assert seals[0][field] != seals[1][field]


@posix
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
@pytest.mark.parametrize("overwrite", [False, True])
def test_mode_0600_whatever_the_umask(passphrase: str | None, overwrite: bool, key: dlmt.Key, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key.save(tmp_path / "k", passphrase, overwrite=overwrite)
    finally:
        os.umask(before)
    assert (tmp_path / "k").stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("params", [{"a": 1.5}, {"a": {1: 2}}, {"a": object()}, {"a": "\ud800"}, {"a": b"x"}, {1: 2}])
def test_params_that_json_cannot_hold_are_refused(params: Any, key: dlmt.Key, tmp_path: Path) -> None:
    for passphrase in (None, PASSPHRASE):
        with pytest.raises(ParameterError, match="plain JSON"):
            key.save(tmp_path / "k", passphrase, params=params)
    assert not list(tmp_path.iterdir())


def test_params_that_are_too_large_are_refused(key: dlmt.Key, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="too large"):
        key.save(tmp_path / "k", params={"a": "x" * 65536})
    assert not list(tmp_path.iterdir())


# --- overwriting -----------------------------------------------------------------------------------------------------


def test_an_existing_file_is_refused(plain: Path) -> None:
    before = plain.read_bytes()
    with pytest.raises(KeyExistsError, match="overwrite=True") as caught:
        dlmt.Key.generate().save(plain)
    assert isinstance(caught.value, FileExistsError)
    assert plain.read_bytes() == before


def test_overwrite_replaces(plain: Path) -> None:
    other = dlmt.Key.generate()
    other.save(plain, overwrite=True)
    assert dlmt.Key.load(plain) == other
    assert list(plain.parent.iterdir()) == [plain]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failed_overwrite_leaves_the_old_file(failing: str, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("no space left")

    before = plain.read_bytes()
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="no space"):
        dlmt.Key.generate().save(plain, overwrite=True)
    assert plain.read_bytes() == before
    assert list(plain.parent.iterdir()) == [plain]


def test_a_failed_creation_leaves_nothing(key: dlmt.Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="input/output"):
        key.save(tmp_path / "k")
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.parametrize("overwrite", [False, True])
def test_file_and_directory_are_synced(
    overwrite: bool, key: dlmt.Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, real = [], os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    key.save(tmp_path / "k", overwrite=overwrite)
    assert synced == [(tmp_path / "k").stat().st_ino, tmp_path.stat().st_ino]


@posix
@pytest.mark.parametrize("linked", ["missing", "plain.dlmtkey"])
def test_a_link_is_not_followed_when_saving(linked: str, plain: Path) -> None:
    before, link = plain.read_bytes(), plain.with_name("link")
    link.symlink_to(plain.with_name(linked))
    with pytest.raises(KeyExistsError):
        dlmt.Key.generate().save(link)
    assert plain.read_bytes() == before
    assert not plain.with_name("missing").exists()


# --- who can read it -------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610, 0o602, 0o666, 0o444])
def test_an_unsealed_file_that_others_can_reach_is_refused(mode: int, plain: Path) -> None:
    plain.chmod(mode)
    with pytest.raises(KeyPermissionError, match=r"chmod 600 .*plain\.dlmtkey"):
        dlmt.Key.load(plain)


@posix
@pytest.mark.parametrize("mode", [0o444, 0o644, 0o600, 0o400])
def test_a_sealed_file_may_be_readable(mode: int, sealed: Path, key: dlmt.Key) -> None:
    sealed.chmod(mode)
    assert dlmt.Key.load(sealed, PASSPHRASE) == key


@posix
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_an_unsealed_file_of_ones_own(mode: int, plain: Path, key: dlmt.Key) -> None:
    plain.chmod(mode)
    assert dlmt.Key.load(plain) == key


@posix
def test_a_link_is_followed_when_loading(plain: Path, key: dlmt.Key) -> None:
    """Mounted secrets are links; what counts is the file behind."""
    plain.with_name("link").symlink_to(plain)
    assert dlmt.Key.load(plain.with_name("link")) == key
    plain.chmod(0o644)
    with pytest.raises(KeyPermissionError):
        dlmt.Key.load(plain.with_name("link"))


@posix
@pytest.mark.timeout(20)  # a FIFO that is opened as a file waits for ever
@pytest.mark.parametrize("call", [dlmt.Key.load, keyfile.is_sealed], ids=["load", "is_sealed"])
def test_what_is_no_file_is_refused(call: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(KeyDamagedError, match="not a regular file"):
            call(path)
    with pytest.raises(FileNotFoundError):
        call(tmp_path / "missing")


# --- passphrases -----------------------------------------------------------------------------------------------------


def test_a_wrong_passphrase(sealed: Path) -> None:
    for wrong in ("Correct horse battery staple", PASSPHRASE + " ", PASSPHRASE + "\n\n", "x"):
        with pytest.raises(KeyPassphraseError, match="wrong passphrase"):
            dlmt.Key.load(sealed, wrong)


def test_a_missing_passphrase(sealed: Path) -> None:
    with pytest.raises(KeyPassphraseError, match="needs its passphrase"):
        dlmt.Key.load(sealed)


def test_a_passphrase_for_an_unsealed_file_is_not_used(plain: Path, key: dlmt.Key) -> None:
    assert dlmt.Key.load(plain, PASSPHRASE) == key


def test_equal_passphrases(key: dlmt.Key, tmp_path: Path) -> None:
    """One trailing newline, as an editor leaves it, and the two spellings of accents that systems type."""
    composed = unicodedata.normalize("NFC", "pässwörd é")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    spellings = [composed, decomposed, composed + "\n", decomposed + "\r\n"]
    assert len({keyfile.normalise_passphrase(text) for text in spellings}) == 1
    key.save(tmp_path / "k", decomposed + "\n")
    assert dlmt.Key.load(tmp_path / "k", composed) == key


def test_passphrases_that_stay_different() -> None:
    texts = ["a", " a", "a ", "a\n\n", "\na", "A", "a\r"]
    assert len({keyfile.normalise_passphrase(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("empty", ["", "\n", "\r\n"], ids=repr)
def test_an_empty_passphrase_is_refused(empty: str, sealed: Path, key: dlmt.Key) -> None:
    with pytest.raises(KeyPassphraseError, match="empty"):
        dlmt.Key.load(sealed, empty)
    with pytest.raises(KeyPassphraseError, match="empty"):
        key.save(sealed.with_name("k"), empty)
    assert not sealed.with_name("k").exists()


def test_passphrases_of_another_kind_are_refused(sealed: Path, key: dlmt.Key) -> None:
    with pytest.raises(InputTypeError, match="str, got bytes"):
        key.save(sealed.with_name("k"), PASSPHRASE.encode())  # type: ignore[arg-type]
    with pytest.raises(KeyPassphraseError, match="surrogates") as caught:
        dlmt.Key.load(sealed, "hidden\udcff")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "hidden" not in str(caught.value)
