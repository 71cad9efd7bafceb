"""What a shell completes after an option. Paths it completes by itself.

Most values are written out here, as loading what defines them (torch, for one) would make every press of Tab wait; a
test compares them with what the package takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from typer.models import OptionInfo

C = TypeVar("C", bound=Callable[..., None])

VALUES: dict[str, tuple[str, ...]] = {
    "mode": ("mat", "mmt", "rise_mmt", "mat_mmt", "mmt_mat"),
    "normalize": ("range", "minmax", "minmax_channel", "none"),
    "dtype": ("uint8", "int32", "float32", "float16", "narrowest"),
    "fit": ("crop", "stretch", "pad"),
    "channels": ("1", "3"),
    "names": ("hash", "keep"),
    "classes": ("keep", "index"),
    "duplicates": ("report", "drop"),
    "on_error": ("fail", "quarantine"),
    "progress_mode": ("auto", "plain", "none"),
    "dataset": ("mnist", "fashion-mnist", "cifar10", "folder"),
    "network": ("auto", "fiveconv", "resnet18"),
    "augment": ("none", "crop", "crop-flip"),
    "device": ("auto", "cpu", "cuda"),
    "transform_device": ("cpu", "cuda"),
}


def _read_kinds() -> tuple[str, ...]:
    from ..pipeline.open import KINDS

    return tuple(KINDS)


def _written_kinds() -> tuple[str, ...]:
    from ..pipeline.formats import KINDS

    return tuple(KINDS)


KINDS = {"from_kind": _read_kinds, "to_kind": _written_kinds}


def completed(command: C) -> C:
    """Give a command's options their values."""
    hints = get_type_hints(command, include_extras=True)
    for name, hint in hints.items():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, OptionInfo) and (name in VALUES or name in KINDS):
                info.autocompletion = _among(name)
    command.__annotations__ = hints  # as text they would be read anew by typer, into other objects
    return command


def _among(name: str) -> Callable[[str], Any]:
    def complete(incomplete: str) -> list[str]:
        values = VALUES[name] if name in VALUES else KINDS[name]()
        return [value for value in values if value.startswith(incomplete)]

    return complete
