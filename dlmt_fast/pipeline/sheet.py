"""`write_sheet`: a contact sheet, one PNG with the first images of some shards of a store or a source."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..errors import ParameterError, StoreError, UsageError
from ..functional import decrypt
from ..keys import Key
from ..schemes import Plan
from ..stores.contract import Array, Batch, Published
from ..stores.location import is_remote, located
from ..stores.manifest import is_single, read_manifest
from ..stores.publish import OS, publish_bytes
from .formats import StoredBatch, StoredShard, format_of
from .inspection import OwnerOf, is_store
from .open import open_source
from .options import JobOptions
from .owner import OwnerFolder
from .remote_storage import at_hand
from .stored import StoredImages

_CELL = 96  # pixels that an image is scaled into
_TEXT = 12  # pixels under it
_GAP = 4
_COLUMNS = 8
_MOST = 4096  # images: a sheet of 60 megapixels
_SHARDS = 8  # shards that images are taken from, where they have enough
_LETTERS = _CELL // 6


@dataclass(frozen=True)
class Tile:
    """A scaled image, the decrypted one where that is wanted, and what stands under them."""

    image: PIL.Image.Image
    plain: PIL.Image.Image | None
    caption: str


@dataclass(frozen=True)
class Sheet:
    """A written sheet: how many images are on it, how their values became gray levels, and whether it shows plain
    images."""

    path: Path
    images: int
    scaling: str
    plain: bool


def write_sheet(
    place: str | Path,
    out: Path,
    count: int = 64,
    key: Key | None = None,
    owner_folder: OwnerOf | None = None,
    decrypted: bool = False,
    overwrite: bool = False,
    options: JobOptions | None = None,
    source_kind: str | None = None,
) -> Sheet:
    """Write `out`, a PNG with `count` images in rows of eight, taken from eight shards spread over the store, or
    more where these have too few.

    Captions are what the store itself shows: labels and stored names. A sheet with plain images, those of a source or
    decrypted ones, is readable for its owner alone (mode 0600).

    Args:
        key: tells the range of values that are not bytes; else each image is scaled by its own minimum and maximum.
        decrypted: show decrypted images too, each under its transformed one; needs the key.
        overwrite: replace an earlier sheet.

    Raises:
        UsageError: `out` exists, or lies inside the store. ParameterError: `decrypted` without a key.
        StoreError: there is no finished store; or decrypting needs a ledger that is not at hand.
    """
    path = located(place)
    if not 1 <= count <= _MOST:
        raise ParameterError(f"a sheet has 1 to {_MOST} images, got {count}")
    if out.suffix.lower() != ".png":
        raise UsageError(f"a sheet is a PNG file, and {out} is not called so")
    if not is_remote(path) and path.is_dir() and path.resolve() in out.resolve().parents:
        raise UsageError(f"{out} lies inside {path}, where it would be a file too many; choose another place")
    if not overwrite and (out.exists() or out.is_symlink()):
        raise UsageError(f"{out} exists; choose another name, or replace it with --overwrite")
    stored = source_kind is None and is_store(path)
    if decrypted and (key is None or not stored):
        raise ParameterError("decrypted images are shown for a store, with its key")
    if stored:
        reader = _StoreTiles(path, key, owner_folder, decrypted)
        tiles, scaling = list(islice(reader.tiles(count), count)), reader.scaling
    else:
        tiles, scaling = list(_source_tiles(path, count, options or JobOptions(), source_kind)), "as they are"
    if not tiles:
        raise StoreError(f"{path} has no image to show")
    plain = decrypted or not stored
    _write(out, _encoded(tiles), 0o600 if plain else 0o666, overwrite)
    return Sheet(out, len(tiles), scaling, plain)


class _StoreTiles:
    """Reads tiles from a finished store; files are compared with their digests before they are used."""

    def __init__(self, path: Path, key: Key | None, owner_folder: OwnerOf | None, decrypted: bool) -> None:
        self._root = path.parent if is_single(path) else path
        self._manifest = read_manifest(path)
        self._store = StoredImages(path, key) if key is not None else None
        self._decrypted = decrypted
        self._owner: OwnerFolder | None = None
        if self._store is not None and owner_folder is not None:
            self._owner = OwnerFolder(owner_folder(self._manifest.store_id), self._store.seal)
        self.scaling = "as they are"
        if self._manifest.dtype != "uint8":
            self.scaling = (
                "each image by its own minimum and maximum" if self._store is None else "by the range of the store"
            )

    def tiles(self, count: int) -> Iterator[Tile]:
        """The first images of shards spread over the store."""
        full = [index for index, shard in enumerate(self._manifest.shards) if shard.count]
        for index, share in _spread(full, [shard.count for shard in self._manifest.shards], count):
            with closing(self._of(index, self._manifest.shards[index])) as found:
                yield from islice(found, share)

    def _of(self, index: int, shard: Published) -> Generator[Tile, None, None]:
        ledger = self._ledger(index, shard)
        order = {name: place for place, (name, _) in enumerate(ledger.get("names", []))}
        form = format_of(self._manifest.kind)
        with at_hand(self._root, form, shard) as folder:
            yield from self._read(form.open(folder, shard, self._manifest), ledger, order)

    def _read(self, opened: StoredShard, ledger: dict[str, Any], order: dict[str, int]) -> Iterator[Tile]:
        for batch in opened.read():
            for place in range(len(batch.images)):
                one = batch.images[place : place + 1]
                plan = None if self._store is None else self._store.plans.of(one)
                low, high = _range(one[0]) if plan is None else _known_range(plan)
                image = one[0] if one.dtype == np.uint8 else _to_bytes(one[0], low, high)
                plain = None
                if self._decrypted and plan is not None:
                    bounds = self._bounds(ledger, order, batch.names[place], batch.position + place)
                    plain = _scaled(decrypt(one, plan, bounds=bounds)[0])
                yield Tile(_scaled(image), plain, _caption(batch, place))

    def _ledger(self, index: int, shard: Published) -> dict[str, Any]:
        if not self._decrypted or self._store is None or not self._store.needs_bounds:
            return {}
        ledger = None if self._owner is None else self._owner.read_ledger(index, shard.sha256)
        if ledger is None:
            raise StoreError(
                f"this store was made with {self._store.header['normalize']}: decrypting needs the ledger in the "
                "owner's folder (--owner DIR)"
            )
        return ledger

    @staticmethod
    def _bounds(ledger: dict[str, Any], order: dict[str, int], name: str, place: int) -> Any:
        return np.array([ledger["bounds"][order.get(name, place)]], np.int32) if ledger else None


def _source_tiles(path: Path, count: int, options: JobOptions, kind: str | None) -> Iterator[Tile]:
    source = open_source(path, options, kind)
    shards = source.shards()
    full = [index for index, shard in enumerate(shards) if shard.samples]
    for index, share in _spread(full, [len(shard.samples) for shard in shards], count):
        samples = shards[index].samples[:share]
        for batch in source.part(samples).read(samples, 1):
            if not isinstance(batch, Batch):
                continue
            for number, image in zip(batch.indices, batch.images, strict=True):
                yield Tile(_scaled(image), None, _shortened(source.path_of(number)))


def _spread(shards: list[int], counts: list[int], count: int) -> Iterator[tuple[int, int]]:
    """(shard, images of it) over shards spread over all: `_SHARDS`, or more where these have too few images."""
    step = max(1, -(-len(shards) // _SHARDS))
    while step > 1 and sum(counts[index] for index in shards[::step]) < count:
        step -= 1
    chosen, left = shards[::step], count
    for place, index in enumerate(chosen):
        rest = sum(counts[other] for other in chosen[place + 1 :])
        share = min(counts[index], max(-(-left // (len(chosen) - place)), left - rest))
        if share:
            yield index, share
        left -= share
        if not left:
            return


def _range(image: Array) -> tuple[Any, Any]:
    return float(image.min()), float(image.max())


def _known_range(plan: Plan) -> tuple[Any, Any]:
    """The bounds of an image's values, per channel for floats."""
    if plan.normalize == "none":
        return plan.lo, plan.hi
    return tuple(((end - plan.mean) / plan.std)[:, None, None] for end in (0.0, 1.0))  # type: ignore[return-value]


