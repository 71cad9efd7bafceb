"""`decrypt_store`: from a store of transformed images back to images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreDamagedError, StoreError
from ..functional import decrypt
from ..keys import Key
from ..stores.contract import Published
from ..stores.digests import digest64, repeated
from .formats import Place, StoredBatch
from .formats.contract import check_published, publish_extra
from .order import Order
from .owner import OwnerFolder
from .reordered import ReorderedWriter
from .shuffle import array_of_labels, reordered
from .stored import StoredImages
from .summary import Advance, Progress, Summary, counter, no_progress
from .target import Target
from .worker import write_kept


def decrypt_store(
    source_path: Path,
    target_path: Path,
    key: Key,
    owner_folder: Callable[[str], Path],
    progress: Progress = no_progress,
) -> Summary:
    """Recover the images of a store: a folder of PNG files under their original names, or IDX or .npy files.

    Args:
        source_path: a store that `encrypt_store` wrote.
        target_path: a new folder, or a new file for a store that is one file.
        owner_folder: from the store's id to the owner's folder. Without it names stay hidden, and min-max stores
            cannot be decrypted.

    Raises:
        WrongKeyError: the store was made with another key.
        StoreDamagedError: a file is not the one that was published.
        DlmtError: anything else that is wrong. The target is then as it was.
    """
    started = time.perf_counter()
    store = StoredImages(source_path, key)
    manifest, single = store.manifest, not source_path.is_dir()
    target = Target(target_path, single, source_path, overwrite=False)
    owner = OwnerFolder(owner_folder(manifest.store_id), store.seal)
    summary = Summary("decrypt", str(source_path), str(target_path), manifest.store_id, manifest.kind, "uint8")
    ledgers = [f"ledger-{index:05d}.bin" for index in range(len(manifest.shards))]
    target.begin(manifest.store_id)
    written: list[str] = []
    extras: dict[str, str] = {}
    done: list[Published] = []
    try:
        originals = OriginalNames(
            lambda: (_names_of(owner.read_ledger(i, shard.sha256)) for i, shard in enumerate(manifest.shards))
        )
        advance = counter(progress, manifest.count)
        for index, shard in enumerate(manifest.shards):
            ledger = owner.read_ledger(index, shard.sha256)
            if ledger is None and store.needs_bounds:
                raise StoreError(
                    f"this store was made with {store.header['normalize']}: decrypting needs the ledger in the owner's "
                    f"folder, and {owner.root} has none; --owner DIR names another folder"
                )
            published, names = _decrypt_shard(store, shard, index, ledger or {}, originals, target, advance)
            written += names
            labels, restored = store.form.labels_name(shard.name), store.form.labels_name(published.name)
            if labels is not None and restored is not None:
                extras[labels] = restored
            done.append(published)
            summary.add(shard.count, published, [])
        for name, data in _extras(store, done, extras):
            target.refuse_unknown([name])
            written.append(name)
            publish_extra(Place(target.root, manifest.store_id), name, data)
        target.finish(None, manifest.store_id)
    except BaseException:
        target.give_up(written)
        raise
    missing = [name for name in ledgers if not (owner.root / name).exists()]
    if store.form.named and missing:
        which = "no ledger" if len(missing) == len(ledgers) else f"no {missing[0]} ({len(missing)} are missing)"
        summary.notes.append(f"original names are not restored: {owner.root} has {which} (--owner DIR)")
    summary.seconds = time.perf_counter() - started
    return summary


def _extras(store: StoredImages, done: list[Published], renamed: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of what belongs to no shard: the store's own with its labels, or, where that makes shards one
    whole, the like of it for the decrypted ones."""
    manifest = store.manifest
    if store.form.joined:
        labels = [
            _in_order(values, store.order(index))
            for index, values in enumerate(store.form.stored_labels(store.root, manifest))
        ]
        yield from store.form.closing("uint8", manifest.shape, done, labels)
        return
    for extra in manifest.extras:
        check_published(store.root / extra.name, extra)
        data = (store.root / extra.name).read_bytes()
        if store.order(0) is not None:
            array = array_of_labels(extra.name, [shard.name for shard in manifest.shards])
            data = reordered(data, extra.name, _rows(store.order(array), manifest.shards[array].count))
        yield renamed.get(extra.name, extra.name), data


