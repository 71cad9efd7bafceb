"""Arrays of images in .npy files, with labels in another one beside it: (N, H, W), (N, H, W, C) or (N, C, H, W).

Headers are matched, never evaluated, and an array of objects, which would be a pickle, is refused. Values are read in
slices: memory stays bounded as with a mapping, and a file that shrinks under the reader is an error, not a signal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreDamagedError, StoreError
from .axes import channels_first, image_shape, layout_of
from .contract import Array, Batch, FileStamp, Reader, Refused, ShardSpec, Survey
from .decode import SUFFIXES
from .npy import encode_header, encode_labels
from .reading import head_of, opened, size_of
from .runs import Runs, labels_beside
from .scattered import ScatteredSamples, gather_items, refuse_remote
from .sliced import ArrayFile
from .walk import Found, exists, files_in, glanced, is_file, is_folder, stamp_of

SLICE_BYTES = 1 << 20  # several times the cache of a core; larger ones cost memory and gain no time
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}
_MAX_HEADER = 1 << 16
_HEADER = re.compile(
    rb"\{'descr': '([<>|][a-z][0-9]{1,2})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*[0-9]{0,18})\),? ?\}\s*"
)


@dataclass(frozen=True)
class ArrayHeader:
    """What the header of a .npy file says; `data_start` is where the values begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data_start: int

    @property
    def item_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize


def looks_like_npy(path: Path) -> bool:
    """Whether a file begins as a .npy file does, or a folder holds some .npy files and neither folders nor images."""
    if is_folder(path):
        others = any(entry.is_dir() or Path(entry.name).suffix.lower() in SUFFIXES for entry in glanced(path))
        return not others and any(entry.name.endswith(".npy") for entry in glanced(path))
    return head_of(path, 6) == _MAGIC


def read_array_header(path: Path) -> ArrayHeader:
    """The header of a .npy file that holds exactly the values that it promises, in C order.

    Raises:
        StoreError: the array is one of objects or in Fortran order, which this package does not read.
        StoreDamagedError: it is no .npy file, or shorter or longer than its header says.
    """
    with opened(path) as file:
        head = file.read(8)
        width = _LENGTH_BYTES.get(head[6:])
        if head[:6] != _MAGIC or width is None:
            raise StoreDamagedError(f"{path} is not a .npy file" if head else f"{path} is empty")
        length = int.from_bytes(file.read(width), "little")
        text = file.read(min(length, _MAX_HEADER))
    match = _HEADER.fullmatch(text)
    if match is None or len(text) != length:
        why = "it holds objects, which only a pickle could restore" if b"'|O'" in text else "its header is malformed"
        raise StoreDamagedError(f"{path} is not an array of numbers: {why}")
    try:
        dtype = np.dtype(match[1].decode("ascii"))
    except TypeError:
        raise StoreDamagedError(f"{path} is not an array of numbers: its type is {match[1]!r}") from None
    if match[2] == b"True":
        raise StoreError(f"{path} is in Fortran order; save it again with numpy.save(name, numpy.ascontiguousarray(a))")
    shape = tuple(int(size) for size in match[3].replace(b" ", b"").split(b",") if size)
    header = ArrayHeader(dtype, shape, 8 + width + length)
    expected, found = int(np.prod(shape, dtype=object)) * dtype.itemsize, size_of(path) - header.data_start
    if found != expected:
        what = "truncated" if found < expected else "longer than its header says"
        raise StoreDamagedError(f"{path} is {what}: {found} bytes of values, and its header says {expected}")
    return header


