"""Tars of samples, as WebDataset has them: one tar, or every `*.tar` of a folder in the order of their names' bytes.

A shard is a tar, so that memory is bounded by the largest one; nothing is unpacked. Of a sample pass the image, and its
class number (the first of `.cls`, `.txt` and `.json` that holds a number alone in every sample). Any other field is
dropped, unless it is to be kept, and the summary says which.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError, StoreError
from .batching import Encoded, decode_all
from .contract import Array, Batch, FileStamp, Kept, Refused, ShardSpec, Survey, Value
from .decode import decode_bytes, probe_bytes
from .tar_index import LABELS, Sample, read_index, read_kept
from .walk import entries


class Decoding(NamedTuple):
    """How images are read: see `decode.decode_bytes`."""

    channels: int | None = None
    size: tuple[int, int] | None = None
    fit: str = "crop"


class Tar(NamedTuple):
    """A tar as it was found, and the indices of its samples."""

    stamp: FileStamp
    samples: range


def looks_like_webdataset(path: Path) -> bool:
    """Whether a file is called `*.tar`, or a folder holds such files."""
    if path.is_dir():
        return any(entry.name.endswith(".tar") and entry.is_file() for entry in entries(path))
    return path.name.endswith(".tar")


class TarSamples:
    """Reads samples by their index. What a worker gets: the tars of its shard alone, which it indexes anew.

    Args:
        label: the field that is the class number, or None.
        kept: the fields that pass unchanged.
    """

    def __init__(
        self,
        root: Path,
        decoding: Decoding,
        tars: Sequence[Tar],
        label: str | None = None,
        kept: Sequence[Kept] = (),
    ) -> None:
        self.root, self.decoding, self.label, self._tars = root, decoding, label, tars
        self.kept = tuple(kept)
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
                yield replace(item, kept=[self._kept(index) for index in item.indices])
            else:
                yield item

    def _kept(self, index: int) -> Mapping[str, Value]:
        tar, sample = self._find(index)
        with open(self.root / tar.stamp.path, "rb") as file:
            return read_kept(file, sample)

    def _encoded(self, indices: Sequence[int]) -> Iterator[Encoded]:
        for index in indices:
            tar, sample = self._find(index)
            yield Encoded(index, f"{tar.stamp.path}//{sample.path}", partial(self._decode, tar, sample))

    def _decode(self, tar: Tar, sample: Sample) -> Array:
        return decode_bytes(self._bytes(tar, sample), *self.decoding)

    def _bytes(self, tar: Tar, sample: Sample) -> bytes:
        if sample.fault:
            raise ImageError(sample.fault)
        with open(self.root / tar.stamp.path, "rb") as file:
            file.seek(sample.offset)
            data = file.read(sample.size)
        if len(data) != sample.size:
            raise StoreError(f"{self.root / tar.stamp.path} was cut while it was read")
        return data

    def _find(self, index: int) -> tuple[Tar, Sample]:
        tar = self._tars[bisect_right(self._tars, index, key=lambda tar: tar.samples.start) - 1]
        if self._indexed is None or self._indexed[0] != tar:
            tar.stamp.check_unchanged(self.root)
            self._indexed = tar, read_index(self.root / tar.stamp.path, keep=self._asked).samples
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
        if not path.exists():
            raise StoreError(f"{path} does not exist")
        self.single = not path.is_dir()
        root = path.parent if self.single else path
        names = [path.name] if self.single else sorted((entry.name for entry in path.iterdir()), key=os.fsencode)
        found = [name for name in names if self.single or (name.endswith(".tar") and (root / name).is_file())]
        if not found:
            raise StoreError(f"{path} holds no tar (*.tar)")
        self._left_out = sorted(set(names) - set(found))
        self.kept = tuple(Kept(name, "binary") for name in keep)
        self._nameless, self._fields, self._numbers = 0, Counter[str](), Counter[str]()
        tars: list[Tar] = []
        for name in found:
            tars.append(self._scan(root, name, tars[-1].samples.stop if tars else 0))
        self._count = tars[-1].samples.stop
        if not self._count:
            raise StoreError(f"{path} holds no samples")
        for name in keep:
            if not self._fields[name]:
                others = ", ".join(sorted(self._fields)) or "none"
                raise StoreError(f"{path}: no sample has the field {name} that --keep names; there are {others}")
        super().__init__(root, decoding or Decoding(), tars, self._label_field(path), self.kept)

    def _scan(self, root: Path, name: str, start: int) -> Tar:
        stamp = FileStamp.of(root, name)
        index = read_index(root / name, keep=self._asked)
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
        return TarSamples(self.root, self.decoding, tars, self.label, self.kept)

    def pick(self, samples: Sequence[int]) -> TarSamples:
        raise StoreError("tars are read one after the other: --shuffle does not apply to them; unpack them to a folder")

    def survey(self) -> Survey:
        """The shapes of all images, from their headers."""
        survey = Survey()
        for index in range(self._count):
            tar, sample = self._find(index)
            path = self.path_of(index)
            try:
                shape = probe_bytes(self._bytes(tar, sample), self.decoding.channels)
            except ImageError as error:
                survey.refused.append(Refused(index, path, str(error)))
                continue
            if self.decoding.size is not None:
                shape = (shape[0], *self.decoding.size)
            survey.add(shape, path)
        return survey
