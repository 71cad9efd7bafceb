"""MNIST's IDX files, plain or gzip: what their bytes say.

Header: two zero bytes, a type, the number of axes, then each size as a big-endian uint32. Values are big-endian.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import igzip, isal_zlib

from ..errors import RemoteError, StoreDamagedError, StoreError
from .contract import Array
from .gzipped import pack
from .reading import opened, size_of
from .sliced import ArrayFile
from .walk import glanced, is_folder

_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4"), 0x0D: np.dtype(">f4")}
_CODES = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}
IMAGES = re.compile(r"[-_.]idx3[-_.]ubyte(\.gz)?$")
LABELS = re.compile(r"[-_.]idx1[-_.]ubyte(\.gz)?$")
SLICE_BYTES = 1 << 20  # several times the cache of a core; larger ones cost memory and gain no time
LABELS_HEADER = 8  # bytes
GZIP = b"\x1f\x8b"
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
        return any(IMAGES.search(entry.name) for entry in glanced(path))
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
        if magic == GZIP:
            with igzip.IGzipFile(fileobj=raw, mode="rb") as unpacked:  # type: ignore[no-untyped-call]
                yield io.BufferedReader(unpacked, 1 << 20)
        else:
            yield raw


@contextmanager
def own_errors(path: Path) -> Iterator[None]:
    """What reading a gzip file raises, in this package's words."""
    try:
        yield
    except (EOFError, _Inflate, gzip.BadGzipFile) as error:
        raise StoreDamagedError(f"{path} is a damaged gzip file: {error}") from None


def read_header(file: IO[bytes], path: Path) -> Header:
    """The header at the start of an IDX file.

    Raises:
        StoreDamagedError: it is none, or of a type or number of axes that images do not have.
    """
    with own_errors(path):
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
            with own_errors(path):
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
    with open_idx(path) as file, own_errors(path):
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"\0\0\x08\x01":
            raise StoreDamagedError(f"{path} is not an IDX file of labels (type 0x08, one axis)")
        labels = _read_exactly(file, struct.unpack(">I", head[4:])[0] + 1)
    if len(labels) != struct.unpack(">I", head[4:])[0]:
        raise StoreDamagedError(f"{path} does not hold as many labels as its header says")
    return head + labels


def stem(name: str) -> str:
    """What an images file and its labels file have in common: "train" of `train-images-idx3-ubyte.gz`."""
    return re.sub(r"[-_.]?(images|labels)$", "", LABELS.sub("", IMAGES.sub("", name)))


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
    with open_idx(path) as file, own_errors(path):
        file.read(header.data_start)
        yield from read_run(file, path, header, range(header.sizes[0]))


def read_run(file: IO[bytes], path: Path, header: Header, places: range) -> Iterator[tuple[int, Array]]:
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
