"""Canonical JSON: one byte string for one value, so that digests and MACs can be taken over it.

UTF-8, sorted keys, separators ``,`` and ``:``; strings, integers, booleans, null, lists and objects only. Floats are
written as `float.hex()` strings by whoever has them.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn


class DuplicateFieldError(ValueError):
    """An object names a field twice."""


def canonical_json(value: Any) -> bytes:
    """The canonical bytes of `value`.

    Raises:
        ValueError: the value holds floats, text that is not valid Unicode, or too deep a nesting.
    """
    try:
        _refuse_floats(value)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise ValueError("the value is nested too deeply") from None
    return text.encode("utf-8")


def parse_json(data: bytes) -> Any:
    """Parse JSON strictly: valid UTF-8, no duplicate fields, no NaN, no nesting that exhausts the stack.

    Raises:
        ValueError: for anything else (`DuplicateFieldError` names the field).
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise DuplicateFieldError(f"the field {name!r} appears twice")
        result[name] = value
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise ValueError("canonical JSON holds no floats; write float.hex()")
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError("canonical JSON has string field names only")
            _refuse_floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_floats(item)
