"""Between Parquet, Zarr and the other kinds: every pair that is allowed gives the same pixels and labels back."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.kinds import TARGETS
from dlmt_fast.pipeline.open import open_source
from dlmt_fast.stores.png import encode_png

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
zarr = pytest.importorskip("zarr")

SCHEME = dlmt.DLMT("mat_mmt")
IMAGES = np.random.default_rng(0).integers(1, 256, (6, 3, 32, 32), np.uint8)
LABELS = np.array([0, 1, 1, 0, 2, 1])
COLUMNS = ("parquet", "zarr")


def make_webdataset(root: Path) -> None:
    with tarfile.open(root / "a.tar", "w") as archive:
        for i, label in enumerate(LABELS):
            for name, data in ((f"{i}.png", encode_png(IMAGES[i])), (f"{i}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def make_folder(root: Path) -> None:
    for i, label in enumerate(LABELS):
        (root / str(label)).mkdir(exist_ok=True)
        (root / str(label) / f"{i}.png").write_bytes(encode_png(IMAGES[i]))


def make_parquet(root: Path) -> None:
    rows = [
        {"image": {"bytes": encode_png(IMAGES[i]), "path": f"{i}.png"}, "label": int(n)} for i, n in enumerate(LABELS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "train.parquet", row_group_size=2)


def make_npy(root: Path) -> None:
    np.save(root / "images.npy", IMAGES)
    np.save(root / "labels.npy", LABELS)


def make_zarr(root: Path) -> None:
    group = zarr.create_group(root)
    group.create_array("images", data=IMAGES, chunks=(4, 3, 32, 32))
    group.create_array("labels", data=LABELS)


def make_idx(root: Path) -> None:
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (18, 32, 32))
    (root / "train-images-idx3-ubyte").write_bytes(head + IMAGES.tobytes())
    labels = np.repeat(LABELS, 3).astype(np.uint8)
    (root / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 18]) + labels.tobytes())


def make_cifar(root: Path) -> None:
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        content = {"data": IMAGES[i : i + 1].reshape(1, 3072), "labels": [int(LABELS[i])]}
        (root / name).write_bytes(pickle.dumps(content))


def contents(root: Path, kind: str) -> list[tuple[bytes, int | None]]:
    """Every image of a store of plain pixels, with its label."""
    source = open_source(root, JobOptions(), kind)
    if kind == "folder":
        source.number_classes()
    found = []
    for shard in source.shards():
        for batch in source.part(shard.samples).read(shard.samples, 1):
            pairs: Any = zip(batch.indices, batch.images, strict=True)  # type: ignore[union-attr]
            found += [(image.tobytes(), source.label_of(index)) for index, image in pairs]
    return sorted(found)


PAIRS = [(a, b) for a, able in TARGETS.items() for b in able if a in COLUMNS or b in COLUMNS]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_pixels_and_labels_come_back(source: str, target: str, tmp_path: Path, key: dlmt.Key) -> None:
    (tmp_path / "a").mkdir()
    globals()[f"make_{source}"](tmp_path / "a")
    options = JobOptions(normalize="none")
    done = encrypt_store(
        tmp_path / "a", tmp_path / "b", key, SCHEME, lambda i: tmp_path / i, options, target_named=target
    )
    verify_store(tmp_path / "b", key, lambda i: tmp_path / i)
    decrypt_store(tmp_path / "b", tmp_path / "c", key, lambda i: tmp_path / i)
    before = contents(tmp_path / "a", source)
    assert len(before) == done.outputs == (18 if source == "idx" else 6)
    assert {label for _, label in before} == {0, 1, 2}
    assert contents(tmp_path / "c", target) == before


def test_a_folder_needs_none_of_their_libraries(tmp_path: Path, key: dlmt.Key) -> None:
    make_folder(tmp_path)
    key.save(tmp_path / "k.dlmtkey", params=SCHEME.params)
    (tmp_path / "source").mkdir()
    for name in "012":
        (tmp_path / name).rename(tmp_path / "source" / name)
    words = ["encrypt", "source", "store", "--key", "k.dlmtkey", "--workers", "1"]
    program = (
        "import sys; from dlmt_fast.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(sorted({'pyarrow', 'zarr', 'google_crc32c', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
