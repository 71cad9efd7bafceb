"""Tars of samples, as WebDataset has them: one tar, or every `*.tar` of a folder in the order of their names' bytes.

A shard is a tar, so that memory is bounded by the largest one; nothing is unpacked. Of a sample pass the image, and its
class number (the first of `.cls`, `.txt` and `.json` that holds a number alone in every sample). Any other field is
dropped, unless it is to be kept, and the summary says which.
"""

from __future__ import annotations

import pickle
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError, StoreError
from .batching import Encoded, decode_all, fetched_ahead
from .contract import Array, Batch, FileStamp, Kept, Refused, Shape, ShardSpec, Survey, Value
from .decode import decode_bytes, probe_bytes
from .location import is_remote
from .reading import read_part
from .scratch import Scratch
from .tar_index import LABELS, Index, Sample, read_index
from .walk import Found, entries, exists, files_in, glanced, is_folder, stamp_of


class Decoding(NamedTuple):
    """How images are read: see `decode.decode_bytes`."""

    channels: int | None = None
    size: tuple[int, int] | None = None
    fit: str = "crop"


def _probe(data: bytes, channels: int | None) -> Shape | str:
    """The shape of an image, or why it cannot be taken."""
    try:
        return probe_bytes(data, channels)
    except ImageError as error:
        return str(error)


def _index(root: Path, decoding: Decoding, keep: Callable[[str], bool], stamp: FileStamp) -> Index:
    """A tar's index; a remote one, of which all is read for it, is probed on the way."""
    probe = partial(_probe, channels=decoding.channels) if is_remote(root) else None
    return read_index(root / stamp.path, stamp=stamp, probe=probe, keep=keep)


class Tar(NamedTuple):
    """A tar as it was found, and the indices of its samples."""

    stamp: FileStamp
    samples: range


def looks_like_webdataset(path: Path) -> bool:
    """Whether a file is called `*.tar`, or a folder holds such files."""
    if is_folder(path):
        return any(entry.name.endswith(".tar") and entry.is_file() for entry in glanced(path))
    return path.name.endswith(".tar")


class KeptIndices:
    """The indices of remote tars, in a temporary file: to make one reads the whole tar."""

    def __init__(self) -> None:
        self._file, self._places = Scratch(), dict[str, tuple[int, int]]()

    def keep(self, name: str, samples: list[Sample]) -> None:
        """Keep a tar's samples."""
        data = pickle.dumps(samples)
        self._places[name] = self._file.size, len(data)
        self._file.append(data)

    def __getitem__(self, name: str) -> list[Sample]:
        samples: list[Sample] = pickle.loads(self._file.read(*self._places[name]))  # of this process alone
        return samples


class TarSamples:
    """Reads samples by their index. What a worker gets: the tars of its shard alone, which it indexes anew; remote ones
    come with their indices.

    Args:
        label: the field that is the class number, or None.
        kept: the fields that pass unchanged.
        indices: of remote tars, by name.
    """

    def __init__(
        self,
        root: Path,
        decoding: Decoding,
        tars: Sequence[Tar],
        label: str | None = None,
        kept: Sequence[Kept] = (),
        indices: dict[str, list[Sample]] | KeptIndices | None = None,
    ) -> None:
        self.root, self.decoding, self.label, self._tars = root, decoding, label, tars
        self.kept = tuple(kept)
        self._indices = indices
        self._indexed: tuple[Tar, list[Sample]] | None = None

    def path_of(self, index: int) -> str:
        """The tar, two slashes, and the image's name in it."""
        tar, sample = self._find(index)
        return f"{tar.stamp.path}//{sample.path}"

    def label_of(self, index: int) -> int | None:
        """The class number, where all samples have one."""
        return None if self.label is None else self._find(index)[1].numbers[self.label]

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """In the order of `indices`, decoded in `workers` threads."""
        for item in decode_all(self._encoded(indices), workers):
            if isinstance(item, Batch) and self.kept:
                yield replace(item, kept=[self._values_of(index) for index in item.indices])
            else:
                yield item

    def _values_of(self, index: int) -> Mapping[str, Value]:
        tar, sample = self._find(index)
        path = self.root / tar.stamp.path
        return {field: read_part(path, *place, tar.stamp) for field, place in sample.kept.items()}

    def _encoded(self, indices: Sequence[int]) -> Iterator[Encoded]:
        if is_remote(self.root):
            found = ((index, *self._find(index)) for index in indices)
            yield from fetched_ahead(self._fetched, found)
            return
        for index in indices:
            tar, sample = self._find(index)
            yield Encoded(index, f"{tar.stamp.path}//{sample.path}", partial(self._decode, tar, sample))

    def _fetched(self, found: tuple[int, Tar, Sample]) -> Encoded:
        index, tar, sample = found
        data = b"" if sample.fault else self._bytes(tar, sample)
        return Encoded(index, f"{tar.stamp.path}//{sample.path}", partial(self._decode, tar, sample, data))

    def _decode(self, tar: Tar, sample: Sample, data: bytes | None = None) -> Array:
        if sample.fault:
            raise ImageError(sample.fault)
        return decode_bytes(self._bytes(tar, sample) if data is None else data, *self.decoding)

    def _bytes(self, tar: Tar, sample: Sample) -> bytes:
        data = read_part(self.root / tar.stamp.path, sample.offset, sample.size, tar.stamp)
        if len(data) != sample.size:
            raise StoreError(f"{self.root / tar.stamp.path} was cut while it was read")
        return data

    def _find(self, index: int) -> tuple[Tar, Sample]:
        tar = self._tars[bisect_right(self._tars, index, key=lambda tar: tar.samples.start) - 1]
        if self._indexed is None or self._indexed[0] != tar:
            if self._indices is None:
                tar.stamp.check_unchanged(self.root)
                self._indexed = tar, read_index(self.root / tar.stamp.path, keep=self._asked).samples
            else:
                self._indexed = tar, self._indices[tar.stamp.path]
        return tar, self._indexed[1][index - tar.samples.start]

    def _asked(self, field: str) -> bool:
        return any(field == kept.name for kept in self.kept)


