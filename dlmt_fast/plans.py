"""The plans of one key, scheme and set of options: one for each image size, made when an image of that size comes."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from .keys import Key, SecretHolder
from .schemes import DLMT, Plan
from .schemes.plan import DTypeLike, Scalars


class Plans(SecretHolder):
    """What transforms hold instead of a plan, since they meet images of several sizes.

    Args:
        key, scheme, normalize, mean, std: as for `scheme.plan`.
        dtype: of the output; None means float32, or int32 for "none".

    Attributes:
        dtype: the name of the output's dtype.

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
            plan = self._made[shape] = self._new(shape)
        return plan

    def _new(self, shape: tuple[int, ...]) -> Plan:
        return self._scheme.plan(self._key, shape, **self._options)

    def __repr__(self) -> str:
        """The public parameters and the key's fingerprint, as they stand in the repr of a transform."""
        given = [f"{name}={value!r}" for name, value in self._options.items() if value is not None]
        return ", ".join([f"key={self._key.fingerprint!r}", repr(self._scheme), *given])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": {}}  # a child makes its plans anew; they are larger than the key
