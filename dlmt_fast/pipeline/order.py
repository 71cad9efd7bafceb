"""A keyed order of any number of samples that needs no memory: a permutation that is computed number by number.

It is the generalised Feistel network with cycle walking of Black and Rogaway, "Ciphers with Arbitrary Finite Domains"
(CT-RSA 2002, methods 2 and 3): a number below `count` is written as two digits to bases whose product is `count` or
little more, each of ten rounds adds a pseudo-random function of one digit to the other one, and what ends above
`count` goes through again. Ten rounds are those of NIST's FF1 (SP 800-38G). The function is AES-256 over (tweak, round,
digit), of which the first 64 bits are taken; they are reduced without care for the bias, which is under 2**-32 for
fewer than 2**64 numbers.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.int64]

_ROUNDS = 10


class Order:
    """A permutation of `range(count)` from a secret of 32 bytes; another one for each `tweak`."""

    def __init__(self, secret: bytes, count: int, tweak: int = 0) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._count, self._tweak = count, tweak
        first = max(1, math.isqrt(max(0, count - 1)) + 1)
        self._bases = first, max(1, -(-count // first))
        # a block is used as a pseudo-random function of a counter-like input, never to encrypt data
        self._cipher = Cipher(algorithms.AES(secret), modes.ECB())

    def sample(self, places: Any) -> Numbers:
        """Which sample stands at each of these places."""
        return self._walk(places, 1)

    def place(self, samples: Any) -> Numbers:
        """At which place each of these samples stands."""
        return self._walk(samples, -1)

    def _walk(self, numbers: Any, sign: int) -> Numbers:
        found = np.array(numbers, np.int64)
        if found.size and not (found.min() >= 0 and found.max() < self._count):
            raise IndexError(f"numbers below {self._count} were expected, got up to {found.max()}")
        outside = np.arange(len(found))
        while len(outside):
            found[outside] = self._once(found[outside], sign)
            outside = outside[found[outside] >= self._count]
        return found

    def _once(self, numbers: Numbers, sign: int) -> Numbers:
        digits = [numbers % self._bases[0], numbers // self._bases[0]]
        for number in range(_ROUNDS)[::sign]:
            one, other = number % 2, 1 - number % 2
            digits[one] = (digits[one] + sign * self._function(number, digits[other], self._bases[one])) % self._bases[
                one
            ]
        found: Numbers = digits[0] + digits[1] * self._bases[0]
        return found

    def _function(self, number: int, digits: Numbers, base: int) -> Numbers:
        blocks = np.empty((len(digits), 2), "<u8")
        blocks[:, 0], blocks[:, 1] = self._tweak * 256 + number, digits
        words = np.frombuffer(self._cipher.encryptor().update(blocks.tobytes()), "<u8")[::2]
        return (words % np.uint64(base)).astype(np.int64)
