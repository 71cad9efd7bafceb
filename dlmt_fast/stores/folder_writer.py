"""Writing a folder of images, a shard at a time.

A published folder holds PNG files (uint8) or .npy files (C, H, W), and one listing a shard, `dlmt-shard-00000.txt`: a
line `SHA-256 size name` a file, sorted by name. The listing's own digest is the shard's.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from ..errors import StoreError
from .contract import Allow, Array, Published, anyway
from .listing import Listed, encode_listing, listing_name
from .npy import encode_npy
from .png import encode_png
from .publish import OS, FileOps, make_directories, publish_bytes, remove_all, temporary_name, write_temporary
from .threads import kept_threads

_SYNCERS = 4  # threads that write: each waits for the disk most of the time
_AHEAD, _AHEAD_BYTES = 2 * _SYNCERS, 16 << 20  # files that wait for them, at most


class FolderWriter:
    """Writes one shard of a folder: temporaries first, then all renames, then the listing.

    Temporaries are written, synced and digested in a few threads, since each waits for the disk; `publish` waits for
    all of them before the first rename.
    """

    def __init__(self, root: Path, store_id: str, shard: int, ops: FileOps = OS, listed: bool = True) -> None:
        self._root, self._store_id, self._shard, self._ops, self._listed = root, store_id, shard, ops, listed
        self._temporaries: dict[str, Path] = {}
        self._listing: list[Listed] = []  # of those that are on disk
        self._ahead: deque[tuple[Future[Listed], int]] = deque()  # those that may not be yet, with their sizes
        self._folders: set[Path] = {root}
        self._renamed: list[Path] = []

    def write(
        self, positions: Sequence[int], names: Sequence[str], images: Array, labels: Sequence[int] | None = None
    ) -> None:
        """Encode each image to a temporary beside its final place. `names` are relative, with the right suffix."""
        for name, image in zip(names, images, strict=True):
            if name in self._temporaries:
                raise StoreError(f"two samples would be written as {name}; --names hash keeps them apart")
            final = self._root / name
            if final.parent not in self._folders:
                make_directories(final.parent, self._ops)
                self._folders.add(final.parent)
            data = encode_png(image) if name.endswith(".png") else encode_npy(image)
            self._wait_for_room(len(data))
            self._temporaries[name] = final.with_name(temporary_name(self._store_id, self._shard))
            self._ahead.append((kept_threads("write", _SYNCERS).submit(self._to_disk, name, data), len(data)))

    def publish(self, allow: Allow = anyway) -> Published:
        while self._ahead:
            self._wait_for_one()
        listing = encode_listing(self.listed())
        digest, size = hashlib.sha256(listing).hexdigest(), sum(entry.size for entry in self._listing)
        published = Published(listing_name(self._shard), len(self._listing), size, digest)
        allow(published)
        for name, temporary in self._temporaries.items():
            self._ops.rename(temporary, self._root / name)
            self._renamed.append(self._root / name)
        for folder in sorted(self._folders):
            self._ops.fsync_directory(folder)
        if self._listed:
            self._renamed.append(self._root / published.name)
            publish_bytes(self._renamed[-1], listing, self._store_id, self._shard, self._ops)
        return published

    def listed(self) -> Iterator[Listed]:
        """The files of the published shard."""
        return iter(self._listing)

    def abort(self) -> None:
        wait([future for future, _ in self._ahead if not future.cancel()])
        remove_all([*self._temporaries.values(), *self._renamed], self._ops)

    def _to_disk(self, name: str, data: bytes | bytearray) -> Listed:
        write_temporary(self._temporaries[name], data, self._ops)
        return Listed(hashlib.sha256(data).hexdigest(), len(data), name)

    def _wait_for_room(self, size: int) -> None:
        """Wait until what is on its way to the disk leaves room in memory for `size` bytes more."""
        while self._ahead and (len(self._ahead) >= _AHEAD or sum(n for _, n in self._ahead) + size > _AHEAD_BYTES):
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        self._listing.append(self._ahead[0][0].result())  # one that failed stays, for `abort`
        self._ahead.popleft()
