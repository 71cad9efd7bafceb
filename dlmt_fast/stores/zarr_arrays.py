"""Images in Zarr arrays, as a source: (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8, labels in an array beside them.

A folder is one array, or a group with any number of arrays at any depth. Values are read through zarr-python, a few
chunks at a time, whatever their codecs. A chunk that is missing reads as the fill value in Zarr: here it is an error,
as nothing tells a black image from a lost one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DlmtError, StoreDamagedError, StoreError
from .axes import channels_first, image_shape, layout_of
from .contract import Array, Batch, FileStamp, Reader, Refused, ShardSpec, Survey
from .location import is_remote
from .npy import encode_labels
from .remote_errors import remote_errors
from .runs import Runs, labels_beside
from .scattered import ScatteredSamples, refuse_remote
from .walk import exists, files_under, is_file, stamp_of
from .zarr_format import METADATA, library

_SLICE_BYTES = 4 << 20
_MAX_CHUNK = 1 << 30
_SCATTERED_ROWS, _SCATTERED_BYTES = 16, 1 << 20  # a chunk beyond both is not decoded for a single image


def looks_like_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group, version 3."""
    return is_file(path / METADATA)


class ZarrSource:
    """Reads every array of images of a folder; `labels` are the arrays beside them, by array of images."""

    kind = "zarr"
    named = in_folders = single = own_names = False

    def __init__(self, path: Path) -> None:
        if not is_file(path / METADATA):
            what = "is no Zarr array or group of version 3" if exists(path) else "does not exist"
            raise StoreError(f"{path} {what}")
        self.root = path
        files = files_under(path)
        self._stamps = [stamp_of(path, name, files) for name in files]
        self._arrays = _arrays(path, self._stamps)
        beside = {name: _labels_of(name) for name in self._arrays if _labels_of(name) in self._arrays}
        whole = {name: array for name, array in self._arrays.items() if name not in beside.values()}
        self.images = [name for name, array in whole.items() if len(array.shape) in (3, 4)]
        self.labels = {name: beside[name] for name in self.images if name in beside}
        self._left_out = sorted(set(self._arrays) - {*self.images, *self.labels.values()})
        if not self.images:
            raise StoreError(f"{path} holds no array of images (N, H, W), (N, H, W, C) or (N, C, H, W)")
        for name in self.images:
            self._check(name, set(files))
        self._known: tuple[int, NDArray[np.integer[Any]]] | None = None
        self._runs = Runs([name or "images" for name in self.images], [self._shape(name)[0] for name in self.images])

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(map(int, self._arrays[name].shape))

    def _check(self, name: str, files: set[str]) -> None:
        array, where = self._arrays[name], self.root / name
        if array.dtype != np.uint8:
            raise StoreError(f"{where} holds {array.dtype} values; images to transform are uint8")
        layout_of(self._shape(name), where)
        for each in (name, *([self.labels[name]] if name in self.labels else [])):
            _refuse_missing(self._arrays[each], self.root / each, each, files)

    @property
    def left_alone(self) -> str:
        """Arrays that are not read, in words; empty where there is none."""
        return f"the arrays {', '.join(self._left_out)} (neither images nor their labels)" if self._left_out else ""

    @property
    def extras(self) -> list[str]:
        return list(self.labels.values())

    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
        for name, stored in zip(self.images, shards, strict=True):
            if name in self.labels:
                yield self.labels[name], labels_beside(stored, ".npy")

    def extra_bytes(self, name: str) -> bytes:
        """The .npy file of one of `extras`."""
        images = next(images for images, labels in self.labels.items() if labels == name)
        return encode_labels(self.read_labels(images))

    def read_labels(self, images: str) -> NDArray[np.integer[Any]]:
        """The labels (N,) of an array of images, integers.

        Raises:
            StoreError: they are none, or another number.
        """
        array, count = self._arrays[self.labels[images]], self._shape(images)[0]
        if array.dtype.kind not in "iu" or tuple(array.shape) != (count,):
            raise StoreError(
                f"{self.root / self.labels[images]} holds {array.dtype} of shape {tuple(array.shape)}; labels are "
                f"{count} integers, shape ({count},)"
            )
        with _own_errors(self.root / self.labels[images]):
            return np.asarray(array[:])

    def stamps(self) -> Iterator[FileStamp]:
        return iter(self._stamps)

    def survey(self) -> Survey:
        survey = Survey()
        for name in self.images:
            shape = self._shape(name)
            survey.add(image_shape(shape, self.root / name), name or "images", shape[0])
        for name in self.labels:
            self.read_labels(name)  # wrong labels are refused before any work
        return survey

    def shards(self) -> list[ShardSpec]:
        return self._runs.shards()

    def array_shape(self, shard: int) -> tuple[int, ...]:
        """The shape and so the layout of a shard's array."""
        return self._shape(self.images[shard])

    def number_classes(self) -> None:
        """Labels are numbers."""

    def part(self, samples: range) -> ZarrSource:
        """Itself, which holds no values."""
        return self

    def pick(self, samples: Sequence[int]) -> Reader:
        refuse_remote(self.root)
        for name in self.images:
            array = self._arrays[name]
            rows, size = int(array.chunks[0]), int(np.prod(array.chunks, dtype=object))
            if rows > _SCATTERED_ROWS and size > _SCATTERED_BYTES:
                raise StoreError(
                    f"{self.root / name} has chunks of {rows} images, and reading one image in a random order would "
                    f"decode all of them; write it with chunks of at most {_SCATTERED_ROWS} images"
                )
        return ScatteredSamples(self)

    def find(self, index: int) -> tuple[int, int]:
        return self._runs.find(index)

    def check(self, shard: int) -> None:
        """Refuse an array whose files changed; of a remote file, no other content is asked for."""
        for stamp in () if is_remote(self.root) else self._stamps:
            if stamp.path.startswith(self.images[shard]):
                stamp.check_unchanged(self.root)

    def gather(self, shard: int, places: NDArray[np.int64]) -> Array:
        """The images (n, C, H, W) at these places of an array."""
        name = self.images[shard]
        array, path, order = self._arrays[name], self.root / name, np.argsort(places)
        found = np.empty((len(places), *self._shape(name)[1:]), np.uint8)
        with _own_errors(path):
            found[order] = np.asarray(array.oindex[(places[order], *[slice(None)] * (len(array.shape) - 1))])
        return channels_first(found, self._shape(name), path)

    def label_of(self, index: int) -> int | None:
        """From the array beside the images."""
        shard, first = self._runs.find(index)
        name = self.images[shard]
        if name not in self.labels:
            return None
        if self._known is None or self._known[0] != shard:
            self._known = shard, self.read_labels(name)
        return int(self._known[1][index - first])

    def path_of(self, index: int) -> str:
        return self._runs.path_of(index)

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """A run of one shard's images, in slices of whole chunks."""
        if not indices:
            return
        shard, first = self._runs.find(indices[0])
        samples = range(indices[0] - first, indices[-1] + 1 - first)
        name = self.images[shard]
        self.check(shard)
        for start, images in read_slices(self._arrays[name], self.root / name, samples):
            yield Batch(range(first + start, first + start + len(images)), images)


