"""Made `tests/golden/v1` once: `python tests/golden/make.py FOLDER`. It writes to a new folder only.

Stores of every kind and mode under one sealed key, with their owner's folders, and `plain.json`: of each store what its
images are once decrypted. Nothing of it is ever made again: these files stand for all stores that were written before.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, decrypt_store, encrypt_store
from dlmt_fast.pipeline.open import open_source
from dlmt_fast.stores.png import encode_png

PASSPHRASE = "ten years from now \u00e9\u0308\n"
RNG = np.random.default_rng(20231024)
COLOUR = RNG.integers(0, 256, (7, 3, 9, 11), np.uint8)
GRAY = RNG.integers(0, 256, (7, 1, 8, 6), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2, 1])

#: name: (kind of the source, kind of the target, mode with its parameters, options)
STORES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "folder-range-uint8": ("folder", "folder", {"mode": "mat_mmt"}, {"shard_size": 3}),
    "folder-none-int32": ("folder", "folder", {"mode": "mmt_mat", "max_v_mul": 1000}, {"normalize": "none"}),
    "folder-range-float32": (
        *("sizes", "folder", {"mode": "mat", "max_v_add": 2048}),
        {"dtype": "float32", "mean": (0.5, 0.25, 0.125), "std": (0.25, 0.5, 1.5), "per_size": True},
    ),
    "folder-minmax-uint8": (
        *("broken", "folder", {"mode": "rise_mmt", "max_v_mul": 100, "rise_v": 300}),
        {"normalize": "minmax", "on_error": "quarantine", "names": "keep", "classes": "index"},
    ),
    "webdataset-range-uint8": ("webdataset", "webdataset", {"mode": "mmt", "max_v_mul": 10}, {}),
    "webdataset-channel-float16": (
        *("webdataset", "webdataset", {"mode": "mat_mmt"}),
        {"normalize": "minmax_channel", "dtype": "float16"},
    ),
    "webdataset-kept-field": ("webdataset", "webdataset", {"mode": "mat"}, {"keep": ("note",)}),
    "parquet-range-uint8": ("parquet", "parquet", {"mode": "mat", "max_v_add": 5}, {}),
    "parquet-none-uint16": ("folder", "parquet", {"mode": "mat"}, {"normalize": "none", "dtype": "narrowest"}),
    "zarr-none-int32": ("zarr", "zarr", {"mode": "mat_mmt", "max_v_mul": 10000}, {"normalize": "none"}),
    "zarr-range-uint8": ("folder", "zarr", {"mode": "mmt_mat"}, {"shard_size": 4}),
    "idx-none-int32": ("idx", "idx", {"mode": "rise_mmt", "rise_v": 100}, {"normalize": "none"}),
    "idx-minmax-uint8.gz": ("idx-file", "idx", {"mode": "mat_mmt"}, {"normalize": "minmax"}),
    "npy-range-float32": ("npy", "npy", {"mode": "mat_mmt"}, {"dtype": "float32", "per_size": True}),
    "npy-shuffled-uint16": (
        *("npy", "npy", {"mode": "mat", "max_v_add": 512}),
        {"normalize": "none", "dtype": "narrowest", "per_size": True, "shuffle": True},
    ),
    "npy-none-int32.npy": ("npy-file", "npy", {"mode": "mmt"}, {"normalize": "none"}),
}


def folder(root: Path, images: np.ndarray[Any, Any] = COLOUR) -> None:
    for i, image in enumerate(images):
        path = root / ("cats", "dogs", "b\u00e4ren")[LABELS[i]] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))


def sizes(root: Path) -> None:
    folder(root)
    (root / "cats" / "small.png").write_bytes(encode_png(COLOUR[0, :, :4, :5]))


def broken(root: Path) -> None:
    folder(root)
    (root / "dogs" / "broken.png").write_bytes(b"no image")


def webdataset(root: Path) -> None:
    root.mkdir()
    for number, part in enumerate((range(4), range(4, 7))):
        with tarfile.open(root / f"part-{number}.tar", "w") as archive:
            for i in part:
                for name, data in (
                    (f"{i}.png", encode_png(COLOUR[i])),
                    (f"{i}.cls", str(LABELS[i]).encode()),
                    (f"{i}.note", b"n%d" % i),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def parquet(root: Path) -> None:
    root.mkdir()
    rows = [
        {"image": {"bytes": encode_png(GRAY[i]), "path": f"{i}.png"}, "label": int(n)} for i, n in enumerate(LABELS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "train-00000.parquet", row_group_size=3)


def zarr_group(root: Path) -> None:
    group = zarr.create_group(root)
    group.create_array("images", data=COLOUR, chunks=(4, 3, 9, 11))
    group.create_array("labels", data=LABELS)


def idx_bytes(values: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def idx(root: Path) -> None:
    root.mkdir()
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(GRAY[:, 0]), mtime=0))
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS.astype(np.uint8)), mtime=0))
    (root / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(GRAY[:2, 0]))
    (root / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:2].astype(np.uint8)))


def idx_file(root: Path) -> None:
    root.write_bytes(gzip.compress(idx_bytes(GRAY[:, 0]), mtime=0))


def npy(root: Path) -> None:
    root.mkdir()
    np.save(root / "x_train.npy", COLOUR.transpose(0, 2, 3, 1))
    np.save(root / "y_train.npy", LABELS)
    np.save(root / "x_test.npy", GRAY[:, 0])


def npy_file(root: Path) -> None:
    np.save(root, GRAY)
    os.replace(root.with_name(f"{root.name}.npy"), root)


MAKERS = {
    "folder": folder,
    "sizes": sizes,
    "broken": broken,
    "webdataset": webdataset,
    "parquet": parquet,
    "zarr": zarr_group,
    "idx": idx,
    "idx-file": idx_file,
    "npy": npy,
    "npy-file": npy_file,
}


def contents(root: Path, kind: str) -> list[list[Any]]:
    """[place, shape, SHA-256 of the pixels (C, H, W), label] of every image of a store of plain pixels."""
    source = open_source(root, JobOptions(per_size=True) if kind == "folder" else JobOptions(), kind)
    found = []
    for shard in source.shards():
        part = source.part(shard.samples)
        for batch in part.read(shard.samples, 1):
            for index, image in zip(batch.indices, batch.images, strict=True):  # type: ignore[union-attr]
                digest = hashlib.sha256(image.tobytes()).hexdigest()
                found.append([part.path_of(index), list(image.shape), digest, part.label_of(index)])
    return found


def digests(source: Path, kind: str) -> list[str]:
    """Of the pixels of every image that can be taken."""
    if kind == "broken":
        (source / "dogs" / "broken.png").unlink()
    kinds = {"sizes": "folder", "broken": "folder", "idx-file": "idx", "npy-file": "npy"}
    return [image[2] for image in contents(source, kinds.get(kind, kind))]


def text_of(plain: dict[str, Any]) -> str:
    """JSON with a line an image."""
    stores = []
    for name, store in plain.items():
        images = ",\n".join(f"  {json.dumps(image, ensure_ascii=False)}" for image in store["images"])
        stores.append(f' "{name}": {{"exact": {json.dumps(store["exact"])}, "images": [\n{images}\n ]}}')
    return "{\n" + ",\n".join(stores) + "\n}\n"


def main(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "passphrase").write_text(PASSPHRASE, "utf-8", newline="")
    key = dlmt.Key.generate(dlmt.DLMT().params)
    key.save(root / "key.json", passphrase=PASSPHRASE)
    plain = {}
    for name, (source_kind, kind, parameters, options) in STORES.items():
        source = root / "source"
        MAKERS[source_kind](source)
        owner = root / "owner" / name
        encrypt_store(
            *(source, root / name, key, dlmt.DLMT(**parameters), lambda _, owner=owner: owner),
            *(JobOptions(**options),),
            target_named=kind,
        )
        back = root / ("back.npy" if name.endswith(".npy") else "back.gz" if name.endswith(".gz") else "back")
        decrypt_store(root / name, back, key, lambda _, owner=owner: owner)
        images = contents(back, kind)
        same = sorted(image[2] for image in images) == sorted(digests(source, source_kind))
        plain[name] = {"exact": same, "images": images}
        for path in (source, back):
            remove(path)
    for locks in root.rglob("locks"):
        remove(locks)
    (root / "plain.json").write_text(text_of(plain), "utf-8")


def remove(path: Path) -> None:
    if path.is_dir():
        for inside in path.iterdir():
            remove(inside)
        path.rmdir()
    else:
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
