"""What each output file of a folder store is called, and that no two share a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import StoreError
from ..stores.contract import ShardSpec, Source
from ..stores.folder import can_be_listed
from .digests import digest64, repeated
from .options import JobOptions
from .seal import StoreSeal


class Namer:
    """Output names: `[class/]hidden.suffix`, or with `keep` the original path with the output's suffix.

    The class is the first folder of a path; with `numbered` it becomes its place among all classes.
    """

    def __init__(self, seal: StoreSeal, keep: bool, numbered: bool, paths: Iterable[str], suffix: str) -> None:
        self._classes: dict[str, str] | None = None
        if numbered:
            classes = sorted({path.partition("/")[0] for path in paths if "/" in path})
            width = len(str(max(0, len(classes) - 1)))
            self._classes = {name: f"{i:0{width}d}" for i, name in enumerate(classes)}
        self._seal, self._keep, self._suffix = seal, keep, suffix

    def name(self, path: str) -> str:
        """The output name of a source path."""
        first, slash, rest = path.partition("/")
        shown = first if self._classes is None or not slash else self._classes[first]
        prefix = shown + slash if slash else ""
        if not self._keep:
            return prefix + self._seal.name(path) + self._suffix
        return prefix + (rest if slash else path).rpartition(".")[0] + self._suffix


class OutputNames:
    """The names of a whole job, made a shard at a time. IDX files have none and keep their order.

    Args:
        never_written: the samples that the survey refused; their names may be anything.

    Raises:
        StoreError: two samples would be written under one name, or a store cannot hold a name.
    """

    def __init__(
        self, source: Source, seal: StoreSeal, options: JobOptions, dtype: str, never_written: set[int]
    ) -> None:
        self._source, self._seal, self._never_written = source, seal, never_written
        self._named = source.kind == "folder"
        suffix = ".png" if dtype == "uint8" else ".npy"
        paths = (stamp.path for stamp in source.stamps() if self._named)
        self._namer = Namer(seal, options.names == "keep", options.classes == "index", paths, suffix)
        if self._named:
            self._refuse_the_same()

    def of(self, shard: ShardSpec) -> dict[int, str]:
        """Each sample's output name by index, in writing order."""
        if not self._named:
            return dict.fromkeys(shard.samples, "")
        named = ((index, self._name(index, self._source.path_of(index))) for index in shard.samples)
        return dict(sorted(named, key=lambda item: item[1]))

    def _name(self, index: int, path: str) -> str:
        return self._seal.name(path) if index in self._never_written else self._namer.name(path)

    def _all(self) -> Iterator[tuple[str, str]]:
        """Every sample's path and output name."""
        for index, stamp in enumerate(self._source.stamps()):
            yield stamp.path, self._name(index, stamp.path)

    def _refuse_the_same(self) -> None:
        """Names are compared by short digests first, so that memory does not grow with their number."""
        suspects = repeated(self._checked())
        named: dict[str, str] = {}
        for path, name in self._all() if suspects else ():
            if digest64(name) in suspects and named.setdefault(name, path) != path:
                raise StoreError(f"{named[name]} and {path} would both be written as {name}")

    def _checked(self) -> Iterator[str]:
        for path, name in self._all():
            if not can_be_listed(name):
                raise StoreError(f"{path!r} cannot keep its name or class in a store; rename it")
            yield name
