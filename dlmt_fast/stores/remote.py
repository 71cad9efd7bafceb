"""What a remote store says of its files: sizes and tags, from listings that are read page by page.

Everything goes through the fsspec file system of a `upath.UPath`. Objects of S3 are listed by its own call, for fsspec
would keep all of a folder in memory; other protocols are listed folder by folder.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import StoreError
from .location import is_remote
from .remote_errors import remote_errors

#: What tells one content of a file from another, the best first: tags of S3, Google, Azure and HTTP, else times.
_TAGS = ("ETag", "etag", "md5Hash", "md5", "Content-MD5", "Digest")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "created")


_connected: dict[tuple[Any, ...], Any] = {}
_connecting = threading.Lock()


class Listed(NamedTuple):
    """A file of a listing by its path below the folder, or a folder in it."""

    path: str
    folder: bool
    size: int = 0
    state: str = ""


def is_s3(path: Path) -> bool:
    """Whether a path is one of the S3 protocol."""
    return is_remote(path) and protocol_of(path) in ("s3", "s3a")


def protocol_of(path: Path) -> str:
    """The protocol of a remote path."""
    return str(path.protocol)  # type: ignore[attr-defined]


def file_system(path: Path) -> Any:
    """The fsspec file system of a remote path: one for all threads and paths of a process. fsspec would have one a
    thread (before 2026) and connect each anew."""
    options = path.storage_options  # type: ignore[attr-defined]
    which = (os.getpid(), protocol_of(path), *sorted(options.items()))
    with _connecting:
        if which not in _connected:
            _connected[which] = path.fs  # type: ignore[attr-defined]
        return _connected[which]


def key_of(path: Path) -> str:
    """What the file system calls a remote path."""
    return str(path.path)  # type: ignore[attr-defined]


def information(path: Path) -> dict[str, Any]:
    """What fsspec knows of a remote file or folder: `type` ("file" or "directory"), `size`, tags.

    Raises:
        FileNotFoundError: there is none. DlmtError, OSError: see `remote_errors`.
    """
    with remote_errors(path):
        found: dict[str, Any] = file_system(path).info(key_of(path))
    return found


def size_and_state(told: Mapping[str, Any], where: str) -> tuple[int, str]:
    """The size of a file, and the tag or time that changes with its content.

    Raises:
        StoreError: the server does not tell these.
    """
    size, tag = told.get("size"), next((told[name] for name in (*_TAGS, *_TIMES) if told.get(name)), None)
    if size is None or tag is None:
        raise StoreError(
            f"the server does not tell the size of {where}, or neither a tag nor a time of change, so that nobody "
            "could tell whether it changes while it is read; copy the files to a disk or an object store first"
        )
    if isinstance(tag, datetime):  # some listings have the same as a number
        tag = (tag if tag.tzinfo else tag.replace(tzinfo=timezone.utc)).timestamp()
    return int(size), str(tag)


def children(folder: Path) -> Iterator[Listed]:
    """Files and folders in a remote folder, in no order; those of S3 a page at a time."""
    if is_s3(folder):
        yield from _s3_listed(folder, "/")
        return
    with remote_errors(folder):
        files = file_system(folder)
        found = files.ls(key_of(folder), detail=True)
        files.invalidate_cache()  # which would grow with the store
    for told in found:
        name = _name_in(folder, str(told["name"]))
        if name is None:
            continue
        if told["type"] == "directory":
            yield Listed(_checked(name, folder), True)
            continue
        if told.get("size") is None:
            told = information(folder / name)
        yield Listed(_checked(name, folder), False, *size_and_state(told, str(folder / name)))


def _name_in(folder: Path, told: str) -> str | None:
    """What an entry of a listing is called within its folder; None where it is no entry of that.

    Raises:
        StoreError: the listing is not understood, so that files could be lost.
    """
    above, whole = key_of(folder).strip("/"), told.strip("/")
    name = whole.removeprefix(above + "/")
    if whole == above:
        return None  # some list the folder itself too
    if protocol_of(folder).startswith("http") and (name == whole or "/" in name or "?" in name):
        return None  # a page also links to elsewhere, and to itself in another order
    if name == whole or "/" in name:
        raise StoreError(f"{folder}: its listing names {told!r}, which is not in it")
    return name


def files_below(folder: Path) -> Iterator[Listed]:
    """All files below a remote folder, any depth; those of one folder, at any depth, come one after the other."""
    if is_s3(folder):
        yield from _s3_listed(folder, "")
        return
    for found in children(folder):
        if not found.folder:
            yield found
            continue
        for inner in files_below(folder / found.path):
            yield inner._replace(path=f"{found.path}/{inner.path}")


def _s3_listed(folder: Path, delimiter: str) -> Iterator[Listed]:
    bucket, _, key = key_of(folder).strip("/").partition("/")
    prefix = key + "/" if key else ""
    for page in _s3_pages(folder, Bucket=bucket, Prefix=prefix, Delimiter=delimiter):
        for told in page.get("CommonPrefixes", ()):
            yield Listed(_checked(told["Prefix"].removeprefix(prefix).rstrip("/"), folder), True)
        for told in page.get("Contents", ()):
            name = told["Key"].removeprefix(prefix)
            if not name or (name.endswith("/") and not told["Size"]):
                continue  # what some tools put where they show a folder
            yield Listed(
                _checked(name, folder), False, *size_and_state({**told, "size": told["Size"]}, str(folder / name))
            )


def _s3_pages(folder: Path, **asked: str) -> Iterator[Mapping[str, Any]]:
    files = file_system(folder)
    while True:
        with remote_errors(folder):
            page = files.call_s3("list_objects_v2", **asked, **files.req_kw)
        yield page
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _checked(name: str, folder: Path) -> str:
    """A relative path that means the same in a folder of a disk.

    Raises:
        StoreError: it does not.
    """
    if {"", ".", ".."} & set(name.split("/")):
        raise StoreError(f"{folder} holds an object {name!r}, which is no path of a file in folders; rename or move it")
    return name