class WebdatasetSource(TarSamples):
    """The tar `path`, or those of a folder."""

    kind = "webdataset"
    named = True
    in_folders = False
    own_names = False

    def __init__(self, path: Path, decoding: Decoding | None = None, keep: Sequence[str] = ()) -> None:
        if not exists(path):
            raise StoreError(f"{path} does not exist")
        self.single = not is_folder(path)
        root = path.parent if self.single else path
        files: Found = {path.name: None} if self.single else files_in(path)
        names = list(files) if self.single else [entry.name for entry in entries(path)]
        found = [name for name in files if self.single or name.endswith(".tar")]
        if not found:
            raise StoreError(f"{path} holds no tar (*.tar)")
        self._left_out = sorted(set(names) - set(found))
        self.kept = tuple(Kept(name, "binary") for name in keep)
        self._remote = KeptIndices() if is_remote(path) else None
        self._nameless, self._fields, self._numbers = 0, Counter[str](), Counter[str]()
        tars: list[Tar] = []
        stamps = [stamp_of(root, name, files) for name in found]
        read = partial(_index, root, decoding or Decoding(), self._asked)
        indices = map(read, stamps) if self._remote is None else fetched_ahead(read, stamps)
        for stamp, index in zip(stamps, indices, strict=True):
            tars.append(self._scan(stamp, index, tars[-1].samples.stop if tars else 0))
        self._count = tars[-1].samples.stop
        if not self._count:
            raise StoreError(f"{path} holds no samples")
        for name in keep:
            if not self._fields[name]:
                others = ", ".join(sorted(self._fields)) or "none"
                raise StoreError(f"{path}: no sample has the field {name} that --keep names; there are {others}")
        super().__init__(root, decoding or Decoding(), tars, self._label_field(path), self.kept, self._remote)

    def _scan(self, stamp: FileStamp, index: Index, start: int) -> Tar:
        if self._remote is not None:
            self._remote.keep(stamp.path, index.samples)
        self._nameless += index.nameless
        for sample in index.samples:
            self._fields.update(sample.fields)
            self._numbers.update(sample.numbers.keys())
        return Tar(stamp, range(start, start + len(index.samples)))

    def _label_field(self, path: Path) -> str | None:
        for field in LABELS:
            if self._numbers[field] == self._count:
                return field
        if self._fields["cls"]:
            raise StoreError(
                f"{path}: {self._numbers['cls']} of {self._count} samples have a class number in .cls; labels pass "
                "where every sample has one, as digits alone"
            )
        return None

    @property
    def left_alone(self) -> str:
        """Files, members and fields that are not read, in words; empty where there is none."""
        files = [f"{', '.join(self._left_out)} (no tar by name)"] if self._left_out else []
        members = [f"{self._nameless} members whose names are not KEY.FIELD"] if self._nameless else []
        dropped = sorted(field for field in self._fields if field != self.label and not self._asked(field))
        fields = [f"the fields {', '.join(dropped)} of the samples"] if dropped else []
        return " and ".join(files + members + fields)

    @property
    def extras(self) -> list[str]:
        return []

    def extra_bytes(self, name: str) -> bytes:
        raise NotImplementedError("labels are in the samples")

    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
        return iter(())

    def stamps(self) -> Iterator[FileStamp]:
        return (tar.stamp for tar in self._tars)

    def shards(self) -> list[ShardSpec]:
        """A shard a tar."""
        return [ShardSpec(i, tar.stamp.path, tar.samples) for i, tar in enumerate(self._tars)]

    def number_classes(self) -> None:
        """Labels are numbers."""

    def array_shape(self, shard: int) -> tuple[int, ...]:
        return ()

    def part(self, samples: range) -> TarSamples:
        """What reads these samples alone."""
        tars = [tar for tar in self._tars if tar.samples.start < samples.stop and samples.start < tar.samples.stop]
        indices = None if self._remote is None else {tar.stamp.path: self._remote[tar.stamp.path] for tar in tars}
        return TarSamples(self.root, self.decoding, tars, self.label, self.kept, indices)

    def pick(self, samples: Sequence[int]) -> TarSamples:
        raise StoreError("tars are read one after the other: --shuffle does not apply to them; unpack them to a folder")

    def survey(self) -> Survey:
        """The shapes of all images, from their headers."""
        survey = Survey()
        for index in range(self._count):
            tar, sample = self._find(index)
            path = self.path_of(index)
            shape = sample.fault or sample.probed or _probe(self._bytes(tar, sample), self.decoding.channels)
            if isinstance(shape, str):
                survey.refused.append(Refused(index, path, shape))
                continue
            if self.decoding.size is not None:
                shape = (shape[0], *self.decoding.size)
            survey.add(shape, path, index=index)
        return survey
