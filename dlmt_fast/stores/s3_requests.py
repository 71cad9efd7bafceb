"""Requests to an S3 server about the objects below a prefix, through s3fs: its connections, credentials and retries."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from threading import Event
from typing import Any

from ..errors import DlmtError, RemoteError
from .remote import file_system
from .remote_errors import remote_errors

_CONFLICTING, _NOT_IMPLEMENTED = (409, 412), 501
_DAMAGED = ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody")


class Conflict(DlmtError):
    """The object is there, or another request for it is under way. Told before `remote_errors` would."""


class Requests:
    """Asks for one thing at a time; several threads may ask at once."""

    def __init__(self, root: Any) -> None:
        self.root, self._fs = root, file_system(root)
        self._bucket, _, prefix = root.path.partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    def _request(self, method: str, name: str, **fields: Any) -> dict[str, Any]:
        """A call about one object. What `remote_errors` would not tell is told here."""
        try:
            answer: dict[str, Any] = self._settled(lambda: self._fs._call_s3(method, **self._key(name), **fields))
        except Exception as error:
            if "IfNoneMatch" in fields and _status(error) in _CONFLICTING:
                raise Conflict from None
            if _status(error) == _NOT_IMPLEMENTED:
                raise RemoteError(errno.ENOSYS, f"{self.root / name}: the server does not know {method}") from None
            if _code(error) in _DAMAGED:
                raise RemoteError(
                    errno.EIO, f"{self.root / name}: the server received other bytes than were sent"
                ) from None
            raise
        return answer

    def _told(self, name: str, method: str, **fields: Any) -> dict[str, Any]:
        with remote_errors(self.root / name if name else self.root):
            answer: dict[str, Any] = self._settled(lambda: self._fs._call_s3(method, **fields))
        return answer

    def _settled(self, call: Callable[[], Any]) -> Any:
        """The result of a coroutine in the file system's loop. A signal that interrupts this ends the request too:
        `fsspec`'s own way leaves it going, and an object could appear after the job was cleared away."""
        ended = Event()

        async def run() -> Any:
            try:
                return await call()
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._fs.loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(1.0)  # it may not have begun
            raise


def _response(error: BaseException | None) -> dict[str, Any]:
    """The server's answer behind an error, or behind what s3fs made of it."""
    for each in (error, getattr(error, "__cause__", None)):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _status(error: BaseException) -> int | None:
    found: int | None = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return found


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))
