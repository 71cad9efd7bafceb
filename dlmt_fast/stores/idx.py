"""MNIST's IDX files as a source: one images file, or a folder with images and labels files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreDamagedError, StoreError
from .contract import Array, Batch, FileStamp, Reader, Refused, ShardSpec, Survey
from .idx_format import (
    GZIP,
    IMAGES,
    LABELS,
    LABELS_HEADER,
    Header,
    checked_header,
    encode_labels,
    open_idx,
    own_errors,
    read_labels,
    read_run,
    stem,
)
from .reading import opened
from .runs import Runs
from .scattered import ScatteredSamples, gather_items, refuse_remote
from .walk import Found, exists, files_in, is_folder, stamp_of


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
        self.images = names if self.single else [name for name in names if IMAGES.search(name)]
        self.extras = [] if self.single else [name for name in names if LABELS.search(name)]
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
                if file.read(2) == GZIP:
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
        with stack, own_errors(path):
            for start, images in read_run(file, path, header, places):
                yield Batch(range(first + start, first + start + len(images)), images)
            if places.stop < header.sizes[0] and self.compressed(shard):
                self._kept = _Kept(shard, places.stop, file, stack.pop_all())

    def compressed(self, shard: int) -> bool:
        """Whether a file is, so that it can be read from its start only."""
        with opened(self.root / self.images[shard]) as file:
            return bool(file.read(2) == GZIP)

    def _at(self, shard: int, place: int) -> tuple[ExitStack, IO[bytes]]:
        """An images file, open before one of its images, and what closes it."""
        kept, self._kept = self._kept, None
        if kept is not None and (kept.shard, kept.place) == (shard, place):
            return kept.stack, kept.file
        if kept is not None:
            kept.stack.close()
        with ExitStack() as stack, own_errors(self.root / self.images[shard]):
            file = stack.enter_context(open_idx(self.root / self.images[shard]))
            file.seek(self.headers[shard].data_start + place * self.headers[shard].item_bytes)
            return stack.pop_all(), file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def __del__(self) -> None:
        kept: _Kept | None = getattr(self, "_kept", None)
        if kept is not None:
            kept.stack.close()
