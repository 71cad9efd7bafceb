"""What the work on shards is told and what it gives: tasks, what all of a job share, and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..keys import Key
from ..schemes import DLMT
from ..stores.contract import Published, Reader, Refused, ShardSpec
from ..stores.publish import OS, FileOps
from .formats import Contents
from .job import versions
from .options import JobOptions


class Result(NamedTuple):
    """What the journal has of a shard: the SHA-256 of its file, and how many samples it holds."""

    sha256: str
    outputs: int


@dataclass(frozen=True)
class Task:
    """One shard: its published name and samples, output names by sample index in writing order, what reads it, its name
    in the source, what the shard will hold, why some samples are left out that could be taken, and what the journal has
    of it, for workers that do not see the journal."""

    shard: ShardSpec
    names: Mapping[int, str]
    source: Reader
    original: str
    contents: Contents
    dropped: Mapping[int, str] = field(default_factory=dict)
    entered: Result | None = None

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"shard {self.shard.index}"


@dataclass(frozen=True)
class ShardResult:
    """A published shard, and what was refused."""

    published: Published
    refused: list[Refused] = field(default_factory=list)


@dataclass(frozen=True)
class Made:
    """A published shard and what is to be entered of it: refused samples, sealed ledger, which attempt made it."""

    published: Published
    refused: list[Refused]
    ledger: bytes
    attempt: int

    @property
    def result(self) -> ShardResult:
        """What the job needs of it."""
        return ShardResult(self.published, self.refused)


@dataclass(frozen=True)
class JobContext:
    """What all shards of a job share. It holds the key, so it pickles only while a worker process is started.

    Attributes:
        kind: of the target.
        target: the folder that the shards are published in, or a remote place.
        conditional: whether a remote target refuses to write over what is there.
        retire: the manifest of a store that is being replaced, which goes before the first shard is visible.
        decoders: threads that decode.
        threads: of the kernels; None: their own choice.
        versions: of the job record; a worker that has others is refused.
    """

    key: Key
    scheme: DLMT
    options: JobOptions
    store_id: str
    kind: str
    dtype: str
    target: Path
    retire: Path | None
    decoders: int
    threads: int | None
    ops: FileOps = OS
    versions: Mapping[str, str] = field(default_factory=versions)  # of a job without libraries of its own
    conditional: bool = True
