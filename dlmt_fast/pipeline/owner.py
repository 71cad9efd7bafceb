"""The owner's folder of a store: job record, journal, ledger, quarantine lists. Never inside the target."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..canonical import canonical_json, parse_json
from ..errors import StoreDamagedError, StoreError
from ..stores.contract import Published, Refused
from ..stores.publish import make_directories, publish_bytes
from .seal import StoreSeal

_ENTRY = {"job", "shard", "inputs", "outputs", "quarantined", "size", "output_sha256"}


def default_folder(keyfile: Path, store_id: str) -> Path:
    """`KEYFILE.stores/STORE_ID`."""
    return keyfile.with_name(f"{keyfile.name}.stores") / store_id


class OwnerFolder:
    """Reads and writes what only the owner keeps, one file a shard."""

    def __init__(self, root: Path, seal: StoreSeal) -> None:
        self.root, self._seal = root, seal

    def prepare(self, target: Path) -> None:
        """Make the folder, mode 0700.

        Raises:
            StoreError: it lies inside the target, where it would be uploaded with it.
        """
        inside, outside = self.root.resolve(), target.resolve()
        if inside == outside or outside in inside.parents:
            raise StoreError(f"the owner's folder {self.root} lies inside the target {target}; choose another --owner")
        make_directories(self.root, mode=0o700)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's kernel lock; it ends with the process, however that ends.

        Raises:
            StoreError: another process works on the same job; the message names it.
        """
        import fcntl

        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode("utf-8", "replace")
                raise StoreError(f"the same job runs already ({holder}); wait for it, or stop it") from None
            os.ftruncate(descriptor, 0)
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            os.pwrite(descriptor, f"host {socket.gethostname()}, pid {os.getpid()}, since {started}".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Fix the job record.

        Raises:
            StoreError: the folder belongs to another job, whose ledger would be lost.
        """
        data = canonical_json(dict(record))
        try:
            found = (self.root / "job.json").read_bytes()
        except FileNotFoundError:
            self._publish("job.json", data)
            return
        if found != data:
            raise StoreError(f"the owner's folder {self.root} belongs to another job; choose another --owner")

    def write_journal(self, published: Published, shard: int, inputs: int, quarantined: int) -> None:
        """The entry that counts a shard as done, with its own digest."""
        entry: dict[str, Any] = {"job": self._seal.store_id, "shard": shard, "inputs": inputs}
        entry |= {"outputs": published.count, "quarantined": quarantined}
        entry |= {"size": published.size, "output_sha256": published.sha256}
        entry["sha256"] = hashlib.sha256(canonical_json(entry)).hexdigest()
        self._publish(f"journal-{shard:05d}.json", canonical_json(entry))

    def write_ledger(self, shard: int, output_sha256: str, ledger: Mapping[str, Any]) -> None:
        """Original names and per-image bounds, encrypted."""
        self._publish(f"ledger-{shard:05d}.bin", self._seal.seal_ledger(shard, output_sha256, ledger))

    def read_ledger(self, shard: int, output_sha256: str) -> dict[str, Any] | None:
        """A shard's ledger, or None where the folder has none.

        Raises:
            StoreDamagedError: it is there and does not open.
        """
        try:
            sealed = (self.root / f"ledger-{shard:05d}.bin").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self._seal.open_ledger(shard, output_sha256, sealed)

    def write_quarantine(self, shard: int, refused: list[Refused]) -> None:
        """The samples that were not taken, with reasons."""
        lines = [{"path": item.path, "reason": item.reason} for item in refused]
        self._publish(f"quarantine-{shard:05d}.json", json.dumps(lines, indent=1).encode("utf-8"))

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
        if set(body) != _ENTRY or entry["sha256"] != digest:
            raise StoreDamagedError(f"{path} is damaged: its checksum does not match")
        return body

    def _publish(self, name: str, data: bytes) -> None:
        publish_bytes(self.root / name, data, self._seal.store_id, mode=0o600)
