"""CIFAR-10 and CIFAR-100, as a source: the Python files (pickles) or the binary ones, in a folder or a .tar.gz.

Such a data set becomes a store of .npy files: `train-images.npy`, `train-labels.npy` and the same for `test`
(CIFAR-100 also has `...-coarse-labels.npy`), in the order of the data set. Not CIFAR files again, for three reasons:
torchvision compares the MD5 of every file with the published one and would refuse them ("not found or corrupted");
they hold bytes only, no floats; and a reader of pickles runs what they say, which nobody should do with files from
elsewhere.

The data set has 184 MB and is held in memory while it is transformed. Names of files, of classes and of batches are
dropped; labels are numbers.
"""

from __future__ import annotations

import gzip
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreDamagedError, StoreError
from .contract import Batch, FileStamp, Reader, Refused, ShardSpec, Survey
from .npy import encode_labels
from .reading import opened, read_file
from .restricted_pickle import MAX_BYTES, load
from .runs import Runs
from .scattered import ScatteredSamples
from .walk import Found, exists, files_in, is_file, is_folder, stamp_of

_SHAPE = (3, 32, 32)
_PIXELS = 3072
_BATCH = 1024


@dataclass(frozen=True)
class Layout:
    """A form of the data set: the files of each split in order, and the kinds of labels with their number of classes.

    The first kind is published as `labels`. In the binary files each image has a byte for each kind, in the order
    of `label_bytes`, and then its pixels.
    """

    splits: dict[str, tuple[str, ...]]
    labels: dict[str, int]
    binary: bool
    label_bytes: tuple[str, ...] = ()


_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
LAYOUTS = (
    Layout({"train": _TEN, "test": ("test_batch",)}, {"labels": 10}, False),
    Layout(
        {"train": tuple(f"{name}.bin" for name in _TEN), "test": ("test_batch.bin",)}, {"labels": 10}, True, ("labels",)
    ),
    Layout({"train": ("train",), "test": ("test",)}, {"fine_labels": 100, "coarse_labels": 20}, False),
    Layout(
        {"train": ("train.bin",), "test": ("test.bin",)},
        {"fine_labels": 100, "coarse_labels": 20},
        True,
        ("coarse_labels", "fine_labels"),
    ),
)
_ARCHIVES = (".tar.gz", ".tgz", ".tar")


def looks_like_cifar(path: Path) -> bool:
    """Whether a folder has a file named as the data set's, or an archive is called as the data set's."""
    if is_folder(path):
        # CIFAR-100's "train" and "test" are also what people call folders of images: those are folders
        return any(is_file(path / names[0]) for layout in LAYOUTS for names in layout.splits.values())
    return path.name.startswith("cifar-") and path.name.endswith(_ARCHIVES)


@dataclass(frozen=True, eq=False)
class Part:
    """Images (N, 3, 32, 32) and labels (N,) by kind."""

    images: NDArray[np.uint8]
    labels: dict[str, NDArray[np.uint8]]


