"""Checkpoints: plain values and tensors, no key and no pickled code (`weights_only=True`), replaced as a whole."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import StoreDamagedError, UsageError
from ..stores.publish import publish_bytes

NAME = "checkpoint.pt"
_FORMAT = {"format": "dlmt-train", "version": 1}
_FIELDS = {"settings", "machine", "network", "optimizer", "epoch", "step", "totals", "seconds", "history"}


def save(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `folder/checkpoint.pt`; an earlier one stays whole until the new one is."""
    assert set(content) == _FIELDS
    buffer = io.BytesIO()
    torch.save(_FORMAT | dict(content), buffer)
    publish_bytes(folder / NAME, buffer.getvalue(), "checkpoint", mode=0o644)


def load(folder: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        UsageError: there is none. StoreDamagedError: it is damaged or no checkpoint of ours.
    """
    path = folder / NAME
    if not path.is_file():
        raise UsageError(f"there is no {path} to go on from; without --resume a new run begins")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch raises almost anything on damaged content
        raise StoreDamagedError(f"{path} is damaged or no checkpoint: {type(error).__name__}") from None
    if not isinstance(content, dict) or any(content.get(name) != value for name, value in _FORMAT.items()):
        raise StoreDamagedError(f"{path} is no checkpoint of this version of dlmt train")
    if set(content) != _FIELDS | set(_FORMAT):
        raise StoreDamagedError(f"{path} has unknown or missing fields {sorted(set(content) ^ _FIELDS ^ set(_FORMAT))}")
    return content


def refuse_other_settings(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on under settings that the checkpoint was not made with.

    Raises:
        UsageError: it names them.
    """
    other = [
        f"{name} was {saved.get(name)!r}, now {asked.get(name)!r}"
        for name in sorted({*saved, *asked})
        if saved.get(name) != asked.get(name)
    ]
    if other:
        raise UsageError(f"{path} cannot be resumed with other settings: {'; '.join(other)}. Repeat the first command")
