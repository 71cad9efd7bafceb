"""One tar of samples (WebDataset) whose bytes depend on the images, names and labels alone: no time, no user, one mode.

A sample is `KEY.png` (uint8; PNG in stored blocks) or `KEY.npy` (any other dtype, (C, H, W)), and `KEY.cls` with its
class number in digits, where it has one; fields that are kept follow. The `webdataset` package and `datasets` read both
by themselves.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import StoreError
from .contract import Allow, Array, Published, Value, anyway
from .npy import encode_npy
from .png import encode_png
from .publish import OS, FileOps, temporary_name
from .streamed import StreamedFile

_BLOCK = 512
_END = bytes(2 * _BLOCK)


class TarWriter:
    """Writes one shard: a temporary from start to end, renamed when it is whole."""

    def __init__(self, root: Path, store_id: str, shard: int, name: str, ops: FileOps = OS) -> None:
        self._root, self._name, self._ops = root, name, ops
        self._keys: set[str] = set()
        self._renamed: Path | None = None
        self._file = StreamedFile(root / temporary_name(store_id, shard), ops)

    def write(
        self,
        positions: Sequence[int],
        names: Sequence[str],
        images: Array,
        labels: Sequence[int] | None = None,
        kept: Sequence[Mapping[str, Value]] | None = None,
    ) -> None:
        """Append images (n, C, H, W) as members of these names, each with its label and kept fields behind it."""
        for place, (name, image) in enumerate(zip(names, images, strict=True)):
            key, field = key_of(name)
            if key in self._keys:
                raise StoreError(f"two samples would have the key {key} in {self._name}; --names hash keeps them apart")
            self._keys.add(key)
            data = _member(name, encode_png(image) if field == "png" else encode_npy(image))
            if labels is not None:
                data += _member(f"{key}.cls", str(int(labels[place])).encode("ascii"))
            for name, value in sorted(kept[place].items()) if kept is not None else ():
                if value is not None:
                    data += _member(f"{key}.{name}", _bytes_of(value))
            self._file.write(data)

    def publish(self, allow: Allow = anyway) -> Published:
        self._file.write(_END)
        self._file.finish()
        published = Published(self._name, len(self._keys), self._file.size, self._file.sha256)
        allow(published)
        self._ops.rename(self._file.path, self._root / self._name)
        self._renamed = self._root / self._name
        self._ops.fsync_directory(self._root)
        return published

    def abort(self) -> None:
        try:
            self._file.discard()
        finally:
            if self._renamed is not None:
                self._ops.unlink(self._renamed)


def key_of(name: str) -> tuple[str, str]:
    """A member's key and field: what is before and behind the first dot of the last part of its path."""
    folder, slash, last = name.rpartition("/")
    stem, _, field = last.partition(".")
    return folder + slash + stem, field


def _bytes_of(value: bytes | str | float) -> bytes:
    """A kept value as a member: bytes as they are, text as UTF-8, numbers in digits that give the same number again."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8")
    return (repr(value) if isinstance(value, float) else str(int(value))).encode("ascii")


def _member(name: str, data: bytes | bytearray) -> bytes:
    info = tarfile.TarInfo(name)  # with no user, group and time
    info.size, info.mode = len(data), 0o644
    # PAX is plain ustar where that can hold the name
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict") + data + bytes(-len(data) % _BLOCK)