def read_slices(array: Any, path: Path, samples: range) -> Iterator[tuple[int, Array]]:
    """(first image, values (n, C, H, W)) over a run of images, cut where chunks end.

    Raises:
        StoreDamagedError: a chunk cannot be decoded.
    """
    chunk, item = int(array.chunks[0]), int(np.prod(array.shape[1:], dtype=object)) * array.dtype.itemsize
    step = chunk * max(1, _SLICE_BYTES // (chunk * item))
    start = samples.start
    while start < samples.stop:
        stop = min(samples.stop, (start // step + 1) * step)
        with _own_errors(path):
            values = np.asarray(array[start:stop])
        yield start, channels_first(values, tuple(array.shape), path)
        start = stop


def _labels_of(images: str) -> str:
    parent, slash, name = images.rpartition("/")
    return parent + slash + labels_beside(name)


def _arrays(root: Path, stamps: Sequence[FileStamp]) -> dict[str, Any]:
    """The arrays of a hierarchy by name; that of `root` itself is called ""."""
    found, opening = {}, _opening(root, stamps)
    for stamp in stamps:
        if stamp.path == METADATA or stamp.path.endswith(f"/{METADATA}"):
            name = stamp.path.removesuffix(METADATA).removesuffix("/")
            with _own_errors(root / name):
                node = opening(name)
                if isinstance(node, library().Array):
                    found[name] = node
    return found


def _opening(root: Path, stamps: Sequence[FileStamp]) -> Callable[[str], Any]:
    """What opens an array or group below `root` by its name."""
    zarr = library()
    if not is_remote(root):
        return lambda name: zarr.open(str(root / name), mode="r", zarr_format=3)
    from .zarr_remote import StampedStore

    store = StampedStore(root, {stamp.path: stamp for stamp in stamps})
    return lambda name: zarr.open(store, path=name, mode="r", zarr_format=3)


def _refuse_missing(array: Any, path: Path, name: str, files: set[str]) -> None:
    """Refuse an array with missing objects, or with chunks of absurd size.

    Raises:
        StoreDamagedError: that.
    """
    with _own_errors(path):
        item, stored = array.dtype.itemsize, array.metadata.chunk_grid.chunk_shape
        if int(np.prod(array.chunks, dtype=object)) * item > _MAX_CHUNK:
            raise StoreDamagedError(
                f"{path} claims chunks of {array.chunks} values; at most {_MAX_CHUNK} bytes are read"
            )
        grid = [-(-size // cut) for size, cut in zip(array.shape, stored, strict=True)]
        expected = int(np.prod(grid, dtype=object))
        prefix = f"{name}/" if name else ""
        there = sum(file.startswith(prefix) for file in files)
        places = np.ndindex(*grid) if expected <= there else ()
        keys = (prefix + array.metadata.encode_chunk_key(place) for place in places)
        missing = expected if expected > there else sum(key not in files for key in keys)
    if missing:
        raise StoreDamagedError(
            f"{path} lacks {missing} of its {expected} stored chunks; Zarr would read them as the fill value. If they "
            'were left out because they are blank, write the array again with config={"write_empty_chunks": True}'
        )


@contextmanager
def _own_errors(path: Path) -> Iterator[None]:
    """Whatever zarr says of damaged content becomes a StoreDamagedError."""
    try:
        with remote_errors(path):
            yield
    except (DlmtError, MemoryError):
        raise
    except Exception as error:  # codecs and metadata raise almost anything on damaged content
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk failed
        raise StoreDamagedError(f"{path} is no Zarr array, or damaged ({type(error).__name__}: {error})") from None
