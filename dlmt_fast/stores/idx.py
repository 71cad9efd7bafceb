"""MNIST's IDX files, plain or gzip: one images file, or a folder with images and labels files.

Header: two zero bytes, a type, the number of axes, then each size as a big-endian uint32. Values are big-endian.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from ..errors import RemoteError, StoreDamagedError, StoreError
from .contract import Array, Batch, FileStamp, Reader, Refused, ShardSpec, Survey
from .gzipped import pack
from .reading import opened, size_of
from .runs import Runs
from .scattered import ScatteredSamples, gather_items, refuse_remote
from .sliced import ArrayFile
from .walk import Found, exists, files_in, glanced, is_folder, stamp_of

_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4"), 0x0D: np.dtype(">f4")}
_CODES = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}
_IMAGES = re.compile(r"[-_.]idx3[-_.]ubyte(\.gz)?$")
_LABELS = re.compile(r"[-_.]idx1[-_.]ubyte(\.gz)?$")
SLICE_BYTES = 1 << 20  # several times the cache of a core; larger ones cost memory and gain no time
LABELS_HEADER = 8  # bytes
_GZIP = b"\x1f\x8b"
_GZIP_RATIO = 1040  # deflate cannot shrink further
_Inflate: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # what its stubs call an instance


@dataclass(frozen=True)
class Header:
    """Type and sizes of an IDX file; `data_start` is where the values begin."""

    dtype: np.dtype[Any]
    sizes: tuple[int, ...]

    @property
    def data_start(self) -> int:
        return 4 + 4 * len(self.sizes)

    @property
    def item_bytes(self) -> int:
        return int(np.prod(self.sizes[1:], dtype=object)) * self.dtype.itemsize

    @property
    def data_bytes(self) -> int:
        return self.sizes[0] * self.item_bytes


def looks_like_idx(path: Path) -> bool:
    """Whether a file begins as an IDX file does, or a folder has files named as MNIST's."""
    if is_folder(path):
        return any(_IMAGES.search(entry.name) for entry in glanced(path))
    try:
        with open_idx(path) as file:
            head = file.read(4)
    except RemoteError:
        raise
    except (OSError, EOFError, _Inflate):
        return False
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in (8, 9, 11, 12, 13, 14) and 1 <= head[3] <= 4


