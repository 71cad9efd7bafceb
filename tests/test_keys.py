"""The secret: what is derived from it, where it shows, and when it may leave the process."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import io
import multiprocessing
import pickle
import pprint
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import DlmtError, InputTypeError, ParameterError, SecretExportError
from dlmt_fast.keys import PURPOSES, allow_export


def hkdf(secret: bytes, length: int, info: bytes) -> bytes:
    """HKDF-SHA256 as RFC 5869 words it, under the contract's salt."""
    prk = hmac.new(b"dlmt-fast/v1", secret, hashlib.sha256).digest()
    blocks, previous = b"", b""
    for number in range(1, -(-length // 32) + 1):
        previous = hmac.new(prk, previous + info + bytes([number]), hashlib.sha256).digest()
        blocks += previous
    return blocks[:length]


def spellings(secret: bytes) -> list[str]:
    """How 32 secret bytes could show up in a text."""
    return [
        secret.hex(),
        secret.hex(" "),
        base64.b64encode(secret).decode().rstrip("="),
        repr(secret)[2:-1],
        ", ".join(map(str, secret)),
        secret.decode("latin-1"),
    ]


@pytest.fixture
def random_key() -> tuple[dlmt.Key, bytes]:
    secret = hashlib.sha256(b"a secret with every kind of byte").digest()
    return dlmt.Key(secret), secret


def test_the_purposes_are_a_closed_list() -> None:
    assert {"matrix", "key-id", "store-id", "names", "order", "header", "ledger"} == PURPOSES


@pytest.mark.parametrize("length", [1, 16, 32, 33, 48, 64, 255])
@pytest.mark.parametrize("purpose", sorted(PURPOSES))
def test_sub_is_hkdf(purpose: str, length: int, key: dlmt.Key, secret: bytes) -> None:
    assert key.sub(length, purpose) == hkdf(secret, length, purpose.encode())
    fields = ("mat_mmt", "0", "3x32x32", "a.b-c")
    assert key.sub(length, purpose, *fields) == hkdf(secret, length, "/".join((purpose, *fields)).encode())


def test_the_fingerprint_is_derived(key: dlmt.Key, secret: bytes) -> None:
    assert key.fingerprint == hkdf(secret, 16, b"key-id").hex()


@pytest.mark.parametrize("purpose", ["", "Matrix", "matrix ", "matrices", "key_id", "matrix/mat"])
def test_other_purposes_are_refused(purpose: str, key: dlmt.Key) -> None:
    with pytest.raises(ParameterError, match="closed list"):
        key.sub(16, purpose)


@pytest.mark.parametrize("field", ["", "A", "a/b", "a b", "ä", "a\n", "\n", "+1", "a,b", "\x00"])
def test_other_characters_in_fields_are_refused(field: str, key: dlmt.Key) -> None:
    with pytest.raises(ParameterError, match="characters"):
        key.sub(16, "matrix", "good", field)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(ParameterError, match=f"got {length}"):
        dlmt.Key(bytes(length))


@pytest.mark.parametrize(
    "secret", ["a" * 32, None, 32, [0] * 32, memoryview(bytes(32))], ids=lambda s: type(s).__name__
)
def test_other_kinds_are_refused(secret: Any) -> None:
    with pytest.raises(InputTypeError, match="bytes"):
        dlmt.Key(secret)


def test_generate() -> None:
    assert len({dlmt.Key.generate().fingerprint for _ in range(20)}) == 20
    assert dlmt.Key.generate({"a": 1}).params == {"a": 1}


def test_a_bytearray_is_copied() -> None:
    memory = bytearray(32)
    key = dlmt.Key(memory)
    memory[0] = 1
    assert key == dlmt.Key(bytes(32))


def test_params_are_copied() -> None:
    given = {"mode": "mat"}
    key = dlmt.Key(bytes(32), given)
    given["mode"] = "mmt"
    key.params["mode"] = "mmt"  # type: ignore[index]
    assert key.params == {"mode": "mat"}
    assert dlmt.Key(bytes(32)).params is None


def test_equality_and_hash(key: dlmt.Key, secret: bytes) -> None:
    same, other = dlmt.Key(secret, {"a": 1}), dlmt.Key(bytes(32))
    assert key == same
    assert hash(key) == hash(same)
    assert key != other
    assert len({key, same, other}) == 2
    assert key != secret
    assert key != key.fingerprint


def test_texts_show_the_fingerprint_alone(random_key: tuple[dlmt.Key, bytes]) -> None:
    key, secret = random_key
    plan = dlmt.DLMT().plan(key, (1, 2, 2))
    texts = [
        repr(key),
        str(key),
        f"{key}",
        f"{key!s:>80}",
        f"{[key]}",
        pprint.pformat({"key": key}),
        repr(plan),
        str(plan),
    ]
    for text in texts:
        assert key.fingerprint in text
        assert not [s for s in spellings(secret) if s in text]
    with pytest.raises(TypeError, match="__dict__"):
        vars(key)


IMAGES = np.zeros((2, 1, 2, 2), np.uint8)
#: Calls that raise with the key, or something that holds it, at hand.
MISTAKES: dict[str, Callable[[Any, Any], Any]] = {
    "purpose": lambda key, plan: key.sub(16, "other"),
    "field": lambda key, plan: key.sub(16, "matrix", "A"),
    "shape": lambda key, plan: dlmt.DLMT().plan(key, (0, 2, 2)),
    "plan for a key": lambda key, plan: dlmt.DLMT().plan(plan, (1, 2, 2)),
    "key for a normalization": lambda key, plan: dlmt.DLMT().plan(key, (1, 2, 2), normalize=key),
    "key for a mean": lambda key, plan: dlmt.DLMT().plan(key, (1, 2, 2), dtype="float32", mean=key),
    "key for images": lambda key, plan: dlmt.encrypt(key, plan),
    "key for a plan": lambda key, plan: dlmt.encrypt(IMAGES, key),
    "key for out": lambda key, plan: dlmt.encrypt(IMAGES, plan, out=key),
    "key for a backend": lambda key, plan: dlmt.encrypt(IMAGES, plan, backend=key),
    "decrypt": lambda key, plan: dlmt.decrypt(IMAGES.astype(np.int32) - 1, plan, backend="reference"),
    "save": lambda key, plan: key.save("/nonexistent/directory/k.dlmtkey"),
    "pickle key": lambda key, plan: pickle.dumps(key),
    "pickle plan": lambda key, plan: pickle.dumps(plan),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_exceptions_do_not_show_the_secret(name: str, random_key: tuple[dlmt.Key, bytes]) -> None:
    key, secret = random_key
    plan = dlmt.DLMT().plan(key, (1, 2, 2), normalize="none")
    with pytest.raises((DlmtError, OSError)) as caught:
        MISTAKES[name](key, plan)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(caught.value.args)
    assert not [s for s in spellings(secret) if s in text]


def holders(key: dlmt.Key) -> dict[str, Any]:
    plan = dlmt.DLMT().plan(key, (1, 2, 2))
    return {"key": key, "plan": plan, "coefficients": plan.coefficients("CHW")}


@pytest.mark.parametrize("name", ["key", "plan", "coefficients"])
def test_copies_share_the_object(name: str, key: dlmt.Key) -> None:
    holder = holders(key)[name]
    assert copy.copy(holder) is holder
    assert copy.deepcopy({"a": [holder]})["a"][0] is holder


@pytest.mark.parametrize("name", ["key", "plan", "coefficients"])
def test_pickle_is_refused(name: str, key: dlmt.Key) -> None:
    holder = holders(key)[name]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(SecretExportError, match="allow_export"):
            pickle.dumps({"a": [holder]}, protocol)


@pytest.mark.parametrize("name", ["key", "plan"])
def test_torch_save_is_refused(name: str, key: dlmt.Key) -> None:
    torch = pytest.importorskip("torch")
    holder, sink = holders(key)[name], io.BytesIO()
    with pytest.raises(SecretExportError, match="allow_export"):
        torch.save({"model": [1, 2], "transform": holder}, sink)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))  # older ones cannot take __slots__
def test_pickle_is_allowed_in_the_block_and_only_there(protocol: int, key: dlmt.Key) -> None:
    plan, images = dlmt.DLMT().plan(key, (1, 2, 2)), np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    with allow_export():
        key_again, plan_again = pickle.loads(pickle.dumps((key, plan), protocol))
    assert key_again == key
    assert key_again.fingerprint == key.fingerprint
    assert repr(plan_again) == repr(plan)
    expected = dlmt.encrypt(images, plan, backend="reference")
    np.testing.assert_array_equal(dlmt.encrypt(images, plan_again, backend="reference"), expected)
    with pytest.raises(SecretExportError):
        pickle.dumps(key_again, protocol)


def test_the_block_ends_with_an_exception_too(key: dlmt.Key) -> None:
    with pytest.raises(ZeroDivisionError), allow_export():
        raise ZeroDivisionError
    with pytest.raises(SecretExportError):
        pickle.dumps(key)


def test_params_survive_a_pickle() -> None:
    with allow_export():
        assert pickle.loads(pickle.dumps(dlmt.Key(bytes(32), {"a": 1}))).params == {"a": 1}


#: What the spawned process runs; it tells as well whether it may pickle the key itself.
IN_THE_CHILD = """
import pickle
import numpy as np, dlmt_fast as dlmt
try:
    pickle.dumps(key)
    refused = False
except dlmt.errors.SecretExportError:
    refused = True
y = dlmt.encrypt(np.arange(4, dtype=np.uint8).reshape(1, 2, 2), plan, backend="reference")
sender.send((key.fingerprint, y.tolist(), refused))
sender.close()
"""


def test_a_spawned_child_gets_key_and_plan(key: dlmt.Key) -> None:
    context = multiprocessing.get_context("spawn")
    plan, images = dlmt.DLMT().plan(key, (1, 2, 2)), np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=exec, args=(IN_THE_CHILD, {"sender": sender, "key": key, "plan": plan}))
    child.start()
    sender.close()
    try:
        assert receiver.poll(60), "the child sent nothing"
        fingerprint, y, refused = receiver.recv()
    finally:
        child.join(60)
    assert child.exitcode == 0
    assert fingerprint == key.fingerprint
    assert y == dlmt.encrypt(images, plan, backend="reference").tolist()
    assert refused
    with pytest.raises(SecretExportError):
        pickle.dumps(key)


def test_a_queue_is_no_way_out(key: dlmt.Key) -> None:
    """Only starting a child counts: what is sent to a running one is pickled outside of that."""
    from multiprocessing.reduction import ForkingPickler

    with pytest.raises(SecretExportError):
        ForkingPickler.dumps(key)


def test_import_loads_numpy_alone(tmp_path: Path) -> None:
    heavy = ["torch", "torchvision", "numba", "cryptography", "PIL", "typer", "rich", "skimage", "ray", "zarr"]
    code = f"import sys, dlmt_fast; print('numpy' in sys.modules, [m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "True []"
