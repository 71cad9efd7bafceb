"""What a command did, in numbers that add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..stores.contract import Published, Refused


class Standing(NamedTuple):
    """How far a command is: samples done and in all, bytes written (`verify`: read), samples quarantined; and what is
    done to them, where that is not the command's own work.

    What an earlier run had done counts among the samples, and has no bytes.
    """

    done: int
    total: int
    bytes: int
    quarantined: int
    doing: str = ""


#: Called with where a command stands whenever that changes.
Progress: TypeAlias = Callable[[Standing], None]


def no_progress(standing: Standing) -> None:
    """The default: show nothing."""


class Advance(Protocol):
    """Called with the samples done since the last call, their bytes, and how many of them were quarantined. Numbers
    below zero: this work is to be done again."""

    def __call__(self, samples: int, size: int = 0, refused: int = 0) -> None: ...


def counter(progress: Progress, total: int, doing: str = "") -> Advance:
    """An `Advance` that adds up and reports."""
    now = Standing(0, total, 0, 0, doing)

    def advance(samples: int, size: int = 0, refused: int = 0) -> None:
        nonlocal now
        now = Standing(now.done + samples, total, now.bytes + size, now.quarantined + refused, doing)
        progress(now)

    advance(0)
    return advance


class Tally:
    """An `Advance` that passes work on and can take it back."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._work = (0, 0, 0)

    def __call__(self, samples: int, size: int = 0, refused: int = 0) -> None:
        before = self._work
        self._work = (before[0] + samples, before[1] + size, before[2] + refused)
        self._advance(samples, size, refused)

    def take_back(self) -> None:
        """All that was passed on is to be done again."""
        samples, size, refused = self._work
        self(-samples, -size, -refused)


@dataclass
class Summary:
    """The result of a job. `inputs == outputs + len(quarantined)` always.

    A slice of a job counts its own shards; `shards_left` are those of other slices that keep the store unfinished.
    `duplicates` are the inputs that are equal to an earlier one, None where nobody looked; `dropped` of them are among
    the quarantined, for no other reason.
    """

    command: str
    source: str
    target: str
    store_id: str = ""
    kind: str = ""
    dtype: str = ""
    inputs: int = 0
    outputs: int = 0
    output_bytes: int = 0
    seconds: float = 0.0
    shards_left: int = 0
    duplicates: int | None = None
    dropped: int = 0
    quarantined: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, inputs: int, published: Published, refused: list[Refused]) -> None:
        """Count one shard."""
        self.inputs += inputs
        self.outputs += published.count
        self.output_bytes += published.size
        self.dropped += sum(item.equal for item in refused)
        self.quarantined += [{"path": item.path, "reason": item.reason} for item in refused]
        assert self.inputs == self.outputs + len(self.quarantined), "samples were lost"

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)
