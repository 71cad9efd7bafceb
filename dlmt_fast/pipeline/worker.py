"""The work on one shard: read, transform, write, publish. Nothing here knows how many shards or workers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..functional import encrypt
from ..schemes import Plan
from ..stores.contract import Array, Published, Refused, ShardSpec, ShardWriter, Source
from .job import refused_error
from .options import JobOptions
from .seal import StoreSeal


@dataclass(frozen=True)
class ShardResult:
    """A published shard, what the owner keeps about it, and what was refused."""

    published: Published
    ledger: dict[str, Any]
    refused: list[Refused] = field(default_factory=list)


class Plans:
    """One plan a shape, made when first needed."""

    def __init__(self, make: Callable[[tuple[int, ...]], Plan]) -> None:
        self._make, self._plans = make, dict[tuple[int, ...], Plan]()

    def of(self, images: Array) -> Plan:
        """The plan for a batch (N, C, H, W)."""
        shape = images.shape[1:]
        if shape not in self._plans:
            self._plans[shape] = self._make(shape)
        return self._plans[shape]


class Namer:
    """Output names: `[class/]hidden.suffix`, or with `keep` the original path with the output's suffix.

    The class is the first folder of a path; with `numbered` it becomes its place among all classes.
    """

    def __init__(self, seal: StoreSeal, keep: bool, numbered: bool, paths: list[str], suffix: str) -> None:
        classes = sorted({path.partition("/")[0] for path in paths if "/" in path})
        width = len(str(max(0, len(classes) - 1)))
        self._classes = {name: f"{i:0{width}d}" if numbered else name for i, name in enumerate(classes)}
        self._seal, self._keep, self._suffix = seal, keep, suffix

    def name(self, path: str) -> str:
        """The output name of a source path."""
        first, slash, rest = path.partition("/")
        prefix = f"{self._classes[first]}/" if slash else ""
        if not self._keep:
            return prefix + self._seal.name(path) + self._suffix
        return prefix + (rest if slash else path).rpartition(".")[0] + self._suffix


def encrypt_shard(
    source: Source,
    shard: ShardSpec,
    names: Mapping[int, str],
    plans: Plans,
    writer: ShardWriter,
    options: JobOptions,
    advance: Callable[[int], None],
    before_publish: Callable[[], None],
) -> ShardResult:
    """Transform and publish one shard; on any error nothing of it stays.

    Args:
        names: output names by sample index, in writing order.
        advance: called with the number of samples done since the last call.
        before_publish: called once, when all is written and nothing is visible yet.
    """
    originals: list[list[str]] = []
    bounds: list[Any] = []
    refused: list[Refused] = []
    position = 0
    try:
        for item in source.read(list(names), options.workers):
            if isinstance(item, Refused):
                refused.append(item)
                if options.on_error == "fail":
                    raise refused_error(refused)
                advance(1)
                continue
            plan = plans.of(item.images)
            images, limits = encrypt(item.images, plan, return_bounds=True)
            outputs = [names[index] for index in item.indices]
            writer.write(range(position, position + len(images)), outputs, images)
            if any(outputs):
                originals += [[name, source.path_of(i)] for name, i in zip(outputs, item.indices, strict=True)]
            if plan.normalize.startswith("minmax"):
                bounds += limits.tolist()
            position += len(images)
            advance(len(images))
        before_publish()
        published = writer.publish()
    except BaseException:
        writer.abort()
        raise
    return ShardResult(published, {"names": originals, "bounds": bounds}, refused)
