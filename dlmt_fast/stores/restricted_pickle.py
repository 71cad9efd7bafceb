"""The pickles of CIFAR-10 and CIFAR-100, read without running anything that they name.

A pickle is a program. Before a file is loaded, each of its instructions is compared with the few that these files need.
The callables that it then asks for (NumPy's array and dtype) are answered with plain records of what was said, checked
here and turned into an array; nothing of NumPy is called with arguments from the file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OPCODES = {
    *("PROTO", "FRAME", "MARK", "STOP", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2"),
    *("TUPLE3", "DICT", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "BINSTRING", "SHORT_BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BININT", "BININT1"),
    *("BININT2", "NONE", "NEWTRUE", "NEWFALSE", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
_MAX_MEMO = 1 << 20  # a file has some 10,000 names; an absurd number would make the loader allocate for it
MAX_BYTES = 256 << 20


def load(data: bytes) -> dict[str, Any]:
    """The dictionary in a CIFAR pickle: text keys; numbers, text, lists of those, and uint8 arrays as values.

    Raises:
        pickle.UnpicklingError: it asks for anything else, or is damaged.
    """
    if len(data) > MAX_BYTES:
        raise pickle.UnpicklingError(f"it has {len(data)} bytes, over {MAX_BYTES}")
    try:
        _check_instructions(data)
        found = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, not a dictionary")
        return {_text(name): value.values() if isinstance(value, _Array) else value for name, value in found.items()}
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and str(error).startswith("it "):
            raise
        raise pickle.UnpicklingError(f"it is damaged ({type(error).__name__}: {error})") from None


def _check_instructions(data: bytes) -> None:
    end = 0
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it uses the instruction {opcode.name}, which these files do not need")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and (argument or 0) > _MAX_MEMO:
            raise pickle.UnpicklingError(f"it numbers an object {argument}, beyond what these files need")
        end = (position or 0) + 1
    if end != len(data):
        raise pickle.UnpicklingError(f"it ends {len(data) - end} bytes before the file does")


def _text(name: Any) -> str:
    if isinstance(name, bytes):
        return name.decode("latin1")
    if not isinstance(name, str):
        raise pickle.UnpicklingError(f"it has a key that is a {type(name).__name__}, not text")
    return name


class _DType:
    """Stands for numpy.dtype; these files have one, unsigned bytes."""

    def __init__(self, name: Any, *rest: Any) -> None:
        if _text(name) != "u1":
            raise pickle.UnpicklingError(f"it holds an array of {name!r}; these files have unsigned bytes")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which bytes do not have."""


class _Array:
    """Stands for numpy.ndarray: the state of which an array is made."""

    def __init__(self) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def values(self) -> NDArray[np.uint8]:
        """The array, after every part of its state was checked."""
        if not isinstance(self._state, tuple) or len(self._state) != 5:
            raise pickle.UnpicklingError("it holds an array without its values")
        _, shape, dtype, fortran, content = self._state
        content = content.encode("latin1") if isinstance(content, str) else content
        sizes = isinstance(shape, tuple) and all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape)
        if not sizes or not isinstance(dtype, _DType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array whose shape, type or values are malformed")
        if int(np.prod(shape, dtype=object)) != len(content):
            raise pickle.UnpicklingError(f"it holds an array of shape {shape} with {len(content)} values")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Answer:
    """What a pickle gets for a name: it can be called, and, unlike a function or class, not be given attributes."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it wants to change what it asked for")


def _new_array(*arguments: Any) -> _Array:
    return _Array()


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("it holds text in an encoding that these files do not use")
    return text.encode("latin1")


_ANSWERS = {
    ("numpy.core.multiarray", "_reconstruct"): _Answer(_new_array),
    ("numpy._core.multiarray", "_reconstruct"): _Answer(_new_array),
    ("numpy", "ndarray"): _Answer(_new_array),
    ("numpy", "dtype"): _Answer(_DType),
    ("_codecs", "encode"): _Answer(_encode),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ANSWERS:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}, which these files do not need")
        return _ANSWERS[module, name]