def _to_bytes(image: Array, low: Any, high: Any) -> Array:
    values = (image.astype(np.float64) - low) / np.maximum(np.asarray(high, np.float64) - low, 1e-30)
    gray: Array = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)
    return gray


def _scaled(image: Array) -> PIL.Image.Image:
    """An image (C, H, W) of bytes, as large as fits a cell; pixels of small ones stay squares."""
    picture = PIL.Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    largest = max(picture.size)
    if largest <= _CELL // 2:
        times = _CELL // largest
        size = picture.width * times, picture.height * times
        return picture.convert("RGB").resize(size, PIL.Image.Resampling.NEAREST)
    size = tuple(max(1, round(side * _CELL / largest)) for side in picture.size)  # type: ignore[assignment]
    return picture.convert("RGB").resize(size, PIL.Image.Resampling.BOX if largest > _CELL else None)


def _caption(batch: StoredBatch, place: int) -> str:
    label = "" if batch.labels is None else f"{batch.labels[place]} "
    folder, _, name = batch.names[place].rpartition("/")
    return _shortened(label + (f"{folder}/" if folder else "") + name or f"#{batch.position + place}")


def _shortened(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 2]}.."


def _encoded(tiles: list[Tile]) -> bytes:
    paired = any(tile.plain is not None for tile in tiles)
    columns = min(_COLUMNS, len(tiles))
    wide, high = _CELL + _GAP, (1 + paired) * (_CELL + _GAP) + _TEXT + _GAP
    rows = -(-len(tiles) // columns)
    sheet = PIL.Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default()
    for number, tile in enumerate(tiles):
        left, top = _GAP + number % columns * wide, _GAP + number // columns * high
        for picture in filter(None, (tile.image, tile.plain)):
            sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))
            top += _CELL + _GAP
        draw.text((left, top - _GAP), tile.caption.encode("latin-1", "replace").decode("latin-1"), "black", font)
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def _write(out: Path, data: bytes, mode: int, overwrite: bool) -> None:
    if overwrite:
        publish_bytes(out, data, "sheet", mode=mode)
        return
    descriptor = OS.create(out, mode)  # never over a file that came in the meantime
    try:
        try:
            OS.write(descriptor, data)
        finally:
            OS.close(descriptor)
    except BaseException:
        OS.unlink(out)
        raise
