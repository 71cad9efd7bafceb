"""What a decrypt has done, kept in a hidden folder of its target until it ends.

It lies there, not in the owner's folder, for three reasons: key and store suffice to decrypt, so there may be no
owner's folder; one store can be decrypted to several targets at once; and it stays on the disk of the files that it
tells of. It tells nothing that the decrypted images beside it do not.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..canonical import canonical_json, parse_json
from ..stores.contract import Published
from ..stores.listing import Listed
from ..stores.publish import OS, FileOps, file_digest, make_directories, publish_bytes, remove_all, remove_leftovers
from ..stores.segments import Segment
from ..stores.walk import entries, is_empty
from .formats.contract import size_of
from .locks import FOLDER as LOCKS

_NAME = ".dlmt-decrypt"
_RECORD = "job.json"
_FIELDS = {"job", "shard", "outputs", "size", "output_sha256", "name", "files"}


def id_of(record: dict[str, Any]) -> str:
    """The id of a decrypt: of its record's digest."""
    return hashlib.sha256(canonical_json(record)).hexdigest()[:32]


def journal_folder(target: Path, single: bool) -> Path:
    """Where the journal of a decrypt to `target` is: in the folder, or beside the one file."""
    return target.with_name(f".{target.name}{_NAME}") if single else target / _NAME


@dataclass(frozen=True)
class Entry:
    """A shard that was decrypted, and its files."""

    published: Published
    files: list[Listed]

    def there(self, root: Path, check: bool) -> bool:
        """Whether every file is, with its size; with `check` also with its digest."""
        for file in self.files:
            if size_of(root / file.name) != file.size:
                return False
            if check and file_digest(root / file.name)[1] != file.sha256:
                return False
        return True


class PlainJournal:
    """One file a shard; `job_id` as `id_of` gives it."""

    def __init__(self, root: Path, job_id: str, ops: FileOps = OS) -> None:
        self.root, self._job_id, self._ops = root, job_id, ops

    def prepare(self, record: dict[str, Any]) -> None:
        """Make the folder, and the record in it."""
        make_directories(self.root, self._ops, mode=0o700)
        if self.read_record() != record:  # none yet, or damaged: the marker has its id
            self._publish(_RECORD, canonical_json(record))

    def read_record(self) -> dict[str, Any] | None:
        """The record of the decrypt that was begun here, or None."""
        return _parsed(self.root / _RECORD)

    def enter(self, shard: int, published: Published, files: Iterable[Listed]) -> None:
        """The entry that counts a shard as done, with its own digest."""
        entry: dict[str, Any] = {"job": self._job_id, "shard": shard, "name": published.name}
        entry |= {"outputs": published.count, "size": published.size, "output_sha256": published.sha256}
        entry["files"] = [list(file) for file in files]
        entry["sha256"] = hashlib.sha256(canonical_json(entry)).hexdigest()
        self._publish(f"journal-{shard:05d}.json", canonical_json(entry), shard)

    def read(self, shard: int) -> Entry | None:
        """A shard's entry, or None where there is none, or one that is damaged or another job's."""
        entry = _parsed(self.root / f"journal-{shard:05d}.json") or {}
        digest = entry.pop("sha256", "")
        if set(entry) != _FIELDS or hashlib.sha256(canonical_json(entry)).hexdigest() != digest:
            return None
        if (entry["job"], entry["shard"]) != (self._job_id, shard):
            return None
        published = Published(entry["name"], entry["outputs"], entry["size"], entry["output_sha256"])
        return Entry(published, [Listed(*file) for file in entry["files"]])

    def enter_segment(self, shard: int, number: int, written: Segment) -> None:
        """The entry that counts a segment of a shard that is one large array."""
        entry: dict[str, Any] = {"job": self._job_id, "crc32": written.crc32}
        entry |= {"first": written.places.start, "stop": written.places.stop}
        entry["sha256"] = hashlib.sha256(canonical_json(entry)).hexdigest()
        self._publish(f"segment-{shard:05d}-{number:05d}.json", canonical_json(entry), shard)

    def segment(self, shard: int, number: int, places: range) -> Segment | None:
        """A segment that counts, or None."""
        entry = _parsed(self.root / f"segment-{shard:05d}-{number:05d}.json") or {}
        digest = entry.pop("sha256", "")
        if hashlib.sha256(canonical_json(entry)).hexdigest() != digest or entry.get("job") != self._job_id:
            return None
        same = (entry["first"], entry["stop"]) == (places.start, places.stop)
        return Segment(places, entry["crc32"]) if same else None

    def forget_segments(self, shard: int, number: int | None = None) -> None:
        """Remove the entries of a shard's segments, or of one of them."""
        prefix = f"segment-{shard:05d}-" + ("" if number is None else f"{number:05d}")
        found = [self.root / entry.name for entry in entries(self.root) if entry.name.startswith(prefix)]
        remove_all(found, self._ops)
        self._ops.fsync_directory(self.root)

    def has_segments(self) -> bool:
        """Whether a segment of any shard counts."""
        return self.root.is_dir() and any(entry.name.startswith("segment-") for entry in entries(self.root))

    def sweep(self, shards: Container[int | None]) -> None:
        """Remove what was left half-written of these shards; nobody may be writing it."""
        if self.root.is_dir():  # it goes before the marker does
            remove_leftovers([self.root], self._job_id, self._ops, shards)

    def remove(self) -> None:
        """All of it, also where that was begun before. What is not a journal's stays, and so does the folder then."""
        if not self.root.is_dir():
            return
        for entry in entries(self.root):
            if entry.name == LOCKS:
                shutil.rmtree(self.root / entry.name)
            elif entry.name.startswith(("journal-", "segment-", ".tmp-", _RECORD)):
                self._ops.unlink(self.root / entry.name)
        if is_empty(self.root):
            self._ops.rmdir(self.root)
        self._ops.fsync_directory(self.root.parent)

    def _publish(self, name: str, data: bytes, shard: int | None = None) -> None:
        publish_bytes(self.root / name, data, self._job_id, shard, self._ops)


def _parsed(path: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None
