"""What is in a tar of samples (WebDataset), found in its headers: nothing is unpacked, pixels are read by their offset.

A sample is a run of members with one key: the path up to the first dot of its last part; what follows is the field. One
field is the image. The tar is trusted in nothing: links, devices, names that leave the folder, a key that comes twice,
and a missing end are errors that name it.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

from ..errors import StoreDamagedError, StoreError
from .contract import KEPT_BYTES, FileStamp, Shape
from .decode import SUFFIXES
from .reading import opened

#: The shape of an image, or why it cannot be taken.
Probed: TypeAlias = "Shape | str"

LABELS = ("cls", "txt", "json")  # fields that may be a class number, the first choice first
_END = 1024  # zero bytes that close a tar
_BLOCK = 512
_NUMBER = re.compile(rb"\s*([0-9]{1,18})\s*")
_NUMBER_BYTES = 24  # a longer content is no class number


class Sample(NamedTuple):
    """A sample: its key, the field that is its image ("" where `fault` says why there is none), where that lies, all
    other fields, those of `LABELS` that hold a class number, (offset, size) of the fields that were asked for, and what
    the `probe` of `read_index` said of the image."""

    key: str
    image: str
    offset: int
    size: int
    fields: tuple[str, ...]
    numbers: dict[str, int]
    fault: str = ""
    kept: Mapping[str, tuple[int, int]] = {}
    probed: Probed | None = None

    @property
    def path(self) -> str:
        """The image's name in the tar."""
        return f"{self.key}.{self.image}" if self.image else self.key


class Index(NamedTuple):
    """A tar's samples in their order, and how many members with names that no reader takes for samples it has."""

    samples: list[Sample]
    nameless: int


class _Member(NamedTuple):
    key: str
    field: str
    offset: int
    size: int
    number: int | None
    probed: Probed | None


def read_index(
    path: Path,
    suffixes: Collection[str] = SUFFIXES,
    stamp: FileStamp | None = None,
    probe: Callable[[bytes], Probed] | None = None,
    keep: Callable[[str], bool] = lambda field: False,
) -> Index:
    """The index of a plain tar; a field is an image if it ends as one of `suffixes`.

    Args:
        stamp: of the tar.
        probe: called with the file of each image on the way, where the tar is not to be read a second time.
        keep: whether a field is asked for, so that its place is in the index.

    Raises:
        StoreDamagedError: it is none, it is truncated, or its members are not those of samples.
        StoreError: it is compressed.
    """
    nameless = 0
    samples: list[Sample] = []
    seen: set[str] = set()
    run: list[_Member] = []
    with opened(path, stamp) as file:
        for info in _members(path, file):
            member = _member(info, path, file, suffixes, probe)
            if member is None:
                nameless += not info.isdir()
                continue
            if run and member.key != run[0].key:
                samples.append(_sample(run, path, suffixes, keep))
                run = []
            if not run and member.key in seen:
                raise StoreDamagedError(f"{path} holds the key {member.key} in two places; keys name one sample each")
            seen.add(member.key)
            run.append(member)
    if run:
        samples.append(_sample(run, path, suffixes, keep))
    return Index(samples, nameless)


def _members(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Every member's header; when they are through, the end of the tar has been checked."""
    size, end = file.seek(0, os.SEEK_END), 0
    file.seek(0)
    if file.read(2) == b"\x1f\x8b":
        raise StoreError(f"{path} is compressed; unpack it (gunzip), as images are read from a tar by their place")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would grow with the tar
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK if info.isreg() else info.offset_data
                if end > size:
                    raise StoreDamagedError(f"{path} is truncated inside {info.name}")
                yield info
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise StoreDamagedError(f"{path} is no tar, or a damaged one: {error}") from None
    file.seek(end)
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise StoreDamagedError(f"{path} is damaged: what follows its member {end} bytes in is no header")
    if size - end < _END:
        raise StoreDamagedError(f"{path} is truncated: it does not end with {_END} zero bytes")


def _member(
    info: tarfile.TarInfo,
    path: Path,
    file: IO[bytes],
    suffixes: Collection[str],
    probe: Callable[[bytes], Probed] | None,
) -> _Member | None:
    """A file of a sample, or None: a folder, or a name without key or field, or one of the tar's own (`__x__`)."""
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        what = "a link" if info.issym() or info.islnk() else "neither a file nor a folder"
        raise StoreDamagedError(f"{path} holds {info.name!r}, which is {what}; a tar of samples holds files alone")
    name = info.name.removeprefix("./")
    folder, slash, last = name.rpartition("/")
    unsafe = {"", ".", ".."} & set(name.split("/")) or "\\" in name or not name.isprintable()
    if unsafe:
        raise StoreDamagedError(f"{path} holds the name {info.name!r}, which is not one of a file inside a folder")
    stem, _, field = last.partition(".")
    if not stem or not field or (stem.startswith("__") and stem.endswith("__")):
        return None
    field = field.lower()
    probed = probe(_content(info, file)) if probe is not None and _is_image(field, suffixes) else None
    return _Member(folder + slash + stem, field, info.offset_data, info.size, _number(field, info, file), probed)


def _is_image(field: str, suffixes: Collection[str]) -> bool:
    return "." + field.rpartition(".")[2] in suffixes


def _number(field: str, info: tarfile.TarInfo, file: IO[bytes]) -> int | None:
    if field not in LABELS or info.size > _NUMBER_BYTES:
        return None
    found = _NUMBER.fullmatch(_content(info, file))
    return int(found[1]) if found else None


def _content(info: tarfile.TarInfo, file: IO[bytes]) -> bytes:
    place = file.tell()
    file.seek(info.offset_data)
    data = file.read(info.size)
    file.seek(place)
    return data


def _sample(run: list[_Member], path: Path, suffixes: Collection[str], keep: Callable[[str], bool]) -> Sample:
    fields = [member.field for member in run]
    if len(set(fields)) != len(fields):
        twice = next(field for field in fields if fields.count(field) > 1)
        raise StoreDamagedError(f"{path} holds {run[0].key}.{twice} twice")
    images = [member for member in run if _is_image(member.field, suffixes)]
    numbers = {member.field: member.number for member in run if member.number is not None}
    if len(images) != 1:
        found = f"several images ({', '.join(member.field for member in images)})" if images else "no image"
        return Sample(run[0].key, "", 0, 0, tuple(fields), numbers, f"its sample has {found}; one was expected")
    image = images[0]
    others = tuple(field for field in fields if field != image.field)
    kept = {member.field: _place_of(member, path) for member in run if member.field in others and keep(member.field)}
    return Sample(image.key, image.field, image.offset, image.size, others, numbers, kept=kept, probed=image.probed)


def _place_of(member: _Member, path: Path) -> tuple[int, int]:
    if member.size > KEPT_BYTES:
        raise StoreError(
            f"{path} holds {member.key}.{member.field} of {member.size} bytes; --keep passes at most {KEPT_BYTES}"
        )
    return member.offset, member.size
