"""A folder of images as a source, any depth. The first folder level is the class, as in torchvision's ImageFolder."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import ImageError, StoreError
from .attempts import retried
from .batching import FETCHERS, Encoded, decode_all, fetched_ahead, in_threads
from .contract import Array, Batch, FileStamp, Refused, Shape, ShardSpec, Survey
from .decode import SUFFIXES, decode, decode_bytes, probe
from .listing import listing_name
from .location import is_remote
from .reading import read_file
from .remote import files_below
from .stamps import Stamps
from .walk import LinkedFolders, exists, hidden_part, is_folder

SHARD_SIZE = 1000  # files a shard: what a killed job does again at most, and few enough shards for 10^8 images
_PROBERS = 2  # threads that read headers; more take longer (measured) and more memory, for the interpreter is the bound
_PROBED = 32  # files a task


class Options(NamedTuple):
    """How images are read: see `decode`; `ignore` are globs on relative paths."""

    channels: int | None = None
    size: tuple[int, int] | None = None
    fit: str = "crop"
    ignore: tuple[str, ...] = ()


class FolderImages:
    """Reads image files of a folder by their index. What a worker gets: the stamps of its shard alone."""

    def __init__(self, root: Path, options: Options, stamps: Stamps | Mapping[int, FileStamp]) -> None:
        self.root, self.options, self._by_index = root, options, stamps
        self._numbers: dict[str, int] | None = None

    def path_of(self, index: int) -> str:
        return self._by_index[index].path

    def label_of(self, index: int) -> int | None:
        """The number of the first folder, once classes are numbered."""
        return None if self._numbers is None else self._numbers[self.path_of(index).partition("/")[0]]

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """Decode in `workers` threads, in the order of `indices`."""
        if is_remote(self.root):
            return decode_all(fetched_ahead(self._fetched, indices), workers)
        samples = (Encoded(i, self._by_index[i].path, partial(self._decode, self._by_index[i])) for i in indices)
        return decode_all(samples, workers)

    def _fetched(self, index: int) -> Encoded:
        stamp = self._by_index[index]
        data = read_file(self.root / stamp.path, stamp) if _named_as_image(stamp.path) else b""
        return Encoded(index, stamp.path, partial(self._decode_bytes, stamp, data))

    def _decode_bytes(self, stamp: FileStamp, data: bytes) -> Array:
        _check_name(stamp.path)
        return decode_bytes(data, self.options.channels, self.options.size, self.options.fit)

    def _decode(self, stamp: FileStamp) -> Array:
        _check_name(stamp.path)
        stamp.check_unchanged(self.root)
        return decode(self.root / stamp.path, self.options.channels, self.options.size, self.options.fit)


class FolderSource(FolderImages):
    """A folder of PNG, JPEG, BMP, TIFF and WebP images, in the order of their paths' bytes.

    Files and folders whose name begins with a dot are left alone and counted in `hidden`; any other file must be an
    image or match `ignore`.
    """

    kind = "folder"
    named = in_folders = True
    single = own_names = False

    def __init__(self, root: Path, options: Options | None = None, shard_size: int = SHARD_SIZE) -> None:
        if not is_folder(root):
            raise StoreError(f"{root} is not a folder" if exists(root) else f"{root} does not exist")
        self.root, self.options, self._shard_size = root, options or Options(), shard_size
        self.hidden = self.ignored = 0
        if is_remote(root):
            self._stamps = Stamps(self._listed())
        else:
            self._links = LinkedFolders(root)
            self._stamps = Stamps(self._scan(str(root), ""))
        if not self._stamps:
            raise StoreError(f"{root} holds no files to read")
        super().__init__(root, self.options, self._stamps)

    @property
    def left_alone(self) -> str:
        """What was neither read nor refused, in words; empty where there is none."""
        parts = [f"{self.hidden} hidden files and folders"] if self.hidden else []
        return " and ".join(parts + ([f"{self.ignored} files that --ignore names"] if self.ignored else []))

    @property
    def extras(self) -> list[str]:
        return []

    def extra_bytes(self, name: str) -> bytes:
        raise NotImplementedError("a folder's labels are its folders")

    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
        return iter(())

    def __len__(self) -> int:
        """How many files there are."""
        return len(self._stamps)

    def stamps(self) -> Iterator[FileStamp]:
        return iter(self._stamps)

    def shards(self) -> list[ShardSpec]:
        """Runs of `shard_size` files; the last is shorter."""
        count, step = len(self._stamps), self._shard_size
        starts = enumerate(range(0, count, step))
        return [ShardSpec(i, listing_name(i), range(start, min(start + step, count))) for i, start in starts]

    def number_classes(self) -> tuple[str, ...] | None:
        """Number the first folders in their order; None where a file lies in none."""
        found = {stamp.path.rpartition("/")[0].partition("/")[0] for stamp in self.stamps()}
        if "" in found:
            return None
        classes = tuple(sorted(found))
        self._numbers = {name: number for number, name in enumerate(classes)}
        return classes

    def array_shape(self, shard: int) -> tuple[int, ...]:
        return ()

    def part(self, samples: range) -> FolderImages:
        """What reads these files alone."""
        stamps = dict(zip(samples, self._stamps.part(samples), strict=True))
        images = FolderImages(self.root, self.options, stamps)
        images._numbers = self._numbers
        return images

    def pick(self, samples: Sequence[int]) -> FolderImages:
        """What reads these files alone."""
        images = FolderImages(self.root, self.options, {index: self._stamps[index] for index in samples})
        images._numbers = self._numbers
        return images

    def survey(self) -> Survey:
        """The shapes of all images, from their headers; several are read at once, and none is kept."""
        survey = Survey()
        remote, starts = is_remote(self.root), range(0, len(self), _PROBED)
        threads = FETCHERS if remote else _PROBERS
        for results in in_threads(self._probe, starts, threads, 2 * threads, patient=not remote):
            for result in results:
                if isinstance(result, Refused):
                    survey.refused.append(result)
                else:
                    shape, path, index = result
                    survey.add(shape, path, index=index)
        return survey

    def _probe(self, start: int) -> list[tuple[Shape, str, int] | Refused]:
        """Each file's shape, path and index, or why it cannot be taken, from `start` on."""
        found: list[tuple[Shape, str, int] | Refused] = []
        for index, stamp in enumerate(self._stamps.part(range(start, min(start + _PROBED, len(self)))), start):
            try:
                _check_name(stamp.path)
                shape = retried(partial(probe, self.root / stamp.path, self.options.channels, stamp))
            except ImageError as error:
                found.append(Refused(index, stamp.path, str(error)))
                continue
            found.append((shape if self.options.size is None else (shape[0], *self.options.size), stamp.path, index))
        return found

    def _listed(self) -> Iterator[FileStamp]:
        """The files of a remote folder. A hidden folder counts as one, and its files come one after the other."""
        last = ""
        for found in files_below(self.root):
            hidden = hidden_part(found.path)
            if hidden:
                self.hidden += hidden != last
                last = hidden
            elif self._taken(found.path):
                yield FileStamp(found.path, found.size, found.state)

    def _scan(self, folder: str, above: str) -> Iterator[FileStamp]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    self.hidden += 1
                elif entry.is_dir():
                    if entry.is_symlink():
                        self._links.follow(entry.path)
                    yield from self._scan(entry.path, f"{above}{entry.name}/")
                elif (stamp := self._stamp(entry, above + entry.name)) is not None:
                    yield stamp

    def _stamp(self, entry: os.DirEntry[str], relative: str) -> FileStamp | None:
        if not self._taken(relative):
            return None
        if not entry.is_file():
            raise StoreError(f"{entry.path} is neither a file nor a folder that can be read")
        return FileStamp.of(self.root, relative)

    def _taken(self, relative: str) -> bool:
        """Whether a file is not to be ignored."""
        try:
            relative.encode("utf-8")
        except UnicodeEncodeError:
            raise StoreError(f"the file name {relative!r} is not valid UTF-8; rename the file") from None
        ignored = any(fnmatch.fnmatchcase(relative, pattern) for pattern in self.options.ignore)
        self.ignored += ignored
        return not ignored


def _named_as_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def _check_name(path: str) -> None:
    if not _named_as_image(path):
        raise ImageError(f"its name does not end as an image's ({', '.join(sorted(SUFFIXES))}); --ignore skips it")
