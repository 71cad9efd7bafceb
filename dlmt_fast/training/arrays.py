"""What every reader gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Arrays(NamedTuple):
    """Images (N, C, H, W) in this machine's byte order, labels int64 (N,), the classes' names where files have them."""

    images: NDArray[Any]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
