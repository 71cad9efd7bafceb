"""Files of a remote store, as far as writing one needs: listed, fetched, published whole, removed."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..errors import RemoteError, StoreError, UsageError
from .bucket import Bucket
from .publish import file_digest
from .remote import file_system, files_below
from .remote_errors import remote_errors

_S3 = ("s3", "s3a")
#: Protocols whose `put_file` shows an object whole or not at all.
_WHOLE = ("memory", "gs", "gcs", "az", "abfs", "abfss")
_AT_ONCE = 8  # files of one shard


class Objects(Protocol):
    """The files below a URL; names are relative to it. What goes wrong is told as `remote_errors` does.

    Attributes:
        root: the URL as a `upath.UPath`.
        shared: other processes see the same files.
        conditional: the server itself refuses to create what is there.
    """

    root: Any
    shared: bool
    conditional: bool

    def entries(self) -> Iterator[tuple[str, int]]:
        """(name, size) of every file."""
        ...

    def size(self, name: str) -> int | None:
        """The length of a file; None where there is none."""
        ...

    def read(self, name: str, most: int) -> bytes | None:
        """The first `most` bytes of a file; None where there is none."""
        ...

    def fetch(self, name: str, path: Path) -> bool:
        """Download a file; False where there is none."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Make a small file that is not there, and set `conditional`.

        Raises:
            FileExistsError: it is there.
        """
        ...

    def probe(self, name: str, data: bytes) -> None:
        """Set `conditional`, with the help of a file that is there and has this content."""
        ...

    def publish(self, name: str, path: Path, sha256: str, replace: bool = False) -> None:
        """Upload a local file; where it is there already with this content, that is well.

        Args:
            sha256: of its content, in hex.
            replace: write over what is there.

        Raises:
            StoreError: another file is there. RemoteError: the upload failed, the last time.
        """
        ...

    def remove(self, names: Iterator[str]) -> None:
        """Delete files; those that are not there are well."""
        ...

    def abort_uploads(self, ours: Callable[[set[str]], set[str]]) -> None:
        """Abort what attempts left half-uploaded.

        Args:
            ours: from the names of half-uploaded files to those among them that may be aborted.
        """
        ...


def objects_at(root: Path, conditional: bool = True, read_only: bool = False) -> Objects:
    """What writes to a remote place, or only reads there.

    Args:
        root: a `upath.UPath`.
        conditional: what `create` or `probe` found out in the process that began.

    Raises:
        UsageError: files of this protocol cannot be published safely.
    """
    place: Any = root
    if place.protocol in _S3:
        return Bucket(place, conditional)
    if read_only or place.protocol in _WHOLE:
        return PlainObjects(place)
    raise UsageError(
        f"{root}: stores are written to local folders, s3, gs and az; {place.protocol}:// may show half-written files, "
        "so encrypt into a local folder and copy that"
    )


class PlainObjects:
    """Objects by fsspec's own calls, for servers that show them whole. Each is looked for before it is written, for no
    call refuses to write over another."""

    conditional = False

    def __init__(self, root: Any) -> None:
        self.root, self._fs, self._path = root, file_system(root), root.path.rstrip("/")
        self.shared = root.protocol != "memory"

    def entries(self) -> Iterator[tuple[str, int]]:
        with suppress(FileNotFoundError):  # there is no folder yet
            yield from ((found.path, found.size) for found in files_below(self.root))

    def size(self, name: str) -> int | None:
        try:
            with remote_errors(self.root / name):
                facts = self._fs.info(f"{self._path}/{name}")
        except FileNotFoundError:
            return None
        return facts["size"] if facts["type"] == "file" else None

    def read(self, name: str, most: int) -> bytes | None:
        try:
            with remote_errors(self.root / name):
                found: bytes = self._fs.cat_file(f"{self._path}/{name}", 0, most)
                return found
        except FileNotFoundError:
            return None

    def fetch(self, name: str, path: Path) -> bool:
        try:
            with remote_errors(self.root / name):
                self._fs.get_file(f"{self._path}/{name}", str(path))
        except FileNotFoundError:
            return False
        return True

    def create(self, name: str, data: bytes) -> None:
        if self.size(name) is not None:
            raise FileExistsError(errno.EEXIST, "the file is there already", str(self.root / name))
        with remote_errors(self.root / name):
            self._fs.pipe_file(f"{self._path}/{name}", data)

    def probe(self, name: str, data: bytes) -> None:
        """It stays unconditional."""

    def publish(self, name: str, path: Path, sha256: str, replace: bool = False) -> None:
        there = None if replace else self._digest(name)
        if there == sha256:
            return
        if there is not None:
            raise StoreError(f"{self.root / name} is there already with other content, and is not written over")
        size, digest = file_digest(path)
        if digest != sha256:
            raise OSError(errno.EIO, "the staged file is not the one that was written", str(path))
        with remote_errors(self.root / name):
            if self.shared:
                self._fs.put_file(str(path), f"{self._path}/{name}")
            else:  # its put_file would show a file while it is written
                self._fs.pipe_file(f"{self._path}/{name}", path.read_bytes())
        if self.size(name) != size:
            raise RemoteError(errno.EIO, f"{self.root / name} has another size than was uploaded")

    def remove(self, names: Iterator[str]) -> None:
        for name in names:
            if self.size(name) is not None:
                with remote_errors(self.root / name):
                    self._fs.rm_file(f"{self._path}/{name}")

    def abort_uploads(self, ours: Callable[[set[str]], set[str]]) -> None:
        """There are none: nothing is uploaded in parts that could be taken up again."""

    def _digest(self, name: str) -> str | None:
        """Of a file that is there, read whole."""
        if self.size(name) is None:
            return None
        with remote_errors(self.root / name), self._fs.open(f"{self._path}/{name}", "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


def publish_all(objects: Objects, folder: Path, files: Iterable[tuple[str, str]], replace: bool) -> None:
    """Upload files (name, SHA-256) of a local folder, several at once. At an error no more are begun, and those under
    way have ended when it is raised."""
    _at_once(lambda file: objects.publish(file[0], folder / file[0], file[1], replace), files)


def fetch_all(objects: Objects, names: Iterable[str], folder: Path) -> None:
    """Download files into a local folder, several at once; those that are missing stay so."""

    def fetch(name: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not objects.fetch(name, path):
            path.unlink(missing_ok=True)

    _at_once(fetch, names)


def _at_once(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(_AT_ONCE, "dlmt-remote") as pool:
        try:
            for done in [pool.submit(work, item) for item in items]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
