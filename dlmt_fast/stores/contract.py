"""What a store format provides: a source that lists and reads samples, a writer that publishes shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from .location import is_remote
from .remote import information, size_and_state

Shape: TypeAlias = tuple[int, int, int]
Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class FileStamp:
    """A source file as the job record fixes it; `path` is relative and POSIX.

    Attributes:
        state: what changes with the content: of a local file its time of change in ns, of a remote one its tag.
    """

    path: str
    size: int
    state: int | str

    @classmethod
    def of(cls, root: Path, path: str) -> FileStamp:
        """The stamp of `root / path` now."""
        if is_remote(root):
            return cls(path, *size_and_state(information(root / path), str(root / path)))
        status = (root / path).stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def check_unchanged(self, root: Path) -> None:
        """Refuse the file if it changed since it was listed.

        Raises:
            StoreError: it did.
        """
        if FileStamp.of(root, self.path) != self:
            raise changed(root / self.path)


def changed(path: Path) -> StoreError:
    """The error for a source file that is not what it was."""
    return StoreError(f"{path} changed since the job began; start again when the source is at rest")


#: What the reason of a sample begins with that is not taken because it is equal to another, whose name follows.
EQUAL = "equal to "


@dataclass(frozen=True)
class Refused:
    """A sample that cannot be taken, by its index in the source, with the reason."""

    index: int
    path: str
    reason: str

    @property
    def equal(self) -> bool:
        """Whether it is left out because it is equal to another, and nothing is wrong with it."""
        return self.reason.startswith(EQUAL)


#: A value of a field that passes unchanged; the bytes of a tar's member, or what a column holds. None: it has none.
Value: TypeAlias = bytes | str | int | float | None

KEPT_BYTES = 64 << 10  # of a value that passes: numbers and short text, no image


class Kept(NamedTuple):
    """A field beside image and label that passes unchanged, and what it is in Parquet: "int64", "string", "binary"."""

    name: str
    type: str


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one shape: their indices in the source, uint8 images (N, C, H, W), labels where it has them, and the
    values of fields that pass unchanged.

    `spare`: nobody else has the images' memory, so a result may be written over them.
    """

    indices: Sequence[int]
    images: NDArray[np.uint8]
    labels: Sequence[int] | None = None
    kept: Sequence[Mapping[str, Value]] | None = None
    spare: bool = False


FEW = 10_000  # samples of a shape that a survey still lists one by one


@dataclass
class Survey:
    """What a source holds, found without decoding pixels: how many samples of each shape there are, one of them by its
    path, and what cannot be taken. Its size does not grow with the number of samples, but with that of shapes and of
    refused samples.

    Attributes:
        odd: samples that are left out since most have another shape, with the reason; see `leave_out_others`.
    """

    shapes: dict[Shape, tuple[int, str]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    odd: dict[int, Refused] = field(default_factory=dict)
    _few: dict[Shape, list[tuple[int, str]]] = field(default_factory=dict, repr=False)  # by shape, where they are few
    _listed: int = 0

    def add(self, shape: Shape, path: str, count: int = 1, index: int | None = None) -> None:
        """Count samples of a shape; the first path of each is kept. `index`: of a sample that can be left out."""
        before, first = self.shapes.get(shape, (0, path))
        self.shapes[shape] = before + count, first
        if index is not None and before < FEW and self._listed < 10 * FEW:
            self._few.setdefault(shape, []).append((index, path))
            self._listed += 1
        elif shape in self._few:  # many: the usual shape, or none that is usual
            self._listed -= len(self._few.pop(shape))

    def leave_out_others(self) -> Shape | None:
        """Put all samples into `odd` that have not the shape of more than half; gives this shape. None, and nothing
        changes, where no shape is that usual, or the others are too many to be listed."""
        usual, (count, _) = max(self.shapes.items(), key=lambda item: item[1][0])
        others = [shape for shape in self.shapes if shape != usual]
        listed = all(len(self._few.get(shape, ())) == self.shapes[shape][0] for shape in others)
        if not listed or 2 * count <= sum(number for number, _ in self.shapes.values()):
            return None
        for shape in others:
            reason = f"it is {_times(shape)}, and {count} others are {_times(usual)} (channels x height x width)"
            self.odd |= {index: Refused(index, path, reason) for index, path in self._few.pop(shape)}
            del self.shapes[shape]
        return usual

    def describe_shapes(self, most: int = 8) -> str:
        """Lines such as `120 x 3x480x640, for example cats/1.jpg`, the most frequent first."""
        ranked = sorted(self.shapes.items(), key=lambda item: (-item[1][0], item[0]))
        lines = [f"  {count} x {'x'.join(map(str, shape))}, for example {path}" for shape, (count, path) in ranked]
        return "\n".join(lines[:most] + ([f"  and {len(lines) - most} more sizes"] if len(lines) > most else []))


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class ShardSpec:
    """A unit of work and of publication: which samples, and the published file that stands for it."""

    index: int
    name: str
    samples: range


@dataclass(frozen=True)
class Published:
    """A finished shard: samples, bytes, and the SHA-256 of the file `name`."""

    name: str
    count: int
    size: int
    sha256: str


class Reader(Protocol):
    """What of a source a shard needs. It pickles, so that a worker process can be given it."""

    def path_of(self, index: int) -> str: ...

    def label_of(self, index: int) -> int | None:
        """A sample's class number, where it has one."""
        ...

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]: ...