class CifarSource:
    """Reads the data set, whole; `root` is the folder, or the one of the archive."""

    kind = "cifar"
    named = in_folders = single = False
    own_names = True

    def __init__(self, path: Path) -> None:
        if not exists(path):
            raise StoreError(f"{path} does not exist")
        folder = is_folder(path)
        self.root = path if folder else path.parent
        files: Found = files_in(path) if folder else {path.name: None}
        present = list(files) if folder else _names_in(path)
        self._layout = _layout_of(set(present), path)
        names = [name for split in self._layout.splits.values() for name in split]
        self._stamps = [stamp_of(self.root, name, files) for name in sorted(names if folder else files)]
        self._left_out = sorted(set(present) - set(names))
        contents = self._read_folder() if folder else _read_archive(path, names, self._stamps[0])
        parts = {name: _part(contents.pop(name), self._layout, f"{path}: {name}") for name in names}
        self._splits = [_joined([parts.pop(name) for name in split]) for split in self._layout.splits.values()]
        self._runs = Runs(list(self._layout.splits), [len(part.images) for part in self._splits])
        self._extras = {
            f"{split}-{'labels' if not i else kind.replace('_', '-')}.npy": part.labels[kind]
            for split, part in zip(self._layout.splits, self._splits, strict=True)
            for i, kind in enumerate(self._layout.labels)
        }
        self._check_unchanged()

    @property
    def left_alone(self) -> str:
        """Files that are not read, in words; empty where there is none."""
        return f"{', '.join(self._left_out)} (no images)" if self._left_out else ""

    @property
    def extras(self) -> list[str]:
        return list(self._extras)

    def extra_bytes(self, name: str) -> bytes:
        """The .npy file of one of `extras`: uint8 (N,)."""
        return encode_labels(self._extras[name])

    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
        return zip(self.extras, self.extras, strict=True)

    def stamps(self) -> Iterator[FileStamp]:
        return iter(self._stamps)

    def _read_folder(self) -> dict[str, bytes]:
        for stamp in self._stamps:
            if stamp.size > MAX_BYTES:
                raise StoreDamagedError(f"{self.root / stamp.path} has {stamp.size} bytes, more than any file of CIFAR")
        return {stamp.path: read_file(self.root / stamp.path, stamp) for stamp in self._stamps}

    def _check_unchanged(self) -> None:
        for stamp in self._stamps:
            stamp.check_unchanged(self.root)

    def survey(self) -> Survey:
        survey = Survey()
        for split, part in zip(self._layout.splits, self._splits, strict=True):
            survey.add(_SHAPE, f"{split}-images.npy", len(part.images))
        return survey

    def shards(self) -> list[ShardSpec]:
        return self._runs.shards("-images.npy")

    def number_classes(self) -> None:
        """Labels are numbers."""

    def array_shape(self, shard: int) -> tuple[int, ...]:
        """(N, 3, 32, 32)."""
        return self._splits[shard].images.shape

    def part(self, samples: range) -> CifarPart:
        """What holds these samples alone, which are of one split."""
        split, first = self._runs.find(samples.start)
        images, labels = self._splits[split].images, next(iter(self._splits[split].labels.values()))
        places = slice(samples.start - first, samples.stop - first)
        name, values = list(self._layout.splits)[split], labels[places].astype(np.int64).tolist()
        return CifarPart(name, first, samples, images[places], values)

    def pick(self, samples: Sequence[int]) -> Reader:
        return ScatteredSamples(self)

    def find(self, index: int) -> tuple[int, int]:
        return self._runs.find(index)

    def check(self, shard: int) -> None:
        """Nothing: it is in memory."""

    def gather(self, shard: int, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images (n, 3, 32, 32) at these places of a split."""
        return self._splits[shard].images[places]

    def path_of(self, index: int) -> str:
        return self._runs.path_of(index)

    def label_of(self, index: int) -> int | None:
        """The class, of CIFAR-100 the fine one."""
        split, first = self._runs.find(index)
        return int(next(iter(self._splits[split].labels.values()))[index - first])

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """A run of one split's images."""
        if not indices:
            return
        shard, first = self._runs.find(indices[0])
        for start in range(indices[0], indices[-1] + 1, _BATCH):
            stop = min(start + _BATCH, indices[-1] + 1)
            yield Batch(range(start, stop), self._splits[shard].images[start - first : stop - first])


@dataclass(frozen=True, eq=False)
class CifarPart:
    """A run of one split's samples: its name and first sample, the run, images (n, 3, 32, 32) and class numbers."""

    split: str
    first: int
    samples: range
    images: NDArray[np.uint8]
    labels: list[int]

    def path_of(self, index: int) -> str:
        return f"{self.split}#{index - self.first}"

    def label_of(self, index: int) -> int | None:
        return self.labels[self.samples.index(index)]

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """A run of these samples."""
        start = self.samples.start
        for run in (indices[place : place + _BATCH] for place in range(0, len(indices), _BATCH)):
            yield Batch(range(run[0], run[-1] + 1), self.images[run[0] - start : run[-1] + 1 - start])


def _layout_of(names: set[str], path: Path) -> Layout:
    """The form that a place holds, whole.

    Raises:
        StoreError: none, or some of its files are missing, or there are several.
    """
    wanted = [(layout, {name for split in layout.splits.values() for name in split}) for layout in LAYOUTS]
    begun = [(layout, files - names) for layout, files in wanted if files & names]
    if not begun:
        raise StoreError(
            f"{path} has none of the files of CIFAR-10 or CIFAR-100 (data_batch_1 and so on, train, or with .bin)"
        )
    if len(begun) > 1:
        raise StoreError(f"{path} holds several forms of CIFAR beside each other; give each a folder of its own")
    layout, missing = begun[0]
    if missing:
        raise StoreError(f"{path} lacks {', '.join(sorted(missing))}")
    return layout


def _names_in(path: Path) -> list[str]:
    with _own_errors(path), opened(path) as file, tarfile.open(fileobj=file) as archive:
        return [PurePosixPath(member.name).name for member in archive if member.isreg()]


def _read_archive(path: Path, names: list[str], stamp: FileStamp) -> dict[str, bytes]:
    """The members of these names, in one pass; nothing is unpacked to a disk."""
    found: dict[str, bytes] = {}
    with _own_errors(path), opened(path, stamp) as file, tarfile.open(fileobj=file) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if not member.isreg() or name not in names:
                continue
            if name in found or member.size > MAX_BYTES:
                why = "is in it twice" if name in found else f"claims {member.size} bytes"
                raise StoreDamagedError(f"{path} is not CIFAR's archive: {name} {why}")
            content = archive.extractfile(member)
            assert content is not None, "a regular member has content"
            found[name] = content.read()
            if len(found[name]) != member.size:
                raise StoreDamagedError(f"{path} is truncated inside {name}")
        assert archive.fileobj is not None, "it was opened from a path"
        while archive.fileobj.read(1 << 20):  # to the end, so that gzip compares its checksum
            pass
    return found


@contextmanager
def _own_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StoreDamagedError(f"{path} is a damaged or truncated archive: {error}") from None


def _part(data: bytes, layout: Layout, where: str) -> Part:
    part = _from_binary(data, layout, where) if layout.binary else _from_pickle(data, layout, where)
    for kind, values in part.labels.items():
        if len(values) and int(values.max()) >= layout.labels[kind]:
            raise StoreDamagedError(f"{where} has a label {int(values.max())} of {layout.labels[kind]} {kind}")
    return part


def _from_binary(data: bytes, layout: Layout, where: str) -> Part:
    width = len(layout.label_bytes)
    if not data or len(data) % (width + _PIXELS):
        raise StoreDamagedError(f"{where} has {len(data)} bytes, not a multiple of {width + _PIXELS}: it is truncated")
    rows = np.frombuffer(data, np.uint8).reshape(-1, width + _PIXELS)
    labels = {kind: rows[:, layout.label_bytes.index(kind)].copy() for kind in layout.labels}
    return Part(np.ascontiguousarray(rows[:, width:]).reshape(-1, *_SHAPE), labels)


def _from_pickle(data: bytes, layout: Layout, where: str) -> Part:
    try:
        content = load(data)
    except pickle.UnpicklingError as error:
        raise StoreDamagedError(f"{where} is not a file of CIFAR: {error}") from None
    images, labels = content.get("data"), {kind: content.get(kind) for kind in layout.labels}
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != _PIXELS:
        raise StoreDamagedError(f"{where} is not a file of CIFAR: it has no array of N x {_PIXELS} bytes as data")
    for kind, values in labels.items():
        whole = isinstance(values, list) and all(type(value) is int and 0 <= value <= 255 for value in values)
        if not whole:
            raise StoreDamagedError(f"{where} is not a file of CIFAR: its {kind} are no list of small numbers")
        if len(values or ()) != len(images):
            raise StoreDamagedError(f"{where} is damaged: {len(values or ())} {kind} beside {len(images)} images")
    return Part(
        np.ascontiguousarray(images).reshape(-1, *_SHAPE),
        {kind: np.array(values, np.uint8) for kind, values in labels.items()},
    )


def _joined(parts: list[Part]) -> Part:
    return Part(
        np.concatenate([part.images for part in parts]),
        {kind: np.concatenate([part.labels[kind] for part in parts]) for kind in parts[0].labels},
    )
