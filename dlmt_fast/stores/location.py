"""Where a store is: a path of this machine, or a URL (`s3://bucket/photos`) of a file system that fsspec knows.

A URL becomes a `upath.UPath`, which has pathlib's methods. It is typed as a `Path`, for it is used through those alone;
what only local paths can do (`os.open`, `os.scandir`, locks) asks `is_remote` first. Credentials are never part of a
location: they come from the environment and from configuration files, in each process anew, so that no log, record,
manifest or pickle holds one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from ..errors import BackendError, UsageError, missing

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_CHAIN = re.compile(r"[a-z][a-z0-9+.-]*::", re.IGNORECASE)
_SHORTENED = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)  # as `pathlib.Path` writes a URL
_LOCAL = ("", "file", "local")
# Listings are not remembered: they would grow with the store, and hide what changes.
_OPTIONS: dict[str, dict[str, Any]] = {name: {"use_listings_cache": False} for name in ("s3", "s3a", "gs", "gcs")}
#: What a `UPath` may bring with it into worker processes: nothing that opens a store.
_HARMLESS = {
    *("anon", "endpoint_url", "profile", "requester_pays", "use_listings_cache", "project", "account_name"),
    *("host", "port", "username"),
}


def located(text: str | os.PathLike[str]) -> Path:
    """The place that a path or URL names; nothing is connected yet.

    Args:
        text: a local path, a URL, or a `upath.UPath` without secrets among its options.

    Returns:
        A `pathlib.Path` for a local path or `file://` URL; else a `upath.UPath`.

    Raises:
        UsageError: an unknown protocol, credentials in the URL, or a URL that `pathlib.Path` has shortened.
        BackendError: a library is not installed.
    """
    if is_remote(text):
        return _admitted(text)
    url = os.fspath(text)
    if _CHAIN.match(url) and "://" in url:
        raise UsageError(f"{without_user(url)} is a chain of URLs, which is not taken; name the inner store itself")
    shortened = _SHORTENED.match(url)
    if shortened and not Path(url).exists():
        raise UsageError(
            f"{url} looks like a URL that has lost a slash; pass {shortened[1]}://... as a str, not a Path"
        )
    if not _URL.match(url):
        return Path(url)
    _refuse_secrets(url)
    protocol = url.partition("://")[0].lower()
    if protocol in _LOCAL:
        return _local(url)
    if not url.partition("://")[2].strip("/"):
        raise UsageError(f"{url} names no bucket, host or folder")
    _check_library(protocol)
    from upath import UPath

    return cast(Path, UPath(protocol + url[len(protocol) :].rstrip("/"), **_OPTIONS.get(protocol, {})))


def is_remote(path: object) -> bool:
    """Whether this is a `upath.UPath` of another file system than this machine's own."""
    return not isinstance(path, (str, Path)) and getattr(path, "protocol", "file") not in _LOCAL


def without_user(text: str) -> str:
    """A message or URL without what may be a password in one of its URLs."""
    return re.sub(r"://[^/\s@]*@", "://***@", text)


def _refuse_secrets(url: str) -> None:
    user = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
    if ":" in user:
        raise UsageError(
            f"{without_user(url)} holds a password, which would be written to logs and records; leave it out of the "
            "URL and give it by the environment or a configuration file"
        )
    if "?" in url and url.lower().startswith(("http", "webdav")):
        raise UsageError(
            f"{url.partition('?')[0]} is followed by a query, which may hold a signature or a token and would be "
            "written to logs and records; name the file alone"
        )


def _local(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{url} names the host {parts.netloc!r}; file:// reads this machine's files: file:///folder")
    return Path(unquote(parts.path))


def _check_library(protocol: str) -> None:
    try:
        import upath  # noqa: F401
        from fsspec import get_filesystem_class
    except ImportError:
        raise missing("universal-pathlib", f"{protocol}://", "s3") from None
    try:
        get_filesystem_class(protocol)
    except ValueError:
        raise UsageError(
            f"fsspec knows no protocol {protocol}://; s3, gs, az, sftp, http and others are known"
        ) from None
    except ImportError as error:
        if protocol in ("s3", "s3a"):
            raise missing("s3fs", f"{protocol}://", "s3") from None
        raise BackendError(f"{protocol}:// needs a package that is not installed: {error}") from None


def _admitted(path: Any) -> Path:
    """A `UPath` of the caller's, with the options of ours."""
    secret = sorted(set(path.storage_options) - _HARMLESS)
    if secret:
        raise UsageError(
            f"the options {', '.join(secret)} of {path} would go into the pickles of worker processes; give what opens "
            "the store by the environment or a configuration file"
        )
    _refuse_secrets(str(path))
    options = {**path.storage_options, **_OPTIONS.get(path.protocol, {})}
    if options == dict(path.storage_options):
        return cast(Path, path)
    return cast(Path, type(path)(str(path), protocol=path.protocol, **options))
