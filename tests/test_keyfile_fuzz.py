"""Random and mutated key files: only a `KeyFileError` comes out, or the same key."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dlmt_fast as dlmt
from dlmt_fast import keyfile
from dlmt_fast.errors import KeyFileError

PASSPHRASE = "correct horse battery staple"
SECRET = bytes(range(32))
LEAST_COSTS = (19 * 1024, 1, 1)


def digest(document: dict[str, Any]) -> str:
    body = {name: value for name, value in document.items() if name != "sha256"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A valid file of each kind, at the least costs that loading accepts; the examples overwrite a third."""
    folder = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as patch:
        for name, cost in zip(("MEMORY_KIB", "ITERATIONS", "LANES"), LEAST_COSTS, strict=True):
            patch.setattr(keyfile, name, cost)
        dlmt.Key(SECRET).save(folder / "plain")
        dlmt.Key(SECRET).save(folder / "sealed", PASSPHRASE)
    return {"plain": folder / "plain", "sealed": folder / "sealed"}


def check_mutant(original: Path, data: bytes) -> None:
    """A mutant raises a KeyFileError, or is the same key still."""
    path = original.with_name("mutant")
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        real = keyfile._derive

        def derive(passphrase: str, salt: bytes, *costs: int) -> bytes:
            """A mutant may ask for 4 GiB, which loading accepts: no derivation but the original's."""
            return real(passphrase, salt, *costs) if costs == LEAST_COSTS else bytes(32)

        patch.setattr(keyfile, "_derive", derive)
        try:
            key = dlmt.Key.load(path, PASSPHRASE)
        except KeyFileError:
            return
    assert key == dlmt.Key(SECRET)


@given(data=st.binary(max_size=400))
def test_random_bytes(data: bytes, originals: dict[str, Path]) -> None:
    path = originals["plain"].with_name("random")
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        dlmt.Key.load(path, PASSPHRASE)


@given(data=st.data(), kind=st.sampled_from(["plain", "sealed"]))
def test_mutated_bytes(data: st.DataObject, kind: str, originals: dict[str, Path]) -> None:
    text = bytearray(originals[kind].read_bytes())
    for _ in range(data.draw(st.integers(1, 3), "number of mutations")):
        at = data.draw(st.integers(0, max(len(text) - 1, 0)), "at")
        to = data.draw(st.integers(at, min(at + 40, len(text))), "to")
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat", "truncate"]), "how")
        if how == "flip" and text:
            text[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
        elif how == "cut":
            del text[at:to]
        elif how == "insert":
            text[at:at] = data.draw(st.binary(max_size=20), "inserted")
        elif how == "repeat":
            text[at:at] = text[at:to]
        else:
            del text[at:]
    check_mutant(originals[kind], bytes(text))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=50)
    | st.just(base64.b64encode(bytes(32)).decode()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data(), kind=st.sampled_from(["plain", "sealed"]), renew_digest=st.booleans(), in_seal=st.booleans())
def test_mutated_json(
    data: st.DataObject, kind: str, renew_digest: bool, in_seal: bool, originals: dict[str, Path]
) -> None:
    document = json.loads(originals[kind].read_text())
    part = document["seal"] if in_seal and kind == "sealed" else document
    before = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 2), "number of mutations")):
        name = data.draw(st.sampled_from(sorted(part)) | st.text(max_size=8), "field")
        how = data.draw(st.sampled_from(["set", "delete", "swap"]), "how")
        if how == "set":
            part[name] = data.draw(JSON_VALUES, "value")
        elif how == "delete":
            part.pop(name, None)
        else:
            part[name] = part.get(data.draw(st.sampled_from(sorted(before)), "from"))
    if renew_digest:
        document["sha256"] = digest(document)
    check_mutant(originals[kind], json.dumps(document).encode())
