"""Which kind of store a path is."""

from __future__ import annotations

from pathlib import Path

from ..errors import ParameterError, StoreError
from ..stores.cifar import CifarSource, looks_like_cifar
from ..stores.contract import Source
from ..stores.folder import FolderSource
from ..stores.folder import Options as FolderOptions
from ..stores.idx import IdxSource
from ..stores.idx_format import looks_like_idx
from ..stores.location import located
from ..stores.npy_arrays import NpySource, looks_like_npy
from ..stores.parquet import Decoding as ParquetDecoding
from ..stores.parquet import ParquetSource, looks_like_parquet
from ..stores.remote_errors import remote_errors
from ..stores.walk import exists, is_folder
from ..stores.webdataset import Decoding, WebdatasetSource, looks_like_webdataset
from ..stores.zarr_arrays import ZarrSource, looks_like_zarr
from .formats import StoredFormat
from .options import JobOptions

KINDS = ("folder", "webdataset", "idx", "cifar", "npy", "parquet", "zarr")
_WORDS = {"idx": "IDX files", "cifar": "CIFAR", "npy": ".npy files", "zarr": "Zarr arrays"}


def kind_of(path: Path, named: str | None) -> str:
    """The kind of the store at `path`: as `named`, or from its content.

    Raises:
        StoreError: there is nothing at `path`, or nothing that this package reads.
        ParameterError: an unknown kind was named.
    """
    if named is not None:
        if named not in KINDS:
            raise ParameterError(f"unknown kind of store {named!r}; expected one of {', '.join(KINDS)}")
        return named
    if not exists(path):
        raise StoreError(f"{path} does not exist")
    if looks_like_cifar(path):
        return "cifar"
    if looks_like_webdataset(path):
        return "webdataset"
    if looks_like_zarr(path):
        return "zarr"
    if looks_like_parquet(path):
        return "parquet"
    if looks_like_npy(path):
        return "npy"
    if looks_like_idx(path):
        return "idx"
    if is_folder(path):
        return "folder"
    raise StoreError(
        f"{path} is neither a folder of images, nor a tar of samples, nor a Parquet, IDX or .npy file, nor an "
        "archive of CIFAR; --from names its kind"
    )


def open_source(path: str | Path, options: JobOptions, named: str | None = None) -> Source:
    """A source for the store at `path`, which may be a URL; see `located`.

    Raises:
        StoreError, ParameterError: see `kind_of`; or options that this kind cannot serve.
        DlmtError, OSError: see `located` and `remote_errors`.
    """
    place = located(path)
    with remote_errors(place):
        return _open_source(place, options, named)


def _open_source(path: Path, options: JobOptions, named: str | None) -> Source:
    kind = kind_of(path, named)
    if kind == "folder":
        _refuse(options, ("keep",), "a folder of images, which have no fields")
        reading = FolderOptions(options.channels, options.size, options.fit, options.ignore)
        return FolderSource(path, reading, options.shard_size)
    if kind == "webdataset":
        _refuse(options, ("ignore", "shard_size"), "tars of samples, which are shards as they are")
        keep = sorted(name.lower() for name in options.keep)  # as fields are read
        return WebdatasetSource(path, Decoding(options.channels, options.size, options.fit), keep)
    if kind == "parquet":
        _refuse(options, ("ignore",), "Parquet files")
        decoding = ParquetDecoding(options.channels, options.size, options.fit)
        return ParquetSource(path, decoding, options.shard_size, sorted(options.keep))
    _refuse(options, ("size", "fit", "channels", "ignore", "classes", "keep"), _unnamed(kind))
    if kind == "idx":
        return IdxSource(path)
    if kind == "zarr":
        return ZarrSource(path)
    return CifarSource(path) if kind == "cifar" else NpySource(path)


def check_target(source: Source, form: StoredFormat, options: JobOptions) -> None:
    """Refuse options of arrays that a target of this kind has no use for.

    Raises:
        ParameterError: that.
    """
    if source.named:
        return
    hidden = form.named or not source.own_names
    left = [*(() if form.cut else ("shard_size",)), *(() if hidden else ("names",))]
    _refuse(options, tuple(left), _unnamed(source.kind))


def _unnamed(kind: str) -> str:
    return f"{_WORDS[kind]}, whose images are unnamed pixels"


def _refuse(options: JobOptions, names: tuple[str, ...], what: str) -> None:
    default = JobOptions()
    for name in names:
        if getattr(options, name) != getattr(default, name):
            raise ParameterError(f"--{name.replace('_', '-')} does not apply to {what}")
