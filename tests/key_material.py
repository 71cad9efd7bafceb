"""What of a key could lie in a file, and how: what tests of secrecy search for."""

from __future__ import annotations

import base64
import hashlib
import hmac

import dlmt_fast as dlmt


def hkdf(secret: bytes, info: str) -> bytes:
    """The first 32 bytes that are derived for a purpose."""
    prk = hmac.new(b"dlmt-fast/v1", secret, hashlib.sha256).digest()
    return hmac.new(prk, info.encode() + b"\1", hashlib.sha256).digest()


def spellings(secret: bytes) -> list[bytes]:
    """How secret bytes could lie in a file: raw, hex, and base64 inside a longer text at any offset."""
    found = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    for skip in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.append(encode(bytes(skip) + secret)[4:-4])
    return found


def key_material(secret: bytes, store_id: str, scheme: dlmt.DLMT, shape: tuple[int, int, int]) -> list[bytes]:
    """Every spelling of the secret, its fingerprint, and all that is derived for a store of images of this shape."""
    key, params = dlmt.Key(secret), scheme.params
    size = "x".join(map(str, shape))
    settings = "/".join(str(params.get(name, 0)) for name in ("max_v_add", "max_v_mul", "rise_v"))
    infos = ["store-id", *(f"{purpose}/{store_id}" for purpose in ("names", "header", "ledger", "order"))]
    infos += [f"matrix/{scheme.mode}/{role}/{size}/{settings}" for role in ("add", "mul")]
    derived = [hkdf(secret, info) for info in infos]
    assert key.sub(32, "order", store_id) in derived, "these are the package's own"
    assert key.sub(48, "matrix", scheme.mode, "add", size, *settings.split("/"))[:32] in derived
    fingerprint = [key.fingerprint.encode(), *spellings(bytes.fromhex(key.fingerprint))]
    return fingerprint + [spelling for value in (secret, *derived) for spelling in spellings(value)]
