"""A plan: the coefficients that a key and a scheme give for images of one shape (contract sections 1 and 3)."""

from __future__ import annotations

import math
import secrets
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError, refuse_export
from ..keys import Key, SecretHolder, export_is_allowed
from .matrices import Shape
from .precision import worst_errors

if TYPE_CHECKING:
    import torch

DTypeLike: TypeAlias = "str | type | np.dtype[Any] | torch.dtype | None"
Scalars: TypeAlias = "float | Sequence[float] | NDArray[Any] | None"

NORMALIZATIONS = ("none", "range", "minmax", "minmax_channel")
FLOATS = ("float32", "float16", "bfloat16")
_PAIRS = (
    'allowed are normalize="none" with dtype "int32" or "narrowest", and '
    'normalize="range", "minmax" or "minmax_channel" with dtype "uint8", "float32", "float16" or "bfloat16"'
)
_FOLDED = 1 << 14  # values folded at once: three times as fast as all of a large image's
_FIXED_ONE = 255 << 24  # the output's full scale in 24-bit fixed point


class Scheme(Protocol):
    """What a plan needs of a scheme."""

    @property
    def lo(self) -> int: ...
    @property
    def hi(self) -> int: ...
    def matrices(self, key: Key, shape: Shape) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...


@dataclass(frozen=True, eq=False, repr=False)
class Coefficients(SecretHolder):
    """What a backend computes with, for one order of an image's axes in memory.

    The matrices have the shape (outer, C, inner): (1, C, H*W) for "CHW", (H*W, C, 1) for "HWC", so that the channel is
    the middle axis in both. `M24` and `B24` are set for uint8 "range" only; `g` and `b` for float outputs only (`g`
    for "range" only: min-max takes it from each image). `cache` is for what backends derive; pickles leave it out.
    """

    order: str
    normalize: str
    dtype: str
    lo: int
    hi: int
    M: NDArray[np.int32]
    B: NDArray[np.int32]
    M24: NDArray[np.uint32] | None
    B24: NDArray[np.uint32] | None
    std: NDArray[np.float64]
    g: NDArray[np.float32] | None
    b: NDArray[np.float32] | None
    cache: dict[str, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"cache": {}}


