"""Remote files as zarr sees a store: those that a listing found, in the content that they had then.

zarr's own store for fsspec takes a file that is gone for a chunk that was never written, which reads as the fill value,
and asks for no tag. Here either is an error. zarr is imported with this module, which is imported when it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from .contract import FileStamp
from .reading import read_part


class StampedStore(Store):
    """Reads the files of `stamps`, by their paths below `root`."""

    supports_writes = supports_deletes = supports_partial_writes = False
    supports_listing = True

    def __init__(self, root: Path, stamps: Mapping[str, FileStamp]) -> None:
        super().__init__(read_only=True)
        self._root, self._stamps = root, stamps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StampedStore) and (self._root, self._stamps) == (other._root, other._stamps)

    __hash__ = None  # type: ignore[assignment]

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """A file's bytes, or a part of them; None where the listing had no such file."""
        stamp = self._stamps.get(key)
        if stamp is None:
            return None
        start, stop = _bounds(byte_range, stamp.size)
        data = await asyncio.to_thread(read_part, self._root / key, start, stop - start, stamp)
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        """Several parts of files."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether the listing had this file."""
        return key in self._stamps

    async def list(self) -> AsyncIterator[str]:
        """All files."""
        for key in self._stamps:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All files whose path begins so."""
        for key in self._stamps:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names of files and folders in a folder."""
        above = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in sorted({key[len(above) :].partition("/")[0] for key in self._stamps if key.startswith(above)}):
            yield name

    async def set(self, key: str, value: Any) -> None:
        """Refused: a source is not written to."""
        raise NotImplementedError("a source is not written to")

    async def set_partial_values(self, key_start_values: Any) -> None:
        """As `set`."""
        raise NotImplementedError("a source is not written to")

    async def delete(self, key: str) -> None:
        """As `set`."""
        raise NotImplementedError("a source is not written to")


def _bounds(asked: Any, size: int) -> tuple[int, int]:
    """From where to where a request of zarr's goes."""
    if isinstance(asked, RangeByteRequest):
        return min(asked.start, size), min(asked.end, size)
    if isinstance(asked, OffsetByteRequest):
        return min(asked.offset, size), size
    if isinstance(asked, SuffixByteRequest):
        return max(0, size - asked.suffix), size
    return 0, size
