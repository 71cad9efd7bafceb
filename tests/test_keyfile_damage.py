"""Damaged and hostile key files: each fault has its own error class and its own words."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import dlmt_fast as dlmt
from dlmt_fast import keyfile
from dlmt_fast.errors import (
    KeyDamagedError,
    KeyFingerprintError,
    KeyPassphraseError,
    KeyVersionError,
)

PASSPHRASE = "correct horse battery staple"
SECRET = bytes(range(32))
PARAMS = {"scheme": "dlmt", "mode": "mat_mmt", "max_v_add": 256, "max_v_mul": 10}
Change = Callable[[dict[str, Any]], Any]


def make(folder: Path, passphrase: str | None) -> Path:
    """A key file whose derivation has the least costs that loading accepts."""
    path = folder / ("plain.dlmtkey" if passphrase is None else "sealed.dlmtkey")
    with pytest.MonkeyPatch.context() as patch:
        for name, cost in zip(("MEMORY_KIB", "ITERATIONS", "LANES"), (19 * 1024, 1, 1), strict=True):
            patch.setattr(keyfile, name, cost)
        dlmt.Key(SECRET).save(path, passphrase, params=PARAMS)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return make(tmp_path, None)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return make(tmp_path, PASSPHRASE)


def digest(document: dict[str, Any]) -> str:
    body = {name: value for name, value in document.items() if name != "sha256"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def rewrite(path: Path, change: Change, renew_digest: bool = True) -> None:
    """Change the document; by default with a checksum that fits, as a careful attacker would."""
    document = json.loads(path.read_text())
    change(document)
    if renew_digest:
        document["sha256"] = digest(document)
    path.write_text(json.dumps(document))


def no_derivation(*arguments: Any) -> NoReturn:
    raise AssertionError("the key derivation was started")


def setting(*names: str, to: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        for name in names[:-1]:
            document = document[name]
        document[names[-1]] = to

    return change


def removing(*names: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        for name in names[:-1]:
            document = document[name]
        del document[names[-1]]

    return change


def b64(length: int) -> str:
    return base64.b64encode(bytes(length)).decode()


COMMON = ["format", "version", "contract", "fingerprint", "params", "sha256"]
SEAL = ["kdf", "memory_kib", "iterations", "lanes", "salt", "cipher", "nonce", "ciphertext"]


def test_the_fields_are_those_of_the_contract(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert set(json.loads(plain.read_text())) == {*COMMON, "secret"}
    document = json.loads(make(tmp_path_factory.mktemp("sealed"), PASSPHRASE).read_text())
    assert set(document) == {*COMMON, "seal"}
    assert set(document["seal"]) == set(SEAL)


@pytest.mark.parametrize("field", [*COMMON, "secret"])
def test_a_missing_field(field: str, plain: Path) -> None:
    rewrite(plain, removing(field), renew_digest=field != "sha256")
    with pytest.raises(KeyDamagedError):
        dlmt.Key.load(plain)


@pytest.mark.parametrize("field", ["seal", *SEAL])
def test_a_missing_field_of_the_seal(field: str, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "_derive", no_derivation)
    rewrite(sealed, removing("seal") if field == "seal" else removing("seal", field))
    with pytest.raises(KeyDamagedError, match="fields"):
        dlmt.Key.load(sealed, PASSPHRASE)


OTHER_SECRET = setting("secret", to=b64(32))
CHANGES = {
    "format": (setting("format", to="dlmt-store"), "format"),
    "fingerprint": (setting("fingerprint", to="0" * 32), "checksum"),
    "params": (setting("params", "max_v_add", to=257), "checksum"),
    "secret": (OTHER_SECRET, "checksum"),
    "sha256": (setting("sha256", to="0" * 64), "checksum"),
    "sha256 in capitals": (lambda document: document.update(sha256=document["sha256"].upper()), "checksum"),
    "sha256 as a number": (setting("sha256", to=5), "checksum"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_altered_field_is_damage(name: str, plain: Path) -> None:
    change, words = CHANGES[name]
    rewrite(plain, change, renew_digest=False)
    with pytest.raises(KeyDamagedError, match=words):
        dlmt.Key.load(plain)


@pytest.mark.parametrize("field", SEAL)
def test_one_altered_field_of_the_seal_is_damage(field: str, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "_derive", no_derivation)
    value = json.loads(sealed.read_text())["seal"][field]
    other = value + 1 if isinstance(value, int) else ("A" if value[0] != "A" else "B") + value[1:]
    rewrite(sealed, setting("seal", field, to=other), renew_digest=False)
    with pytest.raises(KeyDamagedError, match="checksum"):
        dlmt.Key.load(sealed, PASSPHRASE)


ODD_VALUES = {
    "fingerprint": [None, 5, ["0" * 32]],
    "params": [5, "{}", [], True],
    "secret": [None, 5, "", "=", b64(31), b64(33), b64(32)[:-1], b64(32) + "\n", "ä" * 44, "*" * 44],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in ODD_VALUES.items() for value in values], ids=repr
)
def test_odd_values_under_a_good_checksum(field: str, value: Any, plain: Path) -> None:
    rewrite(plain, setting(field, to=value))
    with pytest.raises(KeyDamagedError, match=field):
        dlmt.Key.load(plain)


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in ("salt", "nonce", "ciphertext") for value in (None, 5, "", "*", b64(11), b64(49))],
    ids=repr,
)
def test_odd_values_in_the_seal(field: str, value: Any, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "_derive", no_derivation)
    rewrite(sealed, setting("seal", field, to=value))
    with pytest.raises(KeyDamagedError, match=field):
        dlmt.Key.load(sealed, PASSPHRASE)


@pytest.mark.parametrize("value", [None, 5, "x", [], {}], ids=repr)
def test_a_seal_that_is_none(value: Any, sealed: Path) -> None:
    rewrite(sealed, setting("seal", to=value))
    with pytest.raises(KeyDamagedError, match="seal"):
        dlmt.Key.load(sealed, PASSPHRASE)


@pytest.mark.parametrize(
    ("field", "value"), [("version", 2), ("version", 0), ("contract", "dlmt-fast/v2"), ("contract", "")]
)
def test_another_version(field: str, value: Any, plain: Path) -> None:
    rewrite(plain, setting(field, to=value))
    with pytest.raises(KeyVersionError, match="upgrade"):
        dlmt.Key.load(plain)


@pytest.mark.parametrize("value", [None, "1", 1.0, True, [1]], ids=repr)
def test_a_version_that_is_no_integer(value: Any, plain: Path) -> None:
    rewrite(plain, setting("version", to=value))
    with pytest.raises(KeyDamagedError, match="version"):
        dlmt.Key.load(plain)


@pytest.mark.parametrize("value", [None, 1, [], {}], ids=repr)
def test_a_contract_that_is_no_string(value: Any, plain: Path) -> None:
    rewrite(plain, setting("contract", to=value))
    with pytest.raises(KeyDamagedError, match="contract"):
        dlmt.Key.load(plain)


def test_a_newer_version_may_have_other_fields(plain: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        del document["secret"]
        document |= {"version": 2, "secrets": []}

    rewrite(plain, change)
    with pytest.raises(KeyVersionError):
        dlmt.Key.load(plain)


@pytest.mark.parametrize(("field", "value"), [("kdf", "scrypt"), ("kdf", None), ("cipher", "xor"), ("cipher", 1)])
def test_an_unknown_method(field: str, value: Any, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "_derive", no_derivation)
    rewrite(sealed, setting("seal", field, to=value))
    with pytest.raises(KeyVersionError, match="unknown method"):
        dlmt.Key.load(sealed, PASSPHRASE)


def test_unknown_fields(plain: Path, sealed: Path) -> None:
    rewrite(sealed, setting("seal", "extra", to=1))
    with pytest.raises(KeyDamagedError, match="seal has unknown"):
        dlmt.Key.load(sealed, PASSPHRASE)
    rewrite(plain, setting("comment", to="hello"))
    with pytest.raises(KeyDamagedError, match="comment"):
        dlmt.Key.load(plain)


def test_secret_and_seal_together(sealed: Path) -> None:
    rewrite(sealed, OTHER_SECRET)
    with pytest.raises(KeyDamagedError, match="secret"):
        dlmt.Key.load(sealed, PASSPHRASE)


@pytest.mark.parametrize("field", ["format", "sha256", "params", "secret", "max_v_add"])
def test_a_duplicate_field(field: str, plain: Path) -> None:
    text = plain.read_text()
    value = json.loads(text).get(field, 256)
    before = f'"{field}":'
    assert text.count(before) == 1
    plain.write_text(text.replace(before, f"{before} {json.dumps(value)}, {before}"))
    with pytest.raises(KeyDamagedError, match=f"'{field}' appears twice"):
        dlmt.Key.load(plain)


def test_another_fingerprint(plain: Path) -> None:
    rewrite(plain, setting("fingerprint", to=dlmt.Key(bytes(32)).fingerprint))
    with pytest.raises(KeyFingerprintError, match="two keys"):
        dlmt.Key.load(plain)


def test_another_secret(plain: Path) -> None:
    rewrite(plain, OTHER_SECRET)
    with pytest.raises(KeyFingerprintError) as caught:
        dlmt.Key.load(plain)
    assert b64(32) not in str(caught.value)


@pytest.mark.parametrize("names", [("fingerprint",), ("params", "max_v_add"), ("seal", "nonce"), ("seal", "salt")])
def test_the_seal_covers_everything(names: tuple[str, ...], sealed: Path) -> None:
    """Altered under a good checksum: the tag does not fit, which only a wrong passphrase explains."""
    old = json.loads(sealed.read_text())
    for name in names:
        old = old[name]
    rewrite(sealed, setting(*names, to=257 if isinstance(old, int) else ("A" if old[0] != "A" else "B") + old[1:]))
    with pytest.raises(KeyPassphraseError, match="wrong passphrase"):
        dlmt.Key.load(sealed, PASSPHRASE)


ABSURD = {
    "memory_kib": [0, 1, 19 * 1024 - 1, 4 * 1024 * 1024 + 1, 2**40, 10**30, -1, 1.5, True, None, "262144"],
    "iterations": [0, 17, 10**9, -1, 1.0, True, None],
    "lanes": [0, 17, 2**32, -1, 1.0, True, None],
}


@pytest.mark.parametrize(("field", "cost"), [(f, cost) for f, costs in ABSURD.items() for cost in costs])
def test_absurd_costs_are_refused_before_any_work(
    field: str, cost: Any, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfile, "_derive", no_derivation)
    rewrite(sealed, setting("seal", field, to=cost), renew_digest=not isinstance(cost, float))
    with pytest.raises(KeyDamagedError, match=r"checksum|cannot hold" if isinstance(cost, float) else field):
        dlmt.Key.load(sealed, PASSPHRASE)


@pytest.mark.parametrize(
    ("field", "cost"),
    [("memory_kib", 19 * 1024), ("memory_kib", 4 * 1024 * 1024), ("iterations", 16), ("lanes", 16), ("lanes", 1)],
)
def test_the_largest_costs_reach_the_derivation(
    field: str, cost: int, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfile, "_derive", no_derivation)
    rewrite(sealed, setting("seal", field, to=cost))
    with pytest.raises(AssertionError, match="was started"):
        dlmt.Key.load(sealed, PASSPHRASE)


TEXTS = {
    "empty": b"",
    "blank": b" \n",
    "null": b"null",
    "list": b"[]",
    "string": b'"dlmt-key"',
    "not utf-8": b'{"format": "\xff"}',
    "utf-16": '{"format": "dlmt-key"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "nan": b'{"format": NaN}',
    "infinite": b'{"format": "dlmt-key", "version": 1e999}',
    "long number": b'{"format": "dlmt-key", "version": ' + b"1" * 6000 + b"}",
    "zip": b"PK\x03\x04" + bytes(100),
    "too large": b" " * 65537,
    "surrogate": b'{"format": "dlmt-key", "\\ud800": 1, "\\ud800": 2}',
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_key_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(TEXTS[name])
    for call in (dlmt.Key.load, keyfile.is_sealed):
        with pytest.raises(KeyDamagedError, match="damaged or not a key file"):
            call(tmp_path / "k")


@pytest.mark.parametrize("depth", [10, 300, 800, *range(900, 1000, 3), 5000, 20000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_deep_nesting(pair: str, depth: int, plain: Path) -> None:
    """Whichever part of the parser or of the checksum runs out of stack first."""
    opening = "[" if pair == "[]" else '{"a":'
    nested = opening * depth + ("]" if pair == "[]" else "1}" + "}" * (depth - 1))
    document = json.loads(plain.read_text())
    document["params"] = "HERE"
    plain.write_text(json.dumps(document).replace('"HERE"', nested))
    with pytest.raises(KeyDamagedError):
        dlmt.Key.load(plain)
