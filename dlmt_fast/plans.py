"""The plans of one key, scheme and set of options: one for each image size, made when an image of that size comes."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any

from .keys import Key, SecretHolder
from .schemes import DLMT, Plan
from .schemes.plan import DTypeLike, Scalars

#: Values (C*H*W) of all plans held at once, of some 24 bytes each: 55 sizes like 3x224x224, or 200 MB a process.
MOST_VALUES = 1 << 23


class Plans(SecretHolder):
    """What transforms hold instead of a plan, since they meet images of several sizes.

    Args:
        key, scheme, normalize, mean, std: as for `scheme.plan`.
        dtype: of the output; None means float32, or int32 for "none".

    Attributes:
        dtype: the name of the output's dtype.

    The plans of past sizes are kept up to `MOST_VALUES`. A CUDA graph that you capture yourself needs its plan to stay,
    so capture `dlmt_fast.encrypt` with a plan of your own there.

    Raises:
        ParameterError: options that can never work are refused before an image comes.
    """

    def __init__(
        self,
        key: Key,
        scheme: DLMT,
        normalize: str = "range",
        dtype: DTypeLike = None,
        mean: Scalars = None,
        std: Scalars = None,
    ) -> None:
        if normalize != "none" and dtype is None:
            dtype = "float32"
        self._key, self._scheme = key, scheme
        self._options: dict[str, Any] = {"normalize": normalize, "dtype": dtype, "mean": mean, "std": std}
        self._made: dict[tuple[int, ...], Plan] = {}
        channels = max(len(v) if isinstance(v, Sized) and getattr(v, "ndim", 1) != 0 else 1 for v in (mean, std))
        self.dtype = self._new((channels, 1, 1)).dtype

    def __getitem__(self, shape: tuple[int, ...]) -> Plan:
        """The plan for images of this (C, H, W)."""
        plan = self._made.get(shape)
        if plan is None:
            plan = self._new(shape)
            self._make_room(math.prod(shape))
            self._made[shape] = plan
        return plan

    def _make_room(self, size: int) -> None:
        """Let the oldest plans go: a folder of photographs may have as many sizes as images."""
        held = sum(math.prod(shape) for shape in tuple(self._made))
        for shape in tuple(self._made):
            if held + size <= MOST_VALUES:
                return
            self._made.pop(shape, None)
            held -= math.prod(shape)

    def _new(self, shape: tuple[int, ...]) -> Plan:
        return self._scheme.plan(self._key, shape, **self._options)

    def __repr__(self) -> str:
        """The public parameters and the key's fingerprint, as they stand in the repr of a transform."""
        given = [f"{name}={value!r}" for name, value in self._options.items() if value is not None]
        return ", ".join([f"key={self._key.fingerprint!r}", repr(self._scheme), *given])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": {}}  # a child makes its plans anew; they are larger than the key
