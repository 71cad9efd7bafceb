"""What each output file of a folder store is called, and that no two share a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..errors import StoreError
from ..stores.contract import Reader, ShardSpec, Source
from ..stores.digests import digest64, repeated
from ..stores.runs import sample_name
from .formats import StoredFormat
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


class Unnamed(Mapping[int, str]):
    """The names "" of all samples of a range, which may be a whole file's: none is kept."""

    def __init__(self, samples: range) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> str:
        if index not in self.samples:
            raise KeyError(index)
        return ""

    def __iter__(self) -> Iterator[int]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


def in_order(names: Mapping[int, str]) -> Sequence[int]:
    """The samples that have these names, in writing order."""
    return names.samples if isinstance(names, Unnamed) else list(names)


class OutputNames:
    """The names of a whole job, made a shard at a time; all "" and in the source's order where the target keeps none.

    Args:
        shards: of the job.
        never_written: the samples that the survey refused; their names may be anything.

    Raises:
        StoreError: two samples would be written under one name, or a store cannot hold a name.
    """

    def __init__(
        self,
        source: Source,
        form: StoredFormat,
        seal: StoreSeal,
        options: JobOptions,
        dtype: str,
        shards: Sequence[ShardSpec],
        never_written: set[int],
    ) -> None:
        self._source, self._form, self._seal, self._never_written = source, form, seal, never_written
        self._named, self._keep, self._suffix = form.named, options.names == "keep", form.suffix(dtype)
        self._shards = shards
        paths = (part.path_of(index) for index, part in self._samples() if source.in_folders)
        self._namer = Namer(seal, self._keep, options.classes == "index", paths, self._suffix)
        self._digits = self._digits_of_classes() if form.folders and not source.in_folders else 1
        if self._named:
            self._refuse_the_same()

    def of(self, shard: ShardSpec) -> Mapping[int, str]:
        """Each sample's output name by index, in writing order: that of names, and of arrays their own."""
        if not self._named:
            return Unnamed(shard.samples)
        part = self._source.part(shard.samples)
        named = ((index, self._name(index, part)) for index in shard.samples)
        return dict(sorted(named, key=lambda item: item[1]) if self._source.named else named)

    def _samples(self) -> Iterator[tuple[int, Reader]]:
        """Every sample, a shard at a time, with what knows its path."""
        for shard in self._shards if self._named else ():
            part = self._source.part(shard.samples)
            yield from ((index, part) for index in shard.samples)

    def _name(self, index: int, part: Reader) -> str:
        path = part.path_of(index)
        if index in self._never_written:
            return self._seal.name(path)
        if self._source.in_folders and (self._form.folders or self._keep):
            return self._namer.name(path)
        label = part.label_of(index) if self._form.folders else None
        kept = sample_name(path) or path.rpartition("//")[2].rpartition(".")[0]
        hidden = kept if self._keep else self._seal.name(path)
        return ("" if label is None else f"{label:0{self._digits}d}/") + hidden + self._suffix

    def _digits_of_classes(self) -> int:
        """As many as the largest class number has: folders sort as their numbers do, which readers number again."""
        labels = (part.label_of(index) for index, part in self._samples())
        return len(str(max((label for label in labels if label is not None), default=0)))

    def _refuse_the_same(self) -> None:
        """Names are compared by short digests first, so that memory does not grow with their number."""
        suspects = repeated(self._checked())
        named: dict[str, int] = {}
        for index, part in self._samples() if suspects else ():
            name = self._name(index, part)
            if digest64(name) in suspects and named.setdefault(name, index) != index:
                one, two = self._source.path_of(named[name]), part.path_of(index)
                raise StoreError(f"{one} and {two} would both be written as {name}")

    def _checked(self) -> Iterator[str]:
        for index, part in self._samples():
            name = self._name(index, part)
            if not self._form.holds(name):
                raise StoreError(f"{part.path_of(index)!r} cannot keep its name or class in a store; rename it")
            yield name
