"""What fsspec and the libraries below it raise, in our words: one context manager around all that reaches a store.

The libraries are told by the names of their exception classes, so that none is imported. Every failure of a network or
a server becomes an OSError whose `errno` tells whether it may pass, as that of a disk does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BackendError, DlmtError, RemoteError, StoreError
from .location import is_remote, without_user

_NO_CREDENTIALS = {  # of botocore, google.auth, azure.core
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"),
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "ProfileNotFound"),
    *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError", "AuthenticationException"),
}
_UNREACHABLE = {  # of botocore, aiohttp, azure.core
    *("EndpointConnectionError", "ProxyConnectionError", "SSLError", "ServiceRequestError"),
    *("ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorCertificateError", "ClientConnectorSSLError"),
}
_TIMED_OUT = {"ConnectTimeoutError", "ReadTimeoutError", "FSTimeoutError", "ServerTimeoutError", "TimeoutError"}
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs", "paramiko", "s3fs", "urllib3")
_REFUSED, _GONE, _TOO_MANY = (401, 403), (404, 410), 429
_PLACES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials (AWS_PROFILE), and the machine's role; "
    "AWS_ENDPOINT_URL names a server other than Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, what gcloud auth application-default login left, and the machine's account",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, and what az login left",
}
_PLACES |= {"s3a": _PLACES["s3"], "gcs": _PLACES["gs"], "abfs": _PLACES["az"], "abfss": _PLACES["az"]}


@contextmanager
def remote_errors(path: Path) -> Iterator[None]:
    """Tell errors in the block in words, with `path`; where that is local, leave them as they are.

    Raises:
        BackendError: a library is not installed.
        StoreError: no credentials, or no such bucket.
        FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError: with `errno` and the path.
        RemoteError: access was denied (EACCES), or reaching the store failed otherwise.
    """
    try:
        yield
    except DlmtError:
        raise
    except Exception as error:
        told = in_words(error, path) if is_remote(path) else None
        if told is None:
            raise
        raise told from None  # what libraries say may hold the user's part of an endpoint


def in_words(error: Exception, path: Path) -> Exception | None:
    """The error that `remote_errors` raises for another; None for one that no store causes."""
    name, text = type(error).__name__, " ".join(without_user(str(error)).split())
    if name in _NO_CREDENTIALS:
        protocol = str(path).partition("://")[0]
        places = f"; they are looked for in {_PLACES[protocol]}" if protocol in _PLACES else ""
        return StoreError(f"{path}: there are no credentials that can be used ({name}){places}")
    if isinstance(error, ImportError):
        return BackendError(f"{path} needs a package that is not installed: {text}")
    if name in _TIMED_OUT or isinstance(error, TimeoutError):
        return RemoteError(errno.ETIMEDOUT, f"{path}: no answer in time ({text or name})")
    if name in _UNREACHABLE:
        return RemoteError(errno.EHOSTUNREACH, f"{path}: the server cannot be reached ({text})")
    if name == "ParamValidationError" or (isinstance(error, ValueError) and text.startswith("Invalid endpoint")):
        return StoreError(f"{path} or the endpoint is named wrongly: {text.partition(': Bucket name must')[0]}")
    status = _status(error)
    if isinstance(error, PermissionError) or status in _REFUSED:
        return RemoteError(
            errno.EACCES, f"{path}: access was denied ({text}); are these the right credentials, and may they do this?"
        )
    cause = error.__cause__
    if (
        isinstance(error, FileNotFoundError)
        and isinstance(cause, Exception)
        and _library(cause) in ("aiohttp", "asyncio")
    ):
        return in_words(cause, path)  # fsspec's HTTP takes every failure for a file that is not there
    if isinstance(error, FileNotFoundError) or status in _GONE:
        if "bucket does not exist" in text:
            return StoreError(f"{path}: there is no such bucket")
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    for kind, number in _OF_FILES.items():
        if isinstance(error, kind):
            return kind(number, os.strerror(number), str(path))
    if status is not None:
        passes = status >= 500 or status == _TOO_MANY
        return RemoteError(errno.EIO if passes else errno.EINVAL, f"{path}: the server answered {status} ({text})")
    if isinstance(error, OSError):
        return RemoteError(error.errno or errno.EIO, f"{path}: {without_user(error.strerror or text) or name}")
    if _library(error) in _LIBRARIES:
        return RemoteError(errno.EIO, f"{path}: {name}: {text}")
    return None


_OF_FILES: dict[type[OSError], int] = {
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}


def _library(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _status(error: Exception) -> int | None:
    """The HTTP status that an error tells, where it does."""
    response = getattr(error, "response", None)  # of botocore, a dictionary
    if isinstance(response, dict):
        told = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        fields = ("status", "status_code", "code")  # of aiohttp, azure and google: one of them each
        told = next(
            (getattr(error, field) for field in fields if hasattr(type(error), field) or field in vars(error)), None
        )
    return told if isinstance(told, int) and 100 <= told < 600 else None
