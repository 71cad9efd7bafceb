"""What a command did, in numbers that add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from ..stores.contract import Published, Refused

#: Called with (samples done, samples in all).
Progress: TypeAlias = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """The default: show nothing."""


def counter(progress: Progress, total: int) -> Callable[[int], None]:
    """A function that adds to a count and reports it."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    advance(0)
    return advance


@dataclass
class Summary:
    """The result of a job. `inputs == outputs + len(quarantined)` always.

    A slice of a job counts its own shards; `shards_left` are those of other slices that keep the store unfinished.
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
    quarantined: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, inputs: int, published: Published, refused: list[Refused]) -> None:
        """Count one shard."""
        self.inputs += inputs
        self.outputs += published.count
        self.output_bytes += published.size
        self.quarantined += [{"path": item.path, "reason": item.reason} for item in refused]
        assert self.inputs == self.outputs + len(self.quarantined), "samples were lost"

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)
