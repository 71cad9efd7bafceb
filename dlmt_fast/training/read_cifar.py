"""CIFAR-10's Python files: pickles, of which only what these files hold is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import StoreDamagedError
from ..stores.restricted_pickle import load
from .arrays import Arrays

_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = "test_batch"
_SHAPE = (3, 32, 32)


def missing_files(folder: Path) -> list[str]:
    """The names that are not there; empty where all are."""
    return [name for name in (*_TRAIN, _TEST) if not (folder / name).is_file()]


def read_plain(folder: Path) -> tuple[Arrays, Arrays]:
    """(train, test) of a folder without missing files.

    Raises:
        StoreDamagedError: a file is not one of CIFAR-10.
    """
    parts = [_read_batch(folder / name) for name in _TRAIN]
    train = Arrays(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]), ())
    return train, _read_batch(folder / _TEST)


def _read_batch(path: Path) -> Arrays:
    try:
        content = load(path.read_bytes())
        data, labels = np.array(content["data"]), np.asarray(content["labels"], np.int64)
    except Exception as error:  # noqa: BLE001  unpickling damaged content raises almost anything
        raise StoreDamagedError(f"{path} is not a file of CIFAR-10: {type(error).__name__}: {error}") from None
    if data.dtype != np.uint8 or data.shape != (len(labels), int(np.prod(_SHAPE))) or labels.ndim != 1:
        raise StoreDamagedError(f"{path} holds {data.dtype} {data.shape}; CIFAR-10 has uint8 (N, 3072) and N labels")
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise StoreDamagedError(f"{path} holds labels outside 0 to 9")
    return Arrays(np.ascontiguousarray(data).reshape(-1, *_SHAPE), labels, ())
