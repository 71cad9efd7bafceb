"""DLMT: the five modes of Zhao, Chen, Xiang, Li, "DLMT: Outsourcing Deep Learning with Privacy Protection Based on
Matrix Transformation", CSCWD 2023, Algorithm 1 and equations (1)-(5). Contract: section 1.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputTypeError, ParameterError
from ..keys import Key
from .matrices import Shape, secret_matrix
from .plan import DTypeLike, Plan, Scalars, check_shape

#: Which parameters each mode uses.
MODES: dict[str, tuple[str, ...]] = {
    "mat": ("max_v_add",),
    "mmt": ("max_v_mul",),
    "rise_mmt": ("max_v_mul", "rise_v"),
    "mat_mmt": ("max_v_add", "max_v_mul"),
    "mmt_mat": ("max_v_add", "max_v_mul"),
}
_LIMIT = 2**31


class DLMT:
    """The public parameters of a DLMT transform. Immutable and hashable.

    ==========  =======================  ==========================
    mode        paper                    value before normalisation
    ==========  =======================  ==========================
    `mat`       equation (1), MAT        A + Radd
    `mmt`       equation (2), MMT        A * Rmul
    `rise_mmt`  equation (3), Rise+MMT   (A + rise) * Rmul
    `mat_mmt`   equation (4), MAT+MMT    (A + Radd) * Rmul
    `mmt_mat`   equation (5), MMT+MAT    A * Rmul + Radd
    ==========  =======================  ==========================

    Args:
        mode: one of the five names above.
        max_v_add: Radd is uniform in [1, max_v_add]. The paper uses 256, 512, 1024, 2048.
        max_v_mul: Rmul is uniform in [1, max_v_mul]. The paper uses 10, 100, 1000, 10000.
        rise_v: the constant added before multiplying, `rise_mmt` only. The paper uses 100, 200, 300, 400.

    A parameter that the mode does not use is checked, then ignored.

    Raises:
        ParameterError: unknown mode; a value out of range; `rise_v` outside `rise_mmt`; or values that could reach
            2**31, where int32 ends.
    """

    __slots__ = ("_max_v_add", "_max_v_mul", "_mode", "_rise_v")

    def __init__(self, mode: str = "mat_mmt", max_v_add: int = 256, max_v_mul: int = 10, rise_v: int = 0) -> None:
        if not isinstance(mode, str) or mode not in MODES:
            raise ParameterError(f"unknown mode {mode!r}; expected one of {', '.join(MODES)}")
        add = _integer("max_v_add", max_v_add, least=1)
        mul = _integer("max_v_mul", max_v_mul, least=1)
        rise = _integer("rise_v", rise_v, least=0)
        if rise and mode != "rise_mmt":
            raise ParameterError(f'rise_v={rise} has no meaning in mode {mode!r}; use mode="rise_mmt", or leave it 0')
        uses = MODES[mode]
        self._mode = mode
        self._max_v_add = add if "max_v_add" in uses else 0
        self._max_v_mul = mul if "max_v_mul" in uses else 0
        self._rise_v = rise
        if self.hi >= _LIMIT:
            raise ParameterError(
                f"with {self._public()} values could reach {self.hi}, at or over 2**31 = {_LIMIT}; choose smaller ones"
            )

    @property
    def mode(self) -> str:
        """The mode's name."""
        return self._mode

    @property
    def lo(self) -> int:
        """The smallest value before normalisation, over every image and key."""
        return {"mmt": 0, "rise_mmt": self._rise_v}.get(self._mode, 1)

    @property
    def hi(self) -> int:
        """The largest value before normalisation, over every image and key."""
        add, mul, rise = self._max_v_add, self._max_v_mul, self._rise_v
        return {
            "mat": 255 + add,
            "mmt": 255 * mul,
            "rise_mmt": (255 + rise) * mul,
            "mat_mmt": (255 + add) * mul,
            "mmt_mat": 255 * mul + add,
        }[self._mode]

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that the mode uses, as a plain dict; `DLMT.from_params` takes it back."""
        values = {"max_v_add": self._max_v_add, "max_v_mul": self._max_v_mul, "rise_v": self._rise_v}
        return {"scheme": "dlmt", "mode": self._mode} | {name: values[name] for name in MODES[self._mode]}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> DLMT:
        """The scheme that `params` came from.

        Raises:
            ParameterError: another scheme's parameters, or fields that the mode does not have.
        """
        fields = dict(params)
        if fields.pop("scheme", None) != "dlmt":
            raise ParameterError("these are not the parameters of a DLMT scheme: no field scheme='dlmt'")
        mode = fields.pop("mode", None)
        if not isinstance(mode, str) or mode not in MODES or set(fields) != set(MODES[mode]):
            raise ParameterError(f"the parameters of mode {mode!r} do not fit: got the fields {sorted(fields)}")
        return cls(mode, **fields)

    def matrices(self, key: Key, shape: Shape) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """M and B of v = A*M + B, int32, shape (C, H, W). Secret."""
        radd = self._matrix(key, "add", shape, self._max_v_add) if self._max_v_add else None
        rmul = self._matrix(key, "mul", shape, self._max_v_mul) if self._max_v_mul else None
        if rmul is None:
            assert radd is not None
            return np.ones(shape, np.int32), radd
        if self._mode == "mmt_mat":
            assert radd is not None
            return rmul, radd
        if radd is None:
            return rmul, rmul * np.int32(self._rise_v)
        radd *= rmul  # in place: a large image's matrices are slow to make for the memory alone
        return rmul, radd

    def plan(
        self,
        key: Key,
        shape: Sequence[int],
        normalize: str = "range",
        dtype: DTypeLike = None,
        mean: Scalars = None,
        std: Scalars = None,
    ) -> Plan:
        """Everything needed to transform images of one shape with one key.

        Args:
            key: the secret.
            shape: (C, H, W) of one image; gray is (1, H, W).
            normalize: "none", "range", "minmax" or "minmax_channel" (contract section 3).
            dtype: of the output. "none" takes "int32" (default) or "narrowest"; the others take "uint8" (default),
                "float32", "float16" or "bfloat16". NumPy and torch dtypes do as well.
            mean, std: a scalar or C values, for float outputs: (y - mean) / std as torchvision's Normalize.

        Raises:
            ParameterError: a combination that the contract does not have; the message names those it has.
        """
        if not isinstance(key, Key):
            raise InputTypeError(f"expected a dlmt_fast.Key, got {type(key).__name__}")
        checked = check_shape(shape)
        return Plan(self, key, checked, normalize, dtype, mean, std)

    def _matrix(self, key: Key, role: str, shape: Shape, max_v: int) -> NDArray[np.int32]:
        size = "x".join(map(str, shape))
        settings = (str(self._max_v_add), str(self._max_v_mul), str(self._rise_v))
        return secret_matrix(key, (self._mode, role, size, *settings), shape, max_v)

    def _public(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.params.items() if name != "scheme")

    def __eq__(self, other: object) -> bool:
        return self.params == other.params if isinstance(other, DLMT) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.params.items()))

    def __repr__(self) -> str:
        return f"DLMT({self._public()})"


def _integer(name: str, value: Any, least: int) -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ParameterError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ParameterError(f"{name} must be at least {least}, got {number}")
    return number