def _in_order(labels: Sequence[int] | None, order: Order | None) -> Sequence[int] | None:
    """Labels of an array as they lay before it was shuffled."""
    if labels is None or order is None:
        return labels
    return [labels[row] for row in _rows(order, len(labels))]


def _rows(order: Order | None, count: int) -> Any:
    """Where each sample of an array stands in the store."""
    return np.arange(count) if order is None else order.place(range(count))


def _decrypt_shard(
    store: StoredImages,
    shard: Published,
    index: int,
    ledger: dict[str, Any],
    originals: OriginalNames,
    target: Target,
    advance: Advance,
) -> tuple[Published, list[str]]:
    plain = store.form.plain_name
    restored = {stored: plain(originals.name(original), stored) for stored, original in _names_of(ledger).items()}
    by_place = dict(enumerate(restored.values()))  # where the store keeps no names, the order tells
    bounds = np.array(ledger.get("bounds", []), np.int32)
    ledger_order = _ledger_order(ledger)
    names: list[str] = []
    opened, one_file = store.open(shard), store.form.one_file
    name = target.path.name if target.single else str(ledger.get("file", shard.name))
    if one_file:
        target.refuse_unknown([name])
    place = Place(target.root, store.manifest.store_id)
    writer = opened.plain_writer(place, index, name)
    order = store.order(index)
    if order is not None:
        writer = ReorderedWriter(writer, order, shard.count, place, index)
    try:
        for batch in opened.read():
            plan = store.plans.of(batch.images)
            limits = bounds[_positions(batch, ledger_order)] if len(bounds) else None
            if limits is None and store.needs_bounds and len(batch.images):
                raise StoreDamagedError(f"the ledger of shard {index} holds no bounds")
            images = decrypt(batch.images, plan, bounds=limits)
            outputs = [
                by_place.get(batch.position + i, "") if not name else restored.get(name, _as_png_stored(name))
                for i, name in enumerate(batch.names)
            ]
            run = range(batch.position, batch.position + len(images))
            write_kept(writer, run, outputs, images, batch.labels, batch.kept)
            names += outputs
            advance(len(images), images.nbytes)
        if not one_file:
            target.refuse_unknown(names)
        published = writer.publish()
    except BaseException:
        writer.abort()
        raise
    return published, [published.name] if one_file else names


def _as_png_stored(name: str) -> str:
    return name.removesuffix(".npy").removesuffix(".png") + ".png"


def _ledger_order(ledger: dict[str, Any]) -> dict[str, int]:
    """Where each stored name's bounds are in the ledger."""
    return {name: place for place, (name, _) in enumerate(ledger.get("names", []))}


def _positions(batch: StoredBatch, order: dict[str, int]) -> list[int]:
    if order and all(batch.names):
        return [order[name] for name in batch.names]
    return list(range(batch.position, batch.position + len(batch.images)))


def _names_of(ledger: dict[str, Any] | None) -> dict[str, str]:
    """From stored names to original ones."""
    return dict((ledger or {}).get("names", []))


class OriginalNames:
    """Original names as PNG: `a.jpg` comes back as `a.png`, or as `a.jpg.png` where two originals of the store differ
    in the suffix alone.

    Args:
        ledgers: gives each shard's names, from stored to original, anew at each call.
    """

    def __init__(self, ledgers: Callable[[], Iterable[dict[str, str]]]) -> None:
        self._twice = repeated(_as_png(name) for names in ledgers() for name in names.values())
        apart = (self._apart(name) for names in ledgers() for name in names.values())
        self._full = bool(self._twice) and bool(repeated(apart))  # a.jpg, a.png and a.jpg.jpg

    def name(self, original: str) -> str:
        """What the image of an original is called."""
        return f"{original}.png" if self._full else self._apart(original)

    def _apart(self, original: str) -> str:
        plain = _as_png(original)
        return f"{original}.png" if digest64(plain) in self._twice else plain


def _as_png(path: str) -> str:
    folder, slash, last = path.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last) + ".png"
