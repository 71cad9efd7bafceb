"""Objects below a prefix of an S3 bucket: seen whole or not at all, and never written over unasked.

An upload carries SHA-256 checksums, which the server compares with what arrived, and `If-None-Match: *`, so that an
object that is there stays. The digest and nothing else is kept in the object's metadata: where an answer is lost or an
object was there before, length and digest tell whether it is the one that was to be published. An ETag is no digest.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import RemoteError, StoreError
from .remote import files_below
from .remote_errors import remote_errors
from .s3_requests import Conflict, Requests
from .staging import write_staged

MULTIPART_FROM = 32 << 20  # bytes of a file that is uploaded in parts
PART = 8 << 20
_PARTS = 10_000  # that an object has at most
_PARTS_AT_ONCE = 4
_KEYS = 1000  # of one request to delete
_DIGEST = "dlmt-sha256"
_ATTEMPTS = 5  # where the server answers that another conditional request is under way, a second apart


class Bucket(Requests):
    """See `objects.Objects`.

    Args:
        root: `s3://BUCKET/PREFIX` as a `upath.UPath`.
        conditional: whether the server honours `If-None-Match`; else each object is looked for before it is written.
    """

    shared = True

    def __init__(self, root: Any, conditional: bool = True) -> None:
        super().__init__(root)
        self.conditional = conditional

    def entries(self) -> Iterator[tuple[str, int]]:
        """(relative name, size) of every object, page by page; placeholders of folders are none."""
        return ((found.path, found.size) for found in files_below(self.root))

    def size(self, name: str) -> int | None:
        """The length of an object; None where there is none."""
        found = self._head(name)
        return None if found is None else found[0]

    def read(self, name: str, most: int) -> bytes | None:
        """The first `most` bytes of an object; None where there is none."""

        async def read() -> bytes:
            answer = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=self._prefix + name)
            data = b""
            async with answer["Body"] as body:
                while len(data) < most and (chunk := await body.read(most - len(data))):
                    data += chunk
            return data

        try:
            with remote_errors(self.root / name):
                found: bytes = self._settled(read)
                return found
        except FileNotFoundError:
            return None

    def fetch(self, name: str, path: Path) -> bool:
        """Download an object into a local file; False where there is none."""

        async def fetch(file: BinaryIO) -> None:
            answer = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=self._prefix + name)
            async with answer["Body"] as body:
                while chunk := await body.read(1 << 20):
                    write_staged(file, chunk)

        for attempt in (1, 2, 3):
            try:
                with open(path, "wb") as file, remote_errors(self.root / name):
                    self._settled(partial(fetch, file))
                return True
            except FileNotFoundError:
                return False
            except RemoteError as error:
                if attempt == 3 or error.errno == errno.EACCES:
                    raise
                time.sleep(attempt)
        raise AssertionError("the last attempt returns or raises")

    def create(self, name: str, data: bytes) -> None:
        """Make a small object that is not there, and find out whether the server honours `If-None-Match`.

        Raises:
            FileExistsError: it is there.
        """
        there = FileExistsError(errno.EEXIST, "the object is there already", str(self.root / name))
        if self._head(name) is not None:
            raise there
        try:
            self._put_bytes(name, data, {"IfNoneMatch": "*"})
        except Conflict:
            raise there from None
        except RemoteError as error:
            if error.errno != errno.ENOSYS:
                raise
            self._put_bytes(name, data, {})
        self.probe(name, data)
        if not self.conditional and self.read(name, len(data) + 1) != data:  # another was faster
            raise there

    def probe(self, name: str, data: bytes) -> None:
        """Set `conditional`, by asking again to create an object that has this content."""
        try:
            self._put_bytes(name, data, {"IfNoneMatch": "*"})
            self.conditional = False
        except Conflict:
            self.conditional = True
        except RemoteError as error:
            if error.errno != errno.ENOSYS:
                raise
            self.conditional = False

    def publish(self, name: str, path: Path, sha256: str, replace: bool = False) -> None:
        """Upload a local file; where the object is there with this content, that is well.

        Args:
            sha256: of the file's content, in hex.
            replace: write over what is there.

        Raises:
            StoreError: another object is there.
            RemoteError: the upload failed, the last time.
        """
        size = path.stat().st_size
        large = size >= MULTIPART_FROM  # which a killed attempt may have sent whole
        if not replace and (large or not self.conditional) and self._is_there(name, size, sha256):
            return
        condition = {"IfNoneMatch": "*"} if self.conditional and not replace else {}
        for attempt in range(_ATTEMPTS):
            try:
                with remote_errors(self.root / name):
                    if large:
                        self._put_parts(name, path, size, sha256, condition)
                    else:
                        self._put(name, path, sha256, condition)
                return
            except Conflict:
                if self._is_there(name, size, sha256):
                    return
                time.sleep(attempt and 1.0)
            except OSError:
                # The answer may have been lost, and not the object.
                with suppress(OSError, StoreError):
                    if self._head(name) == (size, sha256):
                        return
                raise
        raise RemoteError(errno.EBUSY, f"{self.root / name}: another upload of this object is under way")

    def remove(self, names: Iterator[str]) -> None:
        """Delete objects; those that are not there are well."""
        while keys := [self._prefix + name for name, _ in zip(names, range(_KEYS), strict=False)]:
            asked = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = self._told("", "delete_objects", Bucket=self._bucket, Delete=asked)
            for fault in answer.get("Errors", ()):
                if fault.get("Code") != "NoSuchKey":
                    number = errno.EACCES if fault.get("Code") == "AccessDenied" else errno.EIO
                    raise RemoteError(number, f"{self.root}: {fault['Key']} is not deleted: {fault.get('Message')}")

    def abort_uploads(self, ours: Callable[[set[str]], set[str]]) -> None:
        """Abort unfinished uploads in parts.

        Args:
            ours: from the names of objects that such uploads are for to those among them that may be aborted.
        """
        found: dict[str, list[str]] = {}
        page: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix}
        while True:
            answer = self._told("", "list_multipart_uploads", **page)
            for upload in answer.get("Uploads", ()):
                found.setdefault(upload["Key"][len(self._prefix) :], []).append(upload["UploadId"])
            if not answer.get("IsTruncated"):
                break
            page |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}
        for name in ours(set(found)) if found else ():
            for upload in found[name]:
                with suppress(FileNotFoundError):  # it has ended meanwhile
                    self._told(name, "abort_multipart_upload", **self._key(name), UploadId=upload)

    def _put_bytes(self, name: str, data: bytes, condition: dict[str, str]) -> None:
        digest = hashlib.sha256(data)
        fields = {"Body": data, "ChecksumSHA256": _base64(digest), **_described(digest.hexdigest())}
        with remote_errors(self.root / name):
            self._request("put_object", name, **fields, **condition)

    def _put(self, name: str, path: Path, sha256: str, condition: dict[str, str]) -> None:
        data = path.read_bytes()
        _check_staged(path, hashlib.sha256(data), sha256)
        self._put_bytes(name, data, condition)

    def _put_parts(self, name: str, path: Path, size: int, sha256: str, condition: dict[str, str]) -> None:
        upload = self._request("create_multipart_upload", name, ChecksumAlgorithm="SHA256", **_described(sha256))
        try:
            parts = self._send_parts(name, path, size, sha256, upload["UploadId"])
            whole = hashlib.sha256(b"".join(base64.b64decode(part["ChecksumSHA256"]) for part in parts))
            self._request(
                "complete_multipart_upload",
                name,
                UploadId=upload["UploadId"],
                MultipartUpload={"Parts": parts},
                ChecksumSHA256=f"{_base64(whole)}-{len(parts)}",
                **condition,
            )
        except BaseException:
            with suppress(Exception):  # the first error counts; what stays is aborted when the job goes on
                self._request("abort_multipart_upload", name, UploadId=upload["UploadId"])
            raise

    def _send_parts(self, name: str, path: Path, size: int, sha256: str, upload: str) -> list[dict[str, Any]]:
        """Upload the parts, some at once; memory holds those alone."""
        step, whole = max(PART, -(-size // _PARTS)), hashlib.sha256()
        flying: deque[Future[dict[str, Any]]] = deque()
        parts: list[dict[str, Any]] = []
        with ThreadPoolExecutor(_PARTS_AT_ONCE, "dlmt-part") as pool, open(path, "rb") as file:
            try:
                for number in range(1, -(-size // step) + 1):
                    data = file.read(step)
                    whole.update(data)
                    flying.append(pool.submit(self._send_part, name, upload, number, data))
                    if len(flying) == _PARTS_AT_ONCE:
                        parts.append(flying.popleft().result())
                parts += [part.result() for part in flying]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        _check_staged(path, whole, sha256)
        return parts

    def _send_part(self, name: str, upload: str, number: int, data: bytes) -> dict[str, Any]:
        digest = _base64(hashlib.sha256(data))
        answer = self._request(
            "upload_part", name, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=digest
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": digest}

    def _is_there(self, name: str, size: int, sha256: str) -> bool:
        """Whether the object is there as it is to be.

        Raises:
            StoreError: another is.
        """
        found = self._head(name)
        if found is None:
            return False
        if found != (size, sha256):
            raise StoreError(
                f"{self.root / name} is there already with other content, and is not written over: it is another's, or "
                "the work is not deterministic on these machines (other library builds?); remove it if nobody needs it"
            )
        return True

    def _head(self, name: str) -> tuple[int, str | None] | None:
        """(length, digest in the metadata) of an object."""
        try:
            answer = self._told(name, "head_object", **self._key(name))
        except FileNotFoundError:
            return None
        return answer["ContentLength"], answer.get("Metadata", {}).get(_DIGEST)


def _check_staged(path: Path, digest: Any, sha256: str) -> None:
    if digest.hexdigest() != sha256:
        raise OSError(errno.EIO, "the staged file is not the one that was written", str(path))


def _described(sha256: str) -> dict[str, Any]:
    return {"Metadata": {_DIGEST: sha256}, "ContentType": "application/octet-stream"}


def _base64(digest: Any) -> str:
    return base64.b64encode(digest.digest()).decode("ascii")