class Plan(SecretHolder):
    """Made by `scheme.plan(key, shape, ...)`; passed to `encrypt` and `decrypt`. Immutable. Holds the secret.

    Attributes:
        scheme: the public parameters.
        shape: (C, H, W) of one image.
        normalize: "none", "range", "minmax" or "minmax_channel".
        dtype: the output's dtype as a name; "narrowest" is resolved.
        lo, hi: bounds of the values before normalisation, over every image.
        mean, std: C values each, float64 (0 and 1 unless given).
        fingerprint: the key's fingerprint.
        exact: whether `decrypt(encrypt(x))` is x for every image.
        worst_error: the largest error of a decrypted pixel in gray levels, a bound; 0 where exact.
    """

    def __init__(
        self, scheme: Scheme, key: Key, shape: Shape, normalize: str, dtype: DTypeLike, mean: Scalars, std: Scalars
    ) -> None:
        self.scheme = scheme
        self.shape = shape
        self.fingerprint = key.fingerprint
        self.lo, self.hi = scheme.lo, scheme.hi
        self.normalize = normalize
        self.dtype = resolve_dtype(normalize, dtype, self.hi)
        self.mean, self.std = _statistics(self.dtype, mean, std, shape[0])
        self._check_float16()
        self._M, self._B = scheme.matrices(key, shape)
        self._cache: dict[str, Coefficients] = {}
        self.direct: dict[Any, Any] = {}  # what `direct.py` keeps with the plan
        self.handle = _register(self)
        self._worst: tuple[bool, int] | None = None

    def coefficients(self, order: str) -> Coefficients:
        """The folded coefficients for images whose axes lie in memory as `order` ("CHW" or "HWC"), cached."""
        found = self._cache.get(order)
        if found is None:
            found = self._cache[order] = self._fold(order)
        return found

    @property
    def exact(self) -> bool:
        return self._worst_case()[0]

    @property
    def worst_error(self) -> int:
        return self._worst_case()[1]

    @property
    def float_scale(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """g and b of y = (v - lo)*g + b per channel at the plan's lo and hi (contract section 3, float32)."""
        g = (1.0 / (float(self.hi - self.lo) * self.std)).astype(np.float32)
        return g, (-self.mean / self.std).astype(np.float32) + np.float32(0.0)  # -0.0 + 0.0 is +0.0

    def _fold(self, order: str) -> Coefficients:
        c, h, w = self.shape
        grouped = (1, c, h * w) if order == "CHW" else (h * w, c, 1)
        axes = (0, 1, 2) if order == "CHW" else (1, 2, 0)
        m, self._M = _laid_out(self._M, axes)
        b, self._B = _laid_out(self._B, axes)
        m, b = m.reshape(grouped), b.reshape(grouped)
        m24 = b24 = gain = bias = None
        if self.normalize == "range" and self.dtype == "uint8":
            span = self.hi - self.lo
            m24 = _fixed_point(m, 0, span, 0)
            b24 = _fixed_point(b, self.lo, span, 1 << 23)
        if self.dtype in FLOATS:
            gain, bias = self.float_scale
            gain = gain if self.normalize == "range" else None
        coefficients = Coefficients(
            order, self.normalize, self.dtype, self.lo, self.hi, m, b, m24, b24, self.std, gain, bias
        )
        for array in (m, b, m24, b24, gain, bias):
            if array is not None:
                array.flags.writeable = False
        return coefficients

    def _worst_case(self) -> tuple[bool, int]:
        if self._worst is None:
            least = np.abs(self._M.astype(np.int64)).reshape(self.shape[0], -1).min(axis=1)
            gain, bias = self.float_scale
            self._worst = worst_errors(self.normalize, self.dtype, self.hi - self.lo, least, gain, bias)
        return self._worst

    def _check_float16(self) -> None:
        if self.dtype == "float16":
            bias = -self.mean / self.std
            largest = np.maximum(np.abs(bias), np.abs(bias + 1.0 / self.std)).max() * (1 + 2.0**-20)
            if largest >= 65520:
                raise ParameterError(
                    f"with this mean and std values reach {largest:.6g}, where float16 ends (65504); "
                    "use float32 or bfloat16, or a larger std"
                )

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not export_is_allowed():
            raise refuse_export("Plan")
        state = {name: value for name, value in self.__dict__.items() if name not in ("_cache", "direct", "handle")}
        state |= {"_cache": {}, "direct": {}}
        return (_restore, (state,))

    def __repr__(self) -> str:
        return (
            f"Plan({self.scheme!r}, shape={self.shape}, normalize={self.normalize!r}, dtype={self.dtype!r}, "
            f"key={self.fingerprint!r})"
        )


def _restore(state: dict[str, Any]) -> Plan:
    plan = Plan.__new__(Plan)
    plan.__dict__.update(state)
    plan.handle = _register(plan)
    return plan


_living: weakref.WeakValueDictionary[int, Plan] = weakref.WeakValueDictionary()


def _register(plan: Plan) -> int:
    """A number that names a plan within this process; random, so that no cache on disk takes it for another's."""
    handle = secrets.randbits(62)
    _living[handle] = plan
    return handle


def plan_of(handle: int) -> Plan:
    """The living plan of a handle.

    Raises:
        ParameterError: it is gone, or of another process.
    """
    found = _living.get(handle)
    if found is None:
        raise ParameterError("this graph was made with a plan that no longer exists in this process; make it anew")
    return found


def rounded_div(p: NDArray[np.int64], q: int) -> NDArray[np.int64]:
    """`div(p, q)` of contract section 3: the nearest integer, halves up, without forming 2p."""
    n = p // q
    r = p - n * q
    return n + (r >= q - r)


def _fixed_point(values: NDArray[np.int32], low: int, span: int, more: int) -> NDArray[np.uint32]:
    """`div((values - low) * 255 * 2**24, span) + more`, modulo 2**32; a block at a time, which stays in cache."""
    result = np.empty(values.shape, np.uint32)
    source, target = values.reshape(-1), result.reshape(-1)
    least, most = int(source.min()), int(source.max())
    if most - least < min(_FOLDED, source.size):  # each of them once, then looked up
        table = _divided(np.arange(least, most + 1, dtype=np.int64), low, span, more)
    else:
        table = None
    for start in range(0, source.size, _FOLDED):
        block = source[start : start + _FOLDED].astype(np.int64)
        folded = _divided(block, low, span, more) if table is None else table.take(block - least)
        target[start : start + _FOLDED] = folded
    return result


def _laid_out(matrix: NDArray[np.int32], axes: tuple[int, int, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(a matrix (C, H, W) with its axes in this order in memory, the matrix itself as a view of that). The memory that
    it had is free then: a large image's is slow to touch for the first time."""
    made = np.ascontiguousarray(matrix.transpose(axes))
    return made, made.transpose(np.argsort(axes))


def _divided(values: NDArray[np.int64], low: int, span: int, more: int) -> NDArray[np.uint32]:
    return (rounded_div((values - low) * _FIXED_ONE, span) + more).astype(np.uint32)


def check_shape(shape: Any) -> Shape:
    """`shape` as three positive ints.

    Raises:
        ParameterError: it is something else.
    """
    try:
        c, h, w = (int(n) if int(n) == n and not isinstance(n, bool) else 0 for n in shape)
    except (TypeError, ValueError, OverflowError):
        c = h = w = 0
    if min(c, h, w) < 1:
        raise ParameterError(f"shape must be (C, H, W), three positive integers, gray is (1, H, W); got {shape!r}")
    return c, h, w


def resolve_dtype(normalize: str, dtype: DTypeLike, hi: int) -> str:
    """The name of the output dtype, with defaults and "narrowest" resolved.

    Raises:
        ParameterError: unknown normalisation, unknown dtype, or a pair that is not allowed.
    """
    if normalize not in NORMALIZATIONS:
        raise ParameterError(f"unknown normalize={normalize!r}; expected one of {', '.join(NORMALIZATIONS)}")
    name = dtype_name(dtype)
    if normalize == "none":
        if name == "narrowest":
            return "uint8" if hi < 1 << 8 else "uint16" if hi < 1 << 16 else "int32"
        if name in (None, "int32"):
            return "int32"
    elif name is None or name == "uint8":
        return "uint8"
    elif name in FLOATS:
        return name
    raise ParameterError(f"normalize={normalize!r} with dtype={dtype!r} does not exist; {_PAIRS}")


def dtype_name(dtype: DTypeLike) -> str | None:
    """The plain name of a NumPy or torch dtype, or of a name."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    if type(dtype).__module__ == "torch":
        return str(dtype).removeprefix("torch.")
    try:
        return np.dtype(dtype).name  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ParameterError(f"dtype={dtype!r} is no dtype; {_PAIRS}") from None


def _statistics(
    dtype: str, mean: Scalars, std: Scalars, channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if dtype not in FLOATS and (mean is not None or std is not None):
        raise ParameterError(f'mean and std need a float dtype, got dtype={dtype!r}; pass dtype="float32"')
    means = _per_channel("mean", 0.0 if mean is None else mean, channels)
    stds = _per_channel("std", 1.0 if std is None else std, channels)
    if np.abs(means).max() > 1e6:
        raise ParameterError("mean must lie in -1e6..1e6 (it is on the 0..1 scale, as torchvision's Normalize)")
    if stds.min() < 1e-6 or stds.max() > 1e6:
        raise ParameterError("std must lie in 1e-6..1e6 (it is on the 0..1 scale, as torchvision's Normalize)")
    return means, stds


def _per_channel(name: str, value: Any, channels: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} must be a number or {channels} numbers, got {value!r}") from None
    if array.shape not in ((), (1,), (channels,)):
        raise ParameterError(f"{name} must be one number or one for each of {channels} channels, got {value!r}")
    if not all(math.isfinite(x) for x in array.ravel()):
        raise ParameterError(f"{name} must be finite, got {value!r}")
    result = np.broadcast_to(array, (channels,)).copy()
    result.flags.writeable = False
    return result
