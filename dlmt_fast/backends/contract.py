"""What every backend implements, in words and types. Checked by `functional`, never here.

A backend is a module with two functions:

`affine(images, k, out, bounds, threads)`
    images: uint8 (N, outer, C, inner), every image contiguous, images any distance apart.
    k: `Coefficients`, matrices of shape (outer, C, inner).
    out: the same shape, the storage dtype of `k.dtype` (bfloat16 travels as its uint16 bits), every image contiguous.
    bounds: int32 (N, 1, 2), or (N, C, 2) for "minmax_channel", receives each image's lo and hi; None for "none" and
    "range".

`affine_inverse(images, k, bounds, out, threads) -> int`
    images: what `affine` wrote; bounds: what it gave, for min-max; out: uint8. Returns -1, or the smallest flat index
    (in memory order over images) of a value that cannot come from this key; `out` is then undefined.

`threads` is an upper limit, at least 1. The results do not depend on it.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Bounds: TypeAlias = "NDArray[np.int32]"

#: The NumPy dtype in which each output dtype is stored.
STORAGE: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "int32": np.dtype(np.int32),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}


class Coefficients(Protocol):
    """The fields of a plan's coefficients that backends read; `schemes.plan.Coefficients` describes them."""

    @property
    def order(self) -> str: ...
    @property
    def normalize(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def lo(self) -> int: ...
    @property
    def hi(self) -> int: ...
    @property
    def M(self) -> NDArray[np.int32]: ...
    @property
    def B(self) -> NDArray[np.int32]: ...
    @property
    def M24(self) -> NDArray[np.uint32] | None: ...
    @property
    def B24(self) -> NDArray[np.uint32] | None: ...
    @property
    def std(self) -> NDArray[np.float64]: ...
    @property
    def g(self) -> NDArray[np.float32] | None: ...
    @property
    def b(self) -> NDArray[np.float32] | None: ...
    @property
    def cache(self) -> dict[str, Any]: ...


class Backend(Protocol):
    """A backend module."""

    def affine(self, images: Array, k: Coefficients, out: Array, bounds: Bounds | None, threads: int) -> None: ...
    def affine_inverse(
        self, images: Array, k: Coefficients, bounds: Bounds | None, out: Array, threads: int
    ) -> int: ...
