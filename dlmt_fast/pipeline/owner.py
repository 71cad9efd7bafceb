"""The owner's folder of a store: job record, journal, ledger, quarantined and equal inputs. Never inside the target."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..canonical import canonical_json, parse_json
from ..errors import StoreDamagedError, StoreError
from ..stores.contract import FileStamp, Published, Refused
from ..stores.publish import OS, FileOps, make_directories, publish_bytes, remove_leftovers
from ..stores.walk import entries
from .job import differences
from .private import closed_to_others
from .seal import StoreSeal

_DUPLICATES = "duplicates.json"
_OURS = re.compile(
    r"(job|replaced|duplicates)\.json|(journal|quarantine|duplicates)-\d+\.json|(ledger|sources)-\d+\.bin|"
    r"segment-\d+-\d+\.bin|locks|\.tmp-.*"
)
_ENTRY = {"job", "shard", "attempt", "inputs", "outputs", "quarantined", "size", "output_sha256"}


def default_folder(keyfile: Path, store_id: str) -> Path:
    """`KEYFILE.stores/STORE_ID`."""
    return keyfile.with_name(f"{keyfile.name}.stores") / store_id


class Duplicate(NamedTuple):
    """A sample by its index in the job that is equal to an earlier one; both by their names in the source."""

    sample: int
    path: str
    equal_to: str


class OwnerFolder:
    """Reads and writes what only the owner keeps, one file a shard."""

    def __init__(self, root: Path, seal: StoreSeal, ops: FileOps = OS) -> None:
        self.root, self._seal, self._ops = root, seal, ops

    def refuse_inside(self, target: Path) -> None:
        """Refuse a folder inside the target.

        Raises:
            StoreError: it lies there, where it would be uploaded with it.
        """
        inside, outside = self.root.resolve(), target.resolve()
        if inside == outside or outside in inside.parents:
            raise StoreError(f"the owner's folder {self.root} lies inside the target {target}; choose another --owner")

    def prepare(self, target: Path) -> str:
        """Make the folder, mode 0700; one that is there and holds no other files is closed to others. Gives what the
        user is to know of that, or "".

        Raises:
            StoreError: see `refuse_inside`.
        """
        self.refuse_inside(target)
        made = make_directories(self.root, self._ops, mode=0o700)
        return "" if made else closed_to_others(self.root, _OURS)

    def sweep(self, shards: Container[int | None]) -> None:
        """Remove what dead attempts left half-written of these shards; nobody may be writing it. None stands for what
        belongs to no shard, which every slice writes."""
        remove_leftovers([self.root], self._seal.store_id, self._ops, shards)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Fix the job record.

        Raises:
            StoreError: the folder belongs to another job, whose ledger would be lost; the message says what differs.
        """
        data = canonical_json(dict(record))
        try:
            found = (self.root / "job.json").read_bytes()
        except FileNotFoundError:
            self._publish("job.json", data)
            return
        try:
            other = "" if found == data else differences(parse_json(found), record)
        except ValueError:  # of this job or not, nothing can be told from it
            raise StoreDamagedError(f"{self.root} holds a damaged job.json; choose another --owner") from None
        if found == data and self._entered_by() not in (None, self._seal.store_id):
            other = "the key is another"
        if other:
            raise StoreError(f"the owner's folder {self.root} belongs to another job ({other}); choose another --owner")

    def _entered_by(self) -> str | None:
        """The id of the job whose journal this is, from any entry that is whole; None where there is none."""
        for entry in entries(self.root):
            if number := re.fullmatch(r"journal-(\d+)\.json", entry.name):
                with suppress(StoreDamagedError):  # that shard is done again
                    if found := self.read_journal(int(number[1])):
                        return str(found["job"])
        return None

    def read_record(self) -> dict[str, Any] | None:
        """The job record that the folder has, or None."""
        try:
            record = parse_json((self.root / "job.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def write_replaced(self, names: Iterable[str]) -> None:
        """The files of the store that this job replaces: after a kill nothing else tells them from the new ones."""
        self._publish("replaced.json", canonical_json(sorted(names)))

    def read_replaced(self) -> set[str]:
        """The files of the store that this job replaces; empty where it replaces none.

        Raises:
            StoreDamagedError: the list of them is damaged.
        """
        path, names = self.root / "replaced.json", None
        try:
            names = parse_json(path.read_bytes())
        except FileNotFoundError:
            return set()
        except ValueError:
            pass
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise StoreDamagedError(
                f"{path} is damaged: nothing else tells the files of the old store from the new ones; remove both "
                "from the target, or choose another target, and start the same command without --resume"
            )
        return set(names)

    def forget_replaced(self) -> None:
        """The old store is gone, or this start of the job replaces none."""
        if (self.root / "replaced.json").exists():
            self._ops.unlink(self.root / "replaced.json")
            self._ops.fsync_directory(self.root)

    def write_journal(self, published: Published, shard: int, attempt: int, inputs: int, quarantined: int) -> None:
        """The entry that counts a shard as done, with its own digest."""
        entry: dict[str, Any] = {"job": self._seal.store_id, "shard": shard, "attempt": attempt, "inputs": inputs}
        entry |= {"outputs": published.count, "quarantined": quarantined}
        entry |= {"size": published.size, "output_sha256": published.sha256}
        entry["sha256"] = hashlib.sha256(canonical_json(entry)).hexdigest()
        self._publish(f"journal-{shard:05d}.json", canonical_json(entry), shard)

    def write_ledger(self, shard: int, sealed: bytes) -> None:
        """Original names and per-image bounds, encrypted by `StoreSeal.seal_ledger`."""
        self._publish(self.ledger_name(shard), sealed, shard)

    def ledger_name(self, shard: int) -> str:
        """What the file of a shard's ledger is called."""
        return f"ledger-{shard:05d}.bin"

    def has_ledger(self, shard: int) -> bool:
        """Whether there is a ledger of a shard, whatever it holds."""
        return (self.root / self.ledger_name(shard)).exists()

    def read_ledger(self, shard: int, output_sha256: str) -> dict[str, Any] | None:
        """A shard's ledger, or None where the folder has none.

        Raises:
            StoreDamagedError: it is there and does not open.
        """
        try:
            sealed = (self.root / self.ledger_name(shard)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self._seal.open_ledger(shard, output_sha256, sealed)

    def write_segment(self, shard: int, segment: int, sealed: bytes) -> None:
        """The entry that counts a segment of an unfinished shard, encrypted by `StoreSeal.seal_segment`."""
        self._publish(self._segment(shard, segment).name, sealed, shard)

    def read_segment(self, shard: int, segment: int) -> bytes | None:
        """The encrypted entry of a segment, or None where there is none."""
        try:
            return self._segment(shard, segment).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def has_segments(self) -> bool:
        """Whether a segment of any shard counts."""
        return next(self._segments(None), None) is not None

    def forget_segments(self, shard: int | None = None, segment: int | None = None) -> None:
        """Remove the entries of a segment, of all of a shard, or of all shards."""
        found = [self._segment(shard, segment)] if shard is not None and segment is not None else self._segments(shard)
        gone = 0
        for path in list(found):
            self._ops.unlink(path)
            gone += 1
        if gone:
            self._ops.fsync_directory(self.root)

    def _segments(self, shard: int | None) -> Iterator[Path]:
        prefix = "segment-" if shard is None else f"segment-{shard:05d}-"
        return (self.root / entry.name for entry in entries(self.root) if entry.name.startswith(prefix))

    def _segment(self, shard: int, segment: int) -> Path:
        return self.root / f"segment-{shard:05d}-{segment:05d}.bin"

    def write_quarantine(self, shard: int, refused: list[Refused]) -> None:
        """The samples that were not taken, with reasons."""
        lines = [{"path": item.path, "reason": item.reason} for item in refused]
        self._publish(f"quarantine-{shard:05d}.json", json.dumps(lines, indent=1).encode("utf-8"), shard)

    def read_quarantine(self, shard: int) -> list[Refused] | None:
        """A shard's quarantine list (without the samples' indices), or None where it is absent or damaged."""
        try:
            lines = parse_json((self.root / f"quarantine-{shard:05d}.json").read_bytes())
            return [Refused(-1, line["path"], line["reason"]) for line in lines]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write_duplicates(self, shard: int, found: list[Duplicate]) -> None:
        """The samples of a shard that are equal to earlier ones of the job."""
        lines = [item._asdict() for item in found]
        self._publish(self._duplicates(shard).name, json.dumps(lines, indent=1).encode("utf-8"))

    def read_duplicates(self, shard: int) -> list[Duplicate]:
        """What `write_duplicates` entered; a shard without duplicates has no list.

        Raises:
            StoreDamagedError: the list is damaged.
        """
        try:
            return [Duplicate(**line) for line in parse_json(self._duplicates(shard).read_bytes())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError):
            raise StoreDamagedError(f"{self._duplicates(shard)} is damaged") from None

    def write_duplicates_found(self, inputs: int, equal: int, shards: int) -> None:
        """All lists of `shards` shards are there: how many inputs were compared, and how many are listed."""
        facts = {"job": self._seal.store_id, "inputs": inputs, "equal": equal, "sha256": self._listed(shards)}
        self._publish(_DUPLICATES, canonical_json(facts))

    def read_duplicates_found(self, shards: int) -> tuple[int, int] | None:
        """(inputs, equal ones) where all lists are there as they were written, else None."""
        try:
            facts = parse_json((self.root / _DUPLICATES).read_bytes())
            if (facts["job"], facts["sha256"]) != (self._seal.store_id, self._listed(shards)):
                return None
            return int(facts["inputs"]), int(facts["equal"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def _listed(self, shards: int) -> str:
        """A digest of all lists of duplicates."""
        digest = hashlib.sha256()
        for shard in range(shards):
            path = self._duplicates(shard)
            if path.exists():
                digest.update(b"%d " % shard + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _duplicates(self, shard: int) -> Path:
        return self.root / f"duplicates-{shard:05d}.json"

    def read_journal(self, shard: int) -> dict[str, Any] | None:
        """A shard's journal entry, or None where there is none.

        Raises:
            StoreDamagedError: it is there and malformed.
        """
        path = self.root / f"journal-{shard:05d}.json"
        try:
            entry = parse_json(path.read_bytes())
            body = {name: value for name, value in entry.items() if name != "sha256"} if isinstance(entry, dict) else {}
            digest = hashlib.sha256(canonical_json(body)).hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            raise StoreDamagedError(f"{path} is damaged") from None
        if set(body) != _ENTRY or entry.get("sha256") != digest:
            raise StoreDamagedError(f"{path} is damaged: its checksum does not match")
        return body

    def has_sources(self, part: int) -> bool:
        """Whether a part of the list of source files is there."""
        return self._sources(part).exists()

    def write_sources(self, part: int, stamps: Iterable[FileStamp]) -> None:
        """A part of the list of source files, encrypted."""
        files = {"files": [[stamp.path, stamp.size, stamp.state] for stamp in stamps]}
        self._publish(self._sources(part).name, self._seal.seal_sources(part, files))

    def read_sources(self, part: int) -> list[FileStamp]:
        """A part of the list of source files.

        Raises:
            StoreDamagedError: it is not there, or does not open.
        """
        try:
            sealed = self._sources(part).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreDamagedError(f"{self._sources(part)} is missing") from None
        return [FileStamp(*stamp) for stamp in self._seal.open_sources(part, sealed)["files"]]

    def _sources(self, part: int) -> Path:
        return self.root / f"sources-{part:05d}.bin"

    def has_journal(self, shard: int) -> bool:
        """Whether there is an entry for a shard, whatever it says."""
        return (self.root / f"journal-{shard:05d}.json").exists()

    def _publish(self, name: str, data: bytes, shard: int | None = None) -> None:
        publish_bytes(self.root / name, data, self._seal.store_id, shard, self._ops, mode=0o600)
