"""Which labels lie openly in a store or a source, and how many samples each class has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..stores import idx_format, npy_arrays
from ..stores.contract import Published, Source
from ..stores.manifest import Manifest
from ..stores.parquet_format import read_footer, read_rows
from ..stores.tar_index import read_index
from .formats import format_of
from .formats.folder import read_shard_listing
from .remote_storage import downloaded

#: From where labels lie ("class folders", a labels file) to the number of samples of each class.
Classes: TypeAlias = dict[str, Counter[str]]

_HIDDEN = re.compile(r"[0-9a-f]{32}")


class Openly:
    """What a store shows without the key: its classes, and whether names of samples are not hidden ones."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.classes: Classes = {}
        self.names = False
        self.fields: set[str] = set()  # that passed unchanged
        self._root, self._manifest = root, manifest
        _READERS[manifest.kind](self)
        self.classes = {where: counts for where, counts in self.classes.items() if counts}

    def _count(self, where: str, labels: Iterable[Any]) -> None:
        self.classes.setdefault(where, Counter()).update(map(str, labels))

    def _see(self, name: str) -> None:
        self.names = self.names or not _HIDDEN.fullmatch(name.rpartition("/")[2].partition(".")[0])

    def _folder(self) -> None:
        for shard in self._manifest.shards:
            with downloaded(self._root, [shard.name]) as folder:
                listing = read_shard_listing(folder, shard)
            for entry in listing:
                self._see(entry.name)
                self._count("class folders", [entry.name.partition("/")[0]] if "/" in entry.name else [])

    def _webdataset(self) -> None:
        suffix = ".png" if self._manifest.dtype == "uint8" else ".npy"
        for shard in self._manifest.shards:
            for sample in read_index(self._root / shard.name, (suffix,)).samples:
                self._see(sample.key)
                self.fields.update(field for field in sample.fields if field != "cls")
                self._count(".cls", [sample.numbers["cls"]] if "cls" in sample.numbers else [])

    def _parquet(self) -> None:
        for shard in self._manifest.shards:
            path = self._root / shard.name
            footer = read_footer(path)
            self.fields.update(footer.columns.dropped)
            rows, columns = range(sum(footer.groups)), footer.columns
            for row in read_rows(path, columns, range(len(footer.groups)), rows, names_only=True):
                self.names = self.names or row.path is not None
                if row.label is not None:
                    self._count(f"the column {columns.label}", [_named(row.label, columns.classes)])

    def _npy(self) -> None:
        for extra in self._manifest.extras:
            with downloaded(self._root, [extra.name]) as folder:
                count = npy_arrays.read_array_header(folder / extra.name).shape[0]
                self._count_array(extra, npy_arrays.read_labels(folder / extra.name, count))

    def _idx(self) -> None:
        for extra in self._manifest.extras:
            with downloaded(self._root, [extra.name]) as folder:
                labels = np.frombuffer(
                    idx_format.read_labels(folder / extra.name), np.uint8, offset=idx_format.LABELS_HEADER
                )
            self._count_array(extra, labels)

    def _count_array(self, extra: Published, labels: Any) -> None:
        values, counts = np.unique(labels, return_counts=True)
        found = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
        self.classes[extra.name] = Counter(found)

    def _zarr(self) -> None:
        with downloaded(self._root, [extra.name for extra in self._manifest.extras]) as folder:
            labels = format_of("zarr").stored_labels(folder, self._manifest)
        for shard, values in zip(self._manifest.shards, labels, strict=True):
            self._count(f"beside {shard.name.partition('/')[0]}", values or [])


_READERS: dict[str, Callable[[Openly], None]] = {
    "folder": Openly._folder,
    "webdataset": Openly._webdataset,
    "parquet": Openly._parquet,
    "npy": Openly._npy,
    "idx": Openly._idx,
    "zarr": Openly._zarr,
}


def source_classes(source: Source) -> Classes:
    """The labels that a job over this source would pass: class folders, or those of each array under its name."""
    names, found = None if source.in_folders else source.number_classes(), Classes()
    for shard in source.shards():
        part = source.part(shard.samples)
        if source.in_folders:
            where, labels = "class folders", (_folder_of(part.path_of(index)) for index in shard.samples)
        else:
            where = "samples" if source.named else shard.name
            numbers = (part.label_of(index) for index in shard.samples)
            labels = (_named(number, names) for number in numbers if number is not None)
        found.setdefault(where, Counter()).update(labels)
    return {where: counts for where, counts in found.items() if counts.keys() - {""}}


def _folder_of(path: str) -> str:
    """The first folder; "" of a file that lies in none."""
    return path.partition("/")[0] if "/" in path else ""


def _named(label: int, names: tuple[str, ...] | None) -> str:
    return names[label] if names is not None and label in range(len(names)) else str(label)
