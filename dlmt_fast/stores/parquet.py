"""Images in Parquet files, as a source: one file, or all of a folder, in the order of their paths' bytes.

Rows keep their order. Files are read a few rows at a time; a shard is a run of whole row groups, so that no worker
reads what another one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ImageError, StoreError
from .batching import Encoded, decode_all
from .contract import Array, Batch, FileStamp, Kept, Refused, Shape, ShardSpec, Survey
from .decode import decode_bytes, probe_bytes
from .location import is_remote
from .parquet_format import Columns, Row, is_parquet_name, read_footer, read_rows, shard_name, split_of
from .reading import head_of
from .walk import Found, exists, files_under, glanced_below, is_folder, stamp_of

SHARD_ROWS = 1000  # a shard has as many row groups as it takes to reach so many rows


class Decoding(NamedTuple):
    """How images are read: see `decode.decode_bytes`."""

    channels: int | None = None
    size: tuple[int, int] | None = None
    fit: str = "crop"


class Group(NamedTuple):
    """A row group: its file and place in it, the row there that it begins with, and the indices of its rows."""

    path: str
    place: int
    first: int
    rows: range


def looks_like_parquet(path: Path) -> bool:
    """Whether a file begins as a Parquet file does, or a folder holds such files by name."""
    if is_folder(path):
        return any(map(is_parquet_name, glanced_below(path)))
    return head_of(path, 4) == b"PAR1"


class ParquetRows:
    """Reads rows of Parquet files by their index. What a worker gets: the row groups of its shard alone."""

    def __init__(
        self,
        root: Path,
        decoding: Decoding,
        columns: Columns,
        stamps: dict[str, FileStamp],
        groups: Sequence[Group],
        kept: Sequence[Kept] = (),
    ) -> None:
        self.root, self.decoding, self.columns = root, decoding, columns
        self.kept = tuple(kept)
        self._by_path, self._groups = stamps, groups
        self._starts = [group.rows.start for group in groups]
        self._known: tuple[int, list[Row]] = (-1, [])

    def path_of(self, index: int) -> str:
        """The file, and behind two slashes the row there; or `#` and the row, and behind two slashes its `path`, where
        it has a plain one."""
        group, row = self._find(index)
        place = group.first + index - group.rows.start
        named = row.path is not None and _is_plain(row.path)
        return f"{group.path}#{place}//{row.path}" if named else f"{group.path}//{place}"

    def label_of(self, index: int) -> int | None:
        """The row's label; 0 where it is null, as such a row is refused. None where there are no labels."""
        return None if self.columns.label is None else self._find(index)[1].label or 0

    def _find(self, index: int) -> tuple[Group, Row]:
        """A row without its image. Asked in the order of rows, this reads each row group once."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        group = self._groups[number]
        if self._known[0] != number:
            rows = list(self._rows([group], names_only=True))
            self._known = number, rows or [Row(i, None, None, None) for i in group.rows]
        return group, self._known[1][index - group.rows.start]

    def read(self, indices: Sequence[int], workers: int) -> Iterator[Batch | Refused]:
        """Rows in their own order, whatever the order of `indices`; images are decoded in `workers` threads."""
        rows: dict[int, Row] = {}
        for item in decode_all(self._encoded(set(indices), rows), workers):
            if isinstance(item, Refused):
                rows.pop(item.index)
                yield item
                continue
            found = [rows.pop(index) for index in item.indices]
            labels = None if self.columns.label is None else [row.label or 0 for row in found]
            yield replace(item, labels=labels, kept=[row.kept for row in found] if self.kept else None)

    def _encoded(self, wanted: set[int], rows: dict[int, Row]) -> Iterator[Encoded]:
        for _, run in groupby(self._groups, key=lambda group: group.path):
            for row in self._rows([group for group in run if not wanted.isdisjoint(group.rows)]):
                if row.index in wanted:
                    rows[row.index] = replace(row, image=None)
                    yield Encoded(row.index, self.path_of(row.index), partial(self._decode, row))

    def _rows(self, groups: list[Group], names_only: bool = False) -> Iterator[Row]:
        """The rows of successive row groups of one file."""
        if not groups:
            return
        path, places = groups[0].path, [group.place for group in groups]
        rows = range(groups[0].rows.start, groups[-1].rows.stop)
        assert len(rows) == sum(len(group.rows) for group in groups), "a shard is a run of row groups"
        stamp = self._by_path[path]
        if not is_remote(self.root):
            stamp.check_unchanged(self.root)
        yield from read_rows(self.root / path, self.columns, places, rows, names_only, stamp, self.kept)

    def _decode(self, row: Row) -> Array:
        self._check(row)
        return decode_bytes(row.image or b"", *self.decoding)

    def _check(self, row: Row) -> None:
        if row.image is None:
            raise ImageError("its image is null")
        if self.columns.label is not None and row.label is None:
            raise ImageError("its label is null")


class ParquetSource(ParquetRows):
    """Reads the Parquet file `path`, or all such files of a folder, which have the same columns."""

    kind = "parquet"
    named = own_names = True
    in_folders = single = False

    def __init__(
        self,
        path: Path,
        decoding: Decoding | None = None,
        shard_rows: int = SHARD_ROWS,
        keep: Sequence[str] = (),
    ) -> None:
        if not exists(path):
            raise StoreError(f"{path} does not exist")
        folder = is_folder(path)
        root = path if folder else path.parent
        names: Found = files_under(path, hidden=False) if folder else {path.name: None}
        files = [name for name in names if is_parquet_name(name) or not folder]
        if not files:
            raise StoreError(f"{path} holds no Parquet file (*.parquet)")
        self._left_out = sorted(set(names) - set(files))
        self._stamps = [stamp_of(root, name, names) for name in files]
        self._shard_rows, start = shard_rows, 0
        columns: Columns | None = None
        kept: tuple[Kept, ...] = ()
        groups: list[Group] = []
        for name in files:
            footer = read_footer(root / name, keep)
            columns, kept = columns or footer.columns, kept or footer.kept
            if (columns, kept) != (footer.columns, footer.kept):
                raise StoreError(f"{root / name} has other columns or classes than {files[0]}: {footer.columns}")
            first = start
            for place, count in enumerate(footer.groups):
                groups.append(Group(name, place, start - first, range(start, start + count)))
                start += count
        if columns is None or not start:
            raise StoreError(f"{path} holds no rows")
        super().__init__(root, decoding or Decoding(), columns, {s.path: s for s in self._stamps}, groups, kept)

    @property
    def left_alone(self) -> str:
        """Files and columns that are not read, in words; empty where there is none."""
        files = [f"{', '.join(self._left_out)} (no Parquet by name)"] if self._left_out else []
        kept = {name for name, _ in self.kept}
        dropped = [name for name in self.columns.dropped if name not in kept]
        columns = [f"the columns {', '.join(dropped)}"] if dropped else []
        return " and ".join(files + columns)

    @property
    def extras(self) -> list[str]:
        return []

    def extra_bytes(self, name: str) -> bytes:
        raise NotImplementedError("labels are in the rows")

    def extra_names(self, shards: Sequence[str]) -> Iterator[tuple[str, str]]:
        return iter(())

    def stamps(self) -> Iterator[FileStamp]:
        return iter(self._stamps)

    def survey(self) -> Survey:
        """The shapes of all images, from their headers."""
        survey = Survey()
        for _, run in groupby(self._groups, key=lambda group: group.path):
            for row in self._rows(list(run)):
                try:
                    self._check(row)
                    shape = probe_bytes(row.image or b"", self.decoding.channels)
                except ImageError as error:
                    survey.refused.append(Refused(row.index, self.path_of(row.index), str(error)))
                    continue
                survey.add(self._shape(shape), self.path_of(row.index), index=row.index)
        return survey

    def _shape(self, shape: Shape) -> Shape:
        return shape if self.decoding.size is None else (shape[0], *self.decoding.size)

    def number_classes(self) -> tuple[str, ...] | None:
        """The names of the labels, where the files tell them."""
        return self.columns.classes

    def array_shape(self, shard: int) -> tuple[int, ...]:
        return ()

    def shards(self) -> list[ShardSpec]:
        """Runs of whole row groups of one split, of `shard_rows` rows at least but for the last of a split."""
        shards: list[ShardSpec] = []
        start = 0
        for group, following in zip(self._groups, [*self._groups[1:], None], strict=True):
            split, stop = split_of(group.path), group.rows.stop
            last = following is None or split_of(following.path) != split
            if stop > start and (last or stop - start >= self._shard_rows):
                shards.append(ShardSpec(len(shards), shard_name(split, len(shards)), range(start, stop)))
                start = stop
        return shards

    def part(self, samples: range) -> ParquetRows:
        """What reads these rows alone."""
        groups = [
            group for group in self._groups if group.rows.start < samples.stop and samples.start < group.rows.stop
        ]
        stamps = {group.path: self._by_path[group.path] for group in groups}
        return ParquetRows(self.root, self.decoding, self.columns, stamps, groups, self.kept)

    def pick(self, samples: Sequence[int]) -> ParquetRows:
        raise StoreError(
            "Parquet is read by row groups: --shuffle does not apply to it; encrypt it to a folder or write it shuffled"
        )


def _is_plain(path: str) -> bool:
    """Whether a path is relative and stays where it is, so that an image can be restored under it."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and all(part not in ("", ".", "..") for part in parts)
