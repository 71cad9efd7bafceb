"""Work that gives other bytes for the same job stops it, and what it made is never visible."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlmt_fast as dlmt
from dlmt_fast.errors import StoreError
from dlmt_fast.pipeline import JobOptions, Summary, encrypt_store, verify_store, worker
from dlmt_fast.pipeline.planned import plan_job
from dlmt_fast.pipeline.task import JobContext, Result
from dlmt_fast.stores.png import encode_png
from dlmt_fast.stores.publish import FileOps

KINDS = ["folder", "npy", "webdataset", "parquet", "zarr", "segments"]
PACKAGES = {"parquet": "pyarrow", "zarr": "zarr"}


class Place:
    """Three shards of images, or two arrays."""

    def __init__(self, root: Path, key: dlmt.Key, kind: str) -> None:
        self.kind, self.key, self.source, self.store, self.own = (
            kind,
            key,
            root / "source",
            root / "store",
            root / "own",
        )
        self.source.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 5), np.uint8)
        for number, image in enumerate(pixels):
            if kind in ("npy", "segments"):
                np.save(self.source / f"{number}.npy", pixels[:, 0])
            else:
                (self.source / f"{number}.png").write_bytes(encode_png(image))

    def encrypt(self, ops: FileOps | None = None, **options: Any) -> Summary:
        arrays = self.kind in ("npy", "segments")
        sizes: dict[str, Any] = {"segment_bytes": 40 if self.kind == "segments" else 1 << 20}
        chosen = JobOptions(**(sizes if arrays else {"shard_size": 2}), **options)
        named = None if arrays else self.kind
        return encrypt_store(
            self.source, self.store, self.key, dlmt.DLMT("mat_mmt"), lambda _: self.own, chosen,
            ops=ops or FileOps(), target_named=named,
        )  # fmt: skip

    def files(self) -> dict[str, bytes]:
        found = (path for path in self.store.rglob("*") if path.is_file() and path.name != "dlmt-store.json")
        return {path.relative_to(self.store).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, key: dlmt.Key) -> Place:
    pytest.importorskip(PACKAGES.get(request.param, "numpy"))
    return Place(tmp_path, key, request.param)


@contextmanager
def other_bytes() -> Iterator[None]:
    """While it lasts, each value differs in its last bit from what it should be."""
    real = worker.transform_on

    def transform_on(device: str, threads: int | None) -> Any:
        transform = real(device, threads)

        def flipped(images: Any, plan: Any, spare: Any) -> Any:
            result, bounds = transform(images, plan, spare)
            return result ^ 1, bounds

        return flipped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "transform_on", transform_on)
        yield


def test_other_bytes_are_never_visible_and_never_counted(place: Place) -> None:
    place.encrypt()
    whole = place.files()
    (place.store / min(name for name in whole if not name.endswith((".txt", ".json")))).unlink()
    visible: list[str] = []

    class Watched(FileOps):
        def rename(self, old: Path, new: Path) -> None:
            if place.store in new.parents:
                visible.append(new.name)
            super().rename(old, new)

    for _ in range(2):
        with other_bytes(), pytest.raises(StoreError, match="other bytes than the journal has"):
            place.encrypt(Watched(), resume=True)
        assert visible == []
        left = place.files()
        left.pop(".dlmt-job")
        assert left.items() < whole.items()
        assert not (place.store / "dlmt-store.json").exists()
    place.encrypt(resume=True)
    assert place.files() == whole
    verify_store(place.store, place.key, lambda _: place.own)


def test_a_file_that_a_check_found_damaged_does_not_count_afterwards(place: Place) -> None:
    """Its size is right, so that without `check` it would."""
    place.encrypt()
    whole = place.files()
    path = place.store / min(name for name in whole if not name.endswith((".txt", ".json")))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with other_bytes(), pytest.raises(StoreError, match="not deterministic"):
        place.encrypt(resume=True, check=True)
    place.encrypt(resume=True)
    assert place.files() == whole
    verify_store(place.store, place.key, lambda _: place.own)


def test_a_worker_without_the_journal_is_told_what_it_has(tmp_path: Path, key: dlmt.Key) -> None:
    """As those of Ray are."""
    place = Place(tmp_path, key, "webdataset")
    job = plan_job(
        place.source, place.store, key, dlmt.DLMT("mat_mmt"), lambda _: place.own, JobOptions(), None, "webdataset",
        FileOps(),
    )  # fmt: skip
    context = JobContext(key, job.scheme, job.options, job.store_id, job.kind, job.dtype, place.store, None, 1, 1)
    work = worker.ShardWork(context, None)
    (task,) = job.tasks(job.shards)
    place.store.mkdir()
    with pytest.raises(StoreError, match="other bytes than the journal has"):
        work.make(replace(task, entered=Result("0" * 64, 6)), lambda *counts: None)
    assert not list(place.store.iterdir())
    made = work.make(task, lambda *counts: None).published
    assert work.make(replace(task, entered=Result(made.sha256, 6)), lambda *counts: None).published == made