@contextmanager
def open_idx(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a plain or gzip file, by its content, not its name."""
    with opened(path) as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic == _GZIP:
            with igzip.IGzipFile(fileobj=raw, mode="rb") as unpacked:  # type: ignore[no-untyped-call]
                yield io.BufferedReader(unpacked, 1 << 20)
        else:
            yield raw


@contextmanager
def _own_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, _Inflate, gzip.BadGzipFile) as error:
        raise StoreDamagedError(f"{path} is a damaged gzip file: {error}") from None


def read_header(file: IO[bytes], path: Path) -> Header:
    """The header at the start of an IDX file.

    Raises:
        StoreDamagedError: it is none, or of a type or number of axes that images do not have.
    """
    with _own_errors(path):
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0":
            raise StoreDamagedError(f"{path} is not an IDX file" if head else f"{path} is empty")
        if head[2] not in _TYPES or head[3] != 3:
            raise StoreDamagedError(
                f"{path} holds IDX type 0x{head[2]:02X} with {head[3]} axes; images have type 0x08, 0x0C or 0x0D and 3"
            )
        rest = file.read(12)
    if len(rest) < 12:
        raise StoreDamagedError(f"{path} ends inside its header")
    sizes = struct.unpack(">3I", rest)
    if min(sizes[1:]) < 1:
        raise StoreDamagedError(f"{path} claims images of {sizes[1]}x{sizes[2]} pixels")
    return Header(_TYPES[head[2]], sizes)


def checked_header(path: Path) -> Header:
    """The header of an IDX file that is long enough for what its header says, as far as that shows without reading.

    Raises:
        StoreDamagedError: it is no IDX file of images, or certainly truncated.
    """
    with open_idx(path) as file:
        header = read_header(file, path)
        if not header.sizes[0]:  # no slice of it will ever be read
            with _own_errors(path):
                _refuse_more(file, path)
        ratio = _GZIP_RATIO if isinstance(file, io.BufferedReader) and isinstance(file.raw, gzip.GzipFile) else 1
    if header.data_start + header.data_bytes > ratio * size_of(path):
        raise StoreDamagedError(f"{path} is truncated: its header claims {header.data_bytes} bytes of values")
    return header


def read_labels(path: Path) -> bytes:
    """The decompressed bytes of a labels file, checked: one axis of bytes, as many as the header says.

    Raises:
        StoreDamagedError: it is none, or shorter or longer than its header says.
    """
    with open_idx(path) as file, _own_errors(path):
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"\0\0\x08\x01":
            raise StoreDamagedError(f"{path} is not an IDX file of labels (type 0x08, one axis)")
        labels = _read_exactly(file, struct.unpack(">I", head[4:])[0] + 1)
    if len(labels) != struct.unpack(">I", head[4:])[0]:
        raise StoreDamagedError(f"{path} does not hold as many labels as its header says")
    return head + labels


def stem(name: str) -> str:
    """What an images file and its labels file have in common: "train" of `train-images-idx3-ubyte.gz`."""
    return re.sub(r"[-_.]?(images|labels)$", "", _LABELS.sub("", _IMAGES.sub("", name)))


def encode_labels(data: bytes, name: str) -> bytes:
    """The file that holds checked labels: gzip without name and time where `name` ends in .gz."""
    if not name.endswith(".gz"):
        return data
    parts: list[bytes] = []
    pack([data], parts.append, level=0)
    return b"".join(parts)


def read_slices(path: Path, header: Header) -> Iterator[tuple[int, Array]]:
    """(first image, values (n, 1, H, W)) over the whole file; nothing is allocated from the header's word alone.

    Raises:
        StoreDamagedError: the file is shorter or longer than its header says.
    """
    with open_idx(path) as file, _own_errors(path):
        file.read(header.data_start)
        yield from _read_run(file, path, header, range(header.sizes[0]))


def _read_run(file: IO[bytes], path: Path, header: Header, places: range) -> Iterator[tuple[int, Array]]:
    """`read_slices` of the images at `places`, where `file` stands; at the end of the last it has to end."""
    step = max(1, SLICE_BYTES // header.item_bytes)
    for start in range(places.start, places.stop, step):
        count = min(step, places.stop - start)
        data = _read_exactly(file, count * header.item_bytes)
        if len(data) != count * header.item_bytes:
            have = start + len(data) // header.item_bytes
            raise StoreDamagedError(f"{path} is truncated: {have} of {header.sizes[0]} images are whole")
        yield start, np.frombuffer(data, header.dtype).reshape(count, 1, *header.sizes[1:])
    if places.stop == header.sizes[0]:
        _refuse_more(file, path)


def _refuse_more(file: IO[bytes], path: Path) -> None:
    if file.read(1):
        raise StoreDamagedError(f"{path} is longer than its header says")


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    """Up to `size` bytes in bounded pieces, so that an absurd header allocates nothing."""
    parts = []
    while size and (part := file.read(min(size, SLICE_BYTES))):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _Kept(NamedTuple):
    """A compressed file that is read on later, and where it stands."""

    shard: int
    place: int
    file: IO[bytes]
    stack: ExitStack


class IdxSource:
    """Reads one images file, or every `*-idx3-ubyte[.gz]` of a folder; labels files are listed in `extras`."""

    kind = "idx"
    named = in_folders = False
    own_names = True

    def __init__(self, path: Path) -> None:
        if not exists(path):
            raise StoreError(f"{path} does not exist")
        self.single = not is_folder(path)
        self.root = path.parent if self.single else path
        files: Found = {path.name: None} if self.single else files_in(path)
        names = sorted(files)
        self.images = names if self.single else [name for name in names if _IMAGES.search(name)]
        self.extras = [] if self.single else [name for name in names if _LABELS.search(name)]
        left_out = sorted(set(names) - set(self.images) - set(self.extras))
        self._left_alone = f"{', '.join(left_out)} (neither images nor labels by name)" if left_out else ""
        if not self.images:
            raise StoreError(f"{path} holds no images file (*-idx3-ubyte or *-idx3-ubyte.gz)")
        self._stamps = [stamp_of(self.root, name, files) for name in sorted(self.images + self.extras)]
        self.headers = [self._header(name) for name in self.images]
        self._labels: dict[int, bytes | None] = {}
        self._kept: _Kept | None = None
        self._runs = Runs(self.images, [header.sizes[0] for header in self.headers])

    def _header(self, name: str) -> Header:
        header = checked_header(self.root / name)
        if header.dtype != np.uint8:
            raise StoreError(f"{self.root / name} holds {header.dtype} values; images to transform are uint8 (0x08)")
        return header

    @property
    def left_alone(self) -> str:
        """Files of the folder that are not read, in words; empty where there is none."""
        return self._left_alone

    def stamps(self) -> Iterator[FileStamp]:
        return iter(self._stamps)

    def read_labels(self, name: str) -> bytes:
        """The decompressed bytes of one of `extras`."""
        self._check_unchanged(name)
        return read_labels(self.root / name)

    def extra_bytes(self, name: str) -> bytes:
        """The labels file to be published for one of `extras`: without the name and time that gzip keeps."""
        return encode_labels(self.read_labels(name), name)

    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
        return zip(self.extras, self.extras, strict=True)

    def _check_unchanged(self, name: str) -> None:
        next(stamp for stamp in self._stamps if stamp.path == name).check_unchanged(self.root)

    def survey(self) -> Survey:
        survey = Survey()
        for name, header in zip(self.images, self.headers, strict=True):
            survey.add((1, header.sizes[1], header.sizes[2]), name, header.sizes[0])
        counts = {stem(name): (name, header.sizes[0]) for name, header in zip(self.images, self.headers, strict=True)}
        for name in self.extras:
            found = len(self.read_labels(name)) - LABELS_HEADER
            images, count = counts.get(stem(name), ("", found))
            if found != count:
                raise StoreDamagedError(f"{self.root / name} holds {found} labels, and {images} {count} images")
        return survey

    def shards(self) -> list[ShardSpec]:
        return self._runs.shards()

    def number_classes(self) -> None:
        """Labels are numbers."""

    def array_shape(self, shard: int) -> tuple[int, ...]:
        """(N, H, W)."""
        return self.headers[shard].sizes

    def part(self, samples: range) -> IdxSource:
        """Itself, which holds no values."""
        return self

    def pick(self, samples: Sequence[int]) -> Reader:
        refuse_remote(self.root)
        for name in self.images:
            with open(self.root / name, "rb") as file:
                if file.read(2) == b"\x1f\x8b":
                    raise StoreError(f"{self.root / name} is compressed and can be read from its start only; gunzip it")
        return ScatteredSamples(self)

    def find(self, index: int) -> tuple[int, int]:
        return self._runs.find(index)

    def check(self, shard: int) -> None:
        """Refuse a file that changed."""
        self._check_unchanged(self.images[shard])

    def gather(self, shard: int, places: NDArray[np.int64]) -> Array:
        """The images (n, 1, H, W) at these places of a plain file."""
        name, header = self.images[shard], self.headers[shard]
        return gather_items(self.root / name, header.data_start, header.sizes[1:], places)[:, None]

    def path_of(self, index: int) -> str:
        return self._runs.path_of(index)

    def label_of(self, index: int) -> int | None:
        """From `train-labels-idx1-ubyte`, where the images are `train-images-idx3-ubyte`; .gz or not."""
        shard, first = self._runs.find(index)
        if shard not in self._labels:
            wanted = self.images[shard].removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
            name = next((name for name in self.extras if name.removesuffix(".gz") == wanted), None)
            self._labels[shard] = None if name is None else self.read_labels(name)[8:]
        labels = self._labels[shard]
        if labels is not None and len(labels) != self.headers[shard].sizes[0]:
            raise StoreError(
                f"{self.root / self.images[shard]} has {self.headers[shard].sizes[0]} images, and {len(labels)} labels"
            )
        return None if labels is None else labels[index - first]

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """A run of one shard's images, in slices. A compressed file is read on where the run before it ended."""
        if not indices:
            return
        shard, first = self._runs.find(indices[0])
        path, header = self.root / self.images[shard], self.headers[shard]
        places = range(indices[0] - first, indices[-1] + 1 - first)
        self._check_unchanged(path.name)
        stack, file = self._at(shard, places.start)
        with stack, _own_errors(path):
            for start, images in _read_run(file, path, header, places):
                yield Batch(range(first + start, first + start + len(images)), images)
            if places.stop < header.sizes[0] and self.compressed(shard):
                self._kept = _Kept(shard, places.stop, file, stack.pop_all())

    def compressed(self, shard: int) -> bool:
        """Whether a file is, so that it can be read from its start only."""
        with opened(self.root / self.images[shard]) as file:
            return bool(file.read(2) == _GZIP)

    def _at(self, shard: int, place: int) -> tuple[ExitStack, IO[bytes]]:
        """An images file, open before one of its images, and what closes it."""
        kept, self._kept = self._kept, None
        if kept is not None and (kept.shard, kept.place) == (shard, place):
            return kept.stack, kept.file
        if kept is not None:
            kept.stack.close()
        with ExitStack() as stack, _own_errors(self.root / self.images[shard]):
            file = stack.enter_context(open_idx(self.root / self.images[shard]))
            file.seek(self.headers[shard].data_start + place * self.headers[shard].item_bytes)
            return stack.pop_all(), file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def __del__(self) -> None:
        kept: _Kept | None = getattr(self, "_kept", None)
        if kept is not None:
            kept.stack.close()


def idx_file(name: str, dtype: str, sizes: tuple[int, ...], level: int = 0) -> ArrayFile:
    """An IDX file of images (N, H, W), compressed where its name ends in .gz: transformed pixels do not shrink, so that
    level 0, which stores them, is as good as any.

    Raises:
        StoreError: no IDX file holds this dtype.
    """
    if dtype not in _CODES:
        raise StoreError(f"IDX files hold uint8, int32 or float32, not {dtype}; choose one with --dtype")
    header = Header(_TYPES[_CODES[dtype]], sizes)
    packed = struct.pack(">BBBB3I", 0, 0, _CODES[dtype], 3, *sizes)
    return ArrayFile(
        packed, header.dtype, sizes[0], header.item_bytes, gzip_level=level if name.endswith(".gz") else None
    )
