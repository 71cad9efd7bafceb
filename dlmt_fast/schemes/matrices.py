"""Secret uniform integer matrices from a key (contract section 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..keys import Key

Shape = tuple[int, int, int]
_BLOCK = 1 << 14  # values drawn at once: what is drawn stays in the near caches until it is a value


def secret_matrix(key: Key, fields: tuple[str, ...], shape: Shape, max_v: int) -> NDArray[np.int32]:
    """A matrix of `shape` (C, H, W), uniform in [1, max_v], in C order.

    Args:
        key: the secret.
        fields: what tells this matrix from all others, in the contract's order (mode, role, shape, parameters).
        shape: (C, H, W).
        max_v: the largest value, at least 1.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    okm = key.sub(48, "matrix", *fields)
    stream = Cipher(AES(okm[:32]), CTR(okm[32:48])).encryptor()
    count = shape[0] * shape[1] * shape[2]
    largest, divisor = np.uint32(0xFFFFFFFF - (1 << 32) % max_v), np.uint32(max_v)  # above, u mod max_v is not uniform
    values = np.empty(count, np.int32)
    filled = 0
    while filled < count:
        u = np.frombuffer(stream.update(bytes(4 * min(_BLOCK, count - filled))), "<u4")
        if u.max() > largest:
            u = u[u <= largest]
        # u % max_v: NumPy divides by a number that it knows many times as fast as it takes remainders.
        values[filled : filled + u.size] = 1 + (u - u // divisor * divisor)
        filled += u.size
    return values.reshape(shape)
