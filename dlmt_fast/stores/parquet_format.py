"""Parquet files of images, laid out as Hugging Face's: a column `image` (struct of `bytes` and `path`), integers in
`label`, and what the columns mean under the key "huggingface" of the file's metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..canonical import parse_json
from ..errors import DlmtError, StoreDamagedError, StoreError, missing
from .contract import KEPT_BYTES, FileStamp, Kept, Value
from .location import is_remote
from .reading import opened, size_of

METADATA_KEY = b"huggingface"
_READ_ROWS = 16  # rows that are in memory at once
_BUFFER = 1 << 20  # bytes read ahead in each column, instead of a whole row group
#: The types of columns that can pass, as Arrow and as Hugging Face's datasets call them.
KEPT_TYPES = {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {
    "float": "float32",
    "double": "float64",
    "bool": "bool",
    "string": "string",
    "binary": "binary",
}
_NAME = re.compile(r"(?s).*\.parquet")


@dataclass(frozen=True)
class Columns:
    """Where a file has what: `image` is a struct of bytes and path where `nested`, else the bytes themselves.

    Attributes:
        label: the column of integers, or None.
        classes: the names of the classes, where the file tells them.
        dropped: the other columns.
    """

    image: str
    nested: bool
    paths: bool
    label: str | None
    classes: tuple[str, ...] | None
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Footer:
    """What the end of a file says: its columns, the number of rows in each row group, and the columns that pass."""

    columns: Columns
    groups: tuple[int, ...]
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True)
class Row:
    """An image file with its place in the Parquet file; None where the file has none."""

    index: int
    image: bytes | None
    path: str | None
    label: int | None
    kept: Mapping[str, Value] = field(default_factory=dict)


def library() -> Any:
    """pyarrow, with pyarrow.parquet.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing("pyarrow", "a Parquet store", "parquet") from None
    return pyarrow


def split_of(name: str) -> str:
    """Which split the name of a file stands for: train, test or validation; train where it tells none."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & {"test", "t10k", "testing", "eval", "evaluation"}:
        return "test"
    return "validation" if words & {"validation", "valid", "val", "dev"} else "train"


def shard_name(split: str, number: int) -> str:
    """What a shard is called, so that `datasets` finds its split."""
    return f"{split}-{number:05d}.parquet"


def is_parquet_name(name: str) -> bool:
    """Whether a file name ends as a Parquet file's."""
    return _NAME.fullmatch(name.lower()) is not None


def features(image: bool, label: bool, classes: Sequence[str] | None, kept: Sequence[Kept] = ()) -> bytes:
    """The value of "huggingface": which columns are images (else plain bytes), labels, and others."""
    whole: dict[str, Any] = {"_type": "ClassLabel", "names": list(classes or ())}
    fields = {"bytes": {"_type": "Value", "dtype": "binary"}, "path": {"_type": "Value", "dtype": "string"}}
    found: dict[str, Any] = {"image": {"_type": "Image"} if image else fields}
    if label:
        found["label"] = {"_type": "Value", "dtype": "int64"} if classes is None else whole
    for name, kind in kept:
        found[name] = {"_type": "Value", "dtype": KEPT_TYPES[kind]}
    return json.dumps({"info": {"features": found}}).encode("utf-8")


def read_footer(path: Path, keep: Sequence[str] | None = ()) -> Footer:
    """The end of a file, checked.

    Args:
        keep: the columns that are to pass; None: all beside image and label.

    Raises:
        StoreDamagedError: it is no Parquet file, or truncated.
        StoreError: it holds no images, or nothing tells which column they are.
    """
    with _opened(path) as file:
        groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
            raise StoreDamagedError(f"{path} is damaged: its row groups do not have as many rows as it says")
        if sum(groups) > size_of(path):
            raise StoreDamagedError(f"{path} is damaged: it claims {sum(groups)} rows, more than it has bytes")
        columns = _columns(file.schema_arrow, path)
        return Footer(columns, groups, _kept(file.schema_arrow, columns, keep, path))


def read_rows(
    path: Path,
    columns: Columns,
    groups: Sequence[int],
    rows: range,
    names_only: bool = False,
    stamp: FileStamp | None = None,
    kept: Sequence[Kept] = (),
) -> Iterator[Row]:
    """The rows of some row groups, a few in memory at a time.

    Args:
        rows: the indices that they are given.
        names_only: leave images out, and read no byte of them.
        stamp: see `reading.opened`.

    Raises:
        StoreDamagedError: the file is damaged, or has another number of rows there.
    """
    wanted = [columns.image] + ([columns.label] if columns.label else [])
    if names_only:
        wanted = ([f"{columns.image}.path"] if columns.paths else []) + ([columns.label] if columns.label else [])
    names = [] if names_only else [name for name, _ in kept]
    wanted += names
    with _opened(path, stamp) as file:
        left = iter(rows)
        for batch in file.iter_batches(_READ_ROWS, list(groups), wanted, use_threads=False) if wanted else ():
            fields = [batch.column(name).to_pylist() for name in names]
            kept_values = zip(*fields, strict=True) if names else [()] * len(batch)
            for values, others in zip(zip(*_values(batch, columns, names_only), strict=True), kept_values, strict=True):
                index = next(left, None)
                if index is None:
                    raise StoreDamagedError(f"{path} is damaged: it has more rows than it says")
                image, name, label = (None if value is None else value.as_py() for value in values)
                found = dict(zip(names, others, strict=True))
                _refuse_long(found, f"{path}#{index}")
                yield Row(index, image, None if name is None else name.decode("utf-8", "replace"), label, found)
    if wanted and next(left, None) is not None:
        raise StoreDamagedError(f"{path} is damaged: it has fewer rows than it says")


