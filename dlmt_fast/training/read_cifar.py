"""CIFAR-10's Python files: pickles, of which only what these files hold is loaded."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreDamagedError
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
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        data, labels = np.asarray(content["data"]), np.asarray(content["labels"], np.int64)
    except Exception as error:  # noqa: BLE001  unpickling damaged content raises almost anything
        raise StoreDamagedError(f"{path} is not a file of CIFAR-10: {type(error).__name__}: {error}") from None
    if data.dtype != np.uint8 or data.shape != (len(labels), int(np.prod(_SHAPE))) or labels.ndim != 1:
        raise StoreDamagedError(f"{path} holds {data.dtype} {data.shape}; CIFAR-10 has uint8 (N, 3072) and N labels")
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise StoreDamagedError(f"{path} holds labels outside 0 to 9")
    return Arrays(np.ascontiguousarray(data).reshape(-1, *_SHAPE), labels, ())


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"an encoding that these files do not use: {encoding!r}")
    return codecs.encode(text, "latin1")


class _Unpickler(pickle.Unpickler):
    """A pickle can call anything; these files need NumPy arrays, lists, numbers and text."""

    _ALLOWED: dict[tuple[str, str], Any] = {  # noqa: RUF012  read only
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}, which CIFAR-10's files do not hold")
        return self._ALLOWED[module, name]