class Source(Reader, Protocol):
    """A store that is read. None keeps an object a sample in memory; `stamps` yields the files in the order of their
    paths' bytes, anew at each call.

    Attributes:
        named: samples have names of their own, relative paths; else they are values of arrays, and shards are those.
        in_folders: the class of a sample is the first folder of its path.
        single: it is one file, not a folder of them.
        own_names: the names of its files are a data set's own and may be seen; else they tell something and are hidden.
        extras: files of labels, published as `extra_bytes` gives them, under the names that `extra_names` gives from
            the published names of the shards.
    """

    kind: str
    root: Path
    named: bool
    in_folders: bool
    single: bool
    own_names: bool

    @property
    def left_alone(self) -> str: ...
    @property
    def extras(self) -> Sequence[str]: ...
    def extra_bytes(self, name: str) -> bytes: ...
    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]: ...
    def stamps(self) -> Iterator[FileStamp]: ...
    def survey(self) -> Survey: ...
    def shards(self) -> list[ShardSpec]: ...

    def number_classes(self) -> tuple[str, ...] | None:
        """Have `label_of` give numbers where classes are names; gives these in order, None where there are none."""
        ...

    def array_shape(self, shard: int) -> tuple[int, ...]:
        """The shape of a shard's array, with its axes in the source's order; () where the samples are named."""
        ...

    def part(self, samples: range) -> Reader:
        """What reads these samples alone."""
        ...

    def pick(self, samples: Sequence[int]) -> Reader:
        """What reads these samples alone, which may lie anywhere, in any order.

        Raises:
            StoreError: the source is read in its own order only; the message says what to do.
        """
        ...


#: Called with what a writer is about to make visible, when all of it is on the disk; an error leaves it hidden.
Allow: TypeAlias = Callable[[Published], None]


def anyway(published: Published) -> None:
    """Allows whatever was written."""


class ShardWriter(Protocol):
    """Takes a shard's transformed samples; nothing is visible under a final name before `publish`, and there nothing
    before `allow` has returned."""

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None: ...
    def publish(self, allow: Allow = anyway) -> Published: ...
    def abort(self) -> None: ...


class KeepingWriter(ShardWriter, Protocol):
    """A writer of a kind that has a place for fields beside image and label."""

    def write(
        self,
        positions: Sequence[int],
        names: Sequence[str],
        images: Array,
        labels: Sequence[int] | None = None,
        kept: Sequence[Mapping[str, Value]] | None = None,
    ) -> None: ...
