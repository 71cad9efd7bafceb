"""The implementations of the contract: all give the same bits. `contract.py` says what each one provides.

>>> import dlmt_fast as dlmt
>>> sorted(dlmt.backends.available())
['cuda', 'native', 'numba', 'reference']
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import NamedTuple, cast

from ..errors import BackendError, ParameterError, missing
from .contract import Backend

_MODULES = {"reference": "reference", "native": "native", "numba": "numba_cpu", "cuda": "cuda"}
NAMES = ("reference", "native", "numba", "cuda")


class Choice(NamedTuple):
    """What `backend="auto"` means on this machine, and why."""

    name: str
    reason: str


def get(name: str) -> Backend:
    """The backend module called `name`; "auto" gives the one of `auto()`, which is for images in main memory.

    "cuda" takes device pointers instead of arrays; see its module.

    Raises:
        ParameterError: there is no backend of that name.
        BackendError: it cannot run here; the message says why. A named backend never falls back to another.
    """
    if name == "auto":
        return _auto_module()
    check_name(name)
    module = _load(name)
    if name == "cuda":
        module.require()  # type: ignore[attr-defined]  # each time: a forked child has lost the device
    return module


def check_name(name: str) -> None:
    """Raise ParameterError where there is no backend of that name."""
    if name != "auto" and name not in NAMES:
        raise ParameterError(f"unknown backend {name!r}; expected auto, {', '.join(NAMES)}")


def available() -> dict[str, str]:
    """Each backend's name with "ok", or with the reason why it cannot run here."""
    return {name: _state(name) for name in NAMES}


@functools.cache
def auto() -> Choice:
    """What `backend="auto"` chooses for CPU images here: `native`, else `numba`.

    Raises:
        BackendError: neither can run.
    """
    native = _state("native")
    if native == "ok":
        return Choice("native", "the C++ module is built")
    numba = _state("numba")
    if numba == "ok":
        return Choice("numba", f"native is missing: {native}")
    raise BackendError(f'no fast backend: native: {native}; numba: {numba}. backend="reference" works, slowly')


@functools.cache
def _auto_module() -> Backend:
    choice = auto()
    if choice.name != "native":
        warnings.warn(f'backend="auto" uses {choice.name}, since {choice.reason}', RuntimeWarning, stacklevel=4)
    return _load(choice.name)


@functools.cache
def _load(name: str) -> Backend:
    try:
        return cast(Backend, importlib.import_module(f".{_MODULES[name]}", __name__))
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("dlmt_fast"):
            raise missing(error.name, f"the {name} backend", None) from None
        raise


def _state(name: str) -> str:
    try:
        get(name)
    except BackendError as error:
        return str(error)
    return "ok"