def read_slices(path: Path, header: ArrayHeader, samples: range) -> Iterator[tuple[int, Array]]:
    """(first image, values (n, C, H, W)) over a run of images.

    Raises:
        StoreDamagedError: the file ends early.
    """
    step = max(1, SLICE_BYTES // header.item_bytes)
    with opened(path) as file:
        file.seek(header.data_start + samples.start * header.item_bytes)
        for start in range(samples.start, samples.stop, step):
            count = min(step, samples.stop - start)
            data = file.read(count * header.item_bytes)
            if len(data) != count * header.item_bytes:
                raise StoreDamagedError(f"{path} was cut while it was read")
            values = np.frombuffer(data, header.dtype).reshape(count, *header.shape[1:])
            yield start, channels_first(values, header.shape, path)


def labels_name(images: str) -> str:
    """Where the labels of an images file are; see `runs.labels_beside`."""
    return labels_beside(images, ".npy")


def read_labels(path: Path, count: int) -> NDArray[np.integer[Any]]:
    """The labels (count,) of a file, integers.

    Raises:
        StoreError: they are none, or another number.
    """
    header = read_array_header(path)
    if header.dtype.kind not in "iu" or header.shape != (count,):
        raise StoreError(
            f"{path} holds {header.dtype} of shape {header.shape} beside {count} images; labels are {count} integers, "
            f"shape ({count},)"
        )
    with opened(path) as file:
        file.seek(header.data_start)
        return np.frombuffer(file.read(), header.dtype)


class NpySource:
    """Reads one .npy file of images, or every one of a folder; `labels` are the files beside them, by images file."""

    kind = "npy"
    named = in_folders = own_names = False

    def __init__(self, path: Path) -> None:
        if not exists(path):
            raise StoreError(f"{path} does not exist")
        self.single = not is_folder(path)
        self.root = path.parent if self.single else path
        files: Found = {path.name: None} if self.single else files_in(path)
        if self.single and is_file(path.with_name(labels_name(path.name))):
            files[labels_name(path.name)] = None
        names = sorted(files)
        arrays = [name for name in names if name.endswith(".npy") or self.single]
        present = {name: labels_name(name) for name in arrays if labels_name(name) in files}
        self.images = [name for name in arrays if name not in present.values()]
        self.labels = {name: present[name] for name in self.images if name in present}
        if not self.images:
            raise StoreError(f"{path} holds no .npy file of images")
        self._left_out = sorted(set(names) - {*self.images, *self.labels.values()})
        self._stamps = [stamp_of(self.root, name, files) for name in sorted([*self.images, *self.labels.values()])]
        self.headers = [self._header(name) for name in self.images]
        self._values: dict[int, NDArray[np.integer[Any]]] = {}
        self._runs = Runs(self.images, [header.shape[0] for header in self.headers])

    def _header(self, name: str) -> ArrayHeader:
        header = read_array_header(self.root / name)
        if header.dtype != np.uint8:
            raise StoreError(f"{self.root / name} holds {header.dtype} values; images to transform are uint8")
        layout_of(header.shape, self.root / name)
        return header

    @property
    def left_alone(self) -> str:
        """Files of the folder that are not read, in words; empty where there is none."""
        return f"{', '.join(self._left_out)} (no .npy by name)" if self._left_out else ""

    @property
    def extras(self) -> list[str]:
        return list(self.labels.values())

    def extra_bytes(self, name: str) -> bytes:
        """The labels file to be published for one of `extras`."""
        self._check_unchanged(name)
        images = next(images for images, labels in self.labels.items() if labels == name)
        return encode_labels(read_labels(self.root / name, self.headers[self.images.index(images)].shape[0]))

    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
        for name, stored in zip(self.images, shards, strict=True):
            if name in self.labels:
                yield self.labels[name], labels_name(stored)

    def stamps(self) -> Iterator[FileStamp]:
        return iter(self._stamps)

    def _check_unchanged(self, name: str) -> None:
        next(stamp for stamp in self._stamps if stamp.path == name).check_unchanged(self.root)

    def survey(self) -> Survey:
        survey = Survey()
        for name, header in zip(self.images, self.headers, strict=True):
            survey.add(image_shape(header.shape, self.root / name), name, header.shape[0])
        for name in self.extras:
            self.extra_bytes(name)  # wrong labels are refused before any work
        return survey

    def shards(self) -> list[ShardSpec]:
        return self._runs.shards()

    def number_classes(self) -> None:
        """Labels are numbers."""

    def array_shape(self, shard: int) -> tuple[int, ...]:
        """(N, H, W), (N, H, W, C) or (N, C, H, W)."""
        return self.headers[shard].shape

    def part(self, samples: range) -> NpySource:
        """Itself, which holds no values."""
        return self

    def pick(self, samples: Sequence[int]) -> Reader:
        refuse_remote(self.root)
        return ScatteredSamples(self)

    def find(self, index: int) -> tuple[int, int]:
        return self._runs.find(index)

    def check(self, shard: int) -> None:
        """Refuse a file that changed."""
        self._check_unchanged(self.images[shard])

    def gather(self, shard: int, places: NDArray[np.int64]) -> Array:
        """The images (n, C, H, W) at these places of a file."""
        path, header = self.root / self.images[shard], self.headers[shard]
        return channels_first(gather_items(path, header.data_start, header.shape[1:], places), header.shape, path)

    def path_of(self, index: int) -> str:
        return self._runs.path_of(index)

    def label_of(self, index: int) -> int | None:
        """From the labels beside the images."""
        shard, first = self._runs.find(index)
        name = self.images[shard]
        if name not in self.labels:
            return None
        if shard not in self._values:
            self._check_unchanged(self.labels[name])
            self._values[shard] = read_labels(self.root / self.labels[name], self.headers[shard].shape[0])
        return int(self._values[shard][index - first])

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """A run of one shard's images, in slices."""
        if not indices:
            return
        shard, first = self._runs.find(indices[0])
        self._check_unchanged(self.images[shard])
        samples = range(indices[0] - first, indices[-1] + 1 - first)
        for start, images in read_slices(self.root / self.images[shard], self.headers[shard], samples):
            yield Batch(range(first + start, first + start + len(images)), images)


def npy_file(name: str, dtype: str, shape: tuple[int, ...]) -> ArrayFile:
    """A .npy file of images, version 1.0, in the layout that its `shape` has; `numpy.load(..., mmap_mode="r")` reads
    it."""
    values = np.dtype(dtype).newbyteorder("<")
    header = ArrayHeader(values, shape, 0)
    return ArrayFile(
        encode_header(values, shape), values, shape[0], header.item_bytes, layout_of(shape, Path(name)) == "NHWC"
    )