def _refuse_long(values: Mapping[str, Value], where: str) -> None:
    for name, value in values.items():
        if isinstance(value, (str, bytes)) and len(value) > KEPT_BYTES:
            raise StoreError(f"{where} has {len(value)} characters in {name}; --keep passes at most {KEPT_BYTES}")


def _values(batch: Any, columns: Columns, names_only: bool) -> tuple[Any, Any, Any]:
    """Images, paths as UTF-8, and labels of some rows; lists of None where there are none."""
    import pyarrow as pa

    nothing = [None] * len(batch)
    image: Any = nothing if names_only and not columns.paths else batch.column(columns.image)
    paths: Any = nothing
    if columns.nested and image is not nothing:
        names = [field.name for field in image.type]
        parts = image.flatten()  # takes the struct's own nulls into the children
        image = nothing if names_only else parts[names.index("bytes")]
        paths = parts[names.index("path")].cast(pa.large_binary()) if columns.paths else nothing
    labels = batch.column(columns.label).cast(pa.int64()) if columns.label else nothing
    return image, paths, labels


def _kept(schema: Any, columns: Columns, keep: Sequence[str] | None, path: Path) -> tuple[Kept, ...]:
    found = []
    for name in columns.dropped if keep is None else keep:
        if name not in columns.dropped:
            others = ", ".join(columns.dropped) or "none"
            raise StoreError(f"{path} has no column {name} for --keep beside image and label; there are: {others}")
        kind = str(schema.field(name).type).removeprefix("large_")
        if kind not in KEPT_TYPES or (kind == "binary" and keep is not None):
            raise StoreError(f"{path}: the column {name} holds {kind}; --keep passes numbers and text")
        found.append(Kept(name, kind))
    return tuple(found)


def _columns(schema: Any, path: Path) -> Columns:
    import pyarrow as pa

    names = [field.name for field in schema]
    if len(set(names)) != len(names):
        raise StoreError(f"{path} has two columns of one name: {', '.join(names)}")
    told = _told(schema.metadata or {}, path)
    nested = {f.name: [part.name for part in f.type] for f in schema if _is_image_struct(f.type)}
    plain = [f.name for f in schema if f.name == "image" and _is_binary(f.type)]
    able = [*nested, *plain]
    if len(able) > 1 and "image" in able:
        able = ["image"]
    if len(able) != 1:
        raise StoreError(
            f"{path} has {'no' if not able else 'more than one'} column of images ({', '.join(able or names)}); "
            "expected one, `image`, of bytes or of a struct with `bytes` and `path`"
        )
    whole = [f.name for f in schema if pa.types.is_integer(f.type)]
    classes = {name: told[name] for name in whole if name in told}
    label = "label" if "label" in whole else next(iter(classes), None) if len(classes) == 1 else None
    dropped = tuple(name for name in names if name not in (able[0], label))
    parts = nested.get(able[0], [])
    return Columns(able[0], able[0] in nested, "path" in parts, label, classes.get(label or ""), dropped)


def _told(metadata: dict[bytes, bytes], path: Path) -> dict[str, tuple[str, ...]]:
    """The names of classes by column."""
    if METADATA_KEY not in metadata:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    try:
        fields = parse_json(metadata[METADATA_KEY])["info"]["features"]
        for name, feature in fields.items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                found[name] = tuple(feature["names"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreDamagedError(f"{path} is damaged: its metadata 'huggingface' cannot be understood") from None
    if not all(isinstance(name, str) for names in found.values() for name in names):
        raise StoreDamagedError(f"{path} is damaged: its metadata 'huggingface' has classes without names")
    return found


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image_struct(kind: Any) -> bool:
    import pyarrow as pa

    parts = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    text = parts.get("path")
    return _is_binary(parts.get("bytes", pa.null())) and (
        text is None or pa.types.is_string(text) or pa.types.is_large_string(text)
    )


@contextmanager
def _opened(path: Path, stamp: FileStamp | None = None) -> Iterator[Any]:
    """The file, open; whatever pyarrow says of damaged content becomes a StoreDamagedError."""
    pa = library()
    source = opened(path, stamp)  # a missing file or permission is told as such
    if not is_remote(path):
        source.close()
    try:
        with pa.parquet.ParquetFile(
            source if is_remote(path) else path,
            buffer_size=_BUFFER,
            pre_buffer=False,
            page_checksum_verification=True,
        ) as file:
            yield file
    except DlmtError:
        raise
    except (pa.ArrowException, ValueError, LookupError, OverflowError) as error:
        raise StoreDamagedError(f"{path} is no Parquet file, or damaged: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise StoreDamagedError(f"{path} is no Parquet file, or damaged: {error}") from None
