"""`--shuffle`: a secret order over the whole source, the same each time, that decrypting takes back."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

import dlmt_fast as dlmt
from dlmt_fast.errors import StoreError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.open import open_source
from dlmt_fast.pipeline.order import Order
from dlmt_fast.pipeline.reordered import ReorderedWriter
from dlmt_fast.pipeline.seal import StoreSeal
from dlmt_fast.pipeline.shuffle import Shuffle, ShuffledSource, reordered
from dlmt_fast.stores.decode import decode
from dlmt_fast.stores.manifest import read_manifest
from dlmt_fast.stores.png import encode_png

SCHEME = dlmt.DLMT("mat_mmt")
SECRET = bytes(range(32))


# the permutation


@settings(max_examples=40)
@given(st.integers(0, 3000), st.integers(0, 5))
def test_each_sample_has_one_place(count: int, tweak: int) -> None:
    order = Order(SECRET, count, tweak)
    samples = order.sample(range(count))
    assert sorted(samples.tolist()) == list(range(count))
    assert order.place(samples).tolist() == list(range(count))


@given(st.integers(1, 1 << 60), st.integers(0, (1 << 60) - 1))
def test_large_counts_need_no_memory(count: int, number: int) -> None:
    order = Order(SECRET, count)
    sample = order.sample([number % count])
    assert 0 <= sample[0] < count
    assert order.place(sample)[0] == number % count


def test_known_answer() -> None:
    """By a second writing of the network, a number at a time."""
    count, first, second = 1000, 32, 32
    encryptor = Cipher(algorithms.AES(SECRET), modes.ECB()).encryptor()

    def once(number: int) -> int:
        left, right = number % first, number // first
        for i in range(10):
            digit = right if i % 2 == 0 else left
            block = (7 * 256 + i).to_bytes(8, "little") + digit.to_bytes(8, "little")
            word = int.from_bytes(encryptor.update(block)[:8], "little")
            left, right = ((left + word) % first, right) if i % 2 == 0 else (left, (right + word) % second)
        return left + right * first

    expected = []
    for number in range(count):
        number = once(number)
        while number >= count:
            number = once(number)
        expected.append(number)
    assert Order(SECRET, count, 7).sample(range(count)).tolist() == expected


def test_orders_of_few_samples_are_about_as_frequent() -> None:
    found = Counter(tuple(Order(hashlib.sha256(b"%d" % i).digest(), 4).sample(range(4)).tolist()) for i in range(2400))
    assert len(found) == 24
    assert sum((count - 100) ** 2 / 100 for count in found.values()) < 55  # chi-squared of 23: 0.02 % are above


def test_secret_and_tweak_decide() -> None:
    orders = [Order(SECRET, 500), Order(SECRET, 500, 1), Order(bytes(32), 500)]
    assert len({tuple(order.sample(range(500)).tolist()) for order in orders}) == 3


def test_numbers_beyond_the_count_are_refused() -> None:
    with pytest.raises(IndexError):
        Order(SECRET, 5).sample([5])


# stores


class Place:
    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key, self.source, self.store, self.back = root, key, root / "source", root / "s", root / "back"

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, to: str | None = None, store: Path | None = None, **options: Any) -> Summary:
        chosen = JobOptions(**{"shuffle": True, "normalize": "none", **options})
        return encrypt_store(self.source, store or self.store, self.key, SCHEME, self.owner, chosen, target_named=to)

    def decrypt(self, owner: bool = True) -> None:
        decrypt_store(self.store, self.back, self.key, self.owner if owner else lambda store_id: self.root / "none")

    def shuffle(self, counts: list[int]) -> Shuffle:
        return Shuffle(self.key, read_manifest(self.store).store_id, counts)


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


def photos(source: Path, count: int = 23) -> list[str]:
    """Gray images whose first pixel is their number, in the order of their paths."""
    for i in range(count):
        path = source / ("cat", "dog")[i >= 12] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.full((1, 4, 5), i, np.uint8)))
    return sorted(str(path.relative_to(source)) for path in source.rglob("*.png"))


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "dlmt-store.json"
    }


def test_shard_k_holds_the_kth_run_of_the_order(place: Place) -> None:
    paths = photos(place.source)
    summary = place.encrypt(shard_size=5)
    order = place.shuffle([23]).samples(range(23)).tolist()
    assert order != list(range(23))
    seal = StoreSeal(place.key, summary.store_id)
    for shard in range(5):
        listed = (place.store / f"dlmt-shard-{shard:05d}.txt").read_text().splitlines()
        expected = [paths[i] for i in order[5 * shard : 5 * shard + 5]]
        hidden = {f"{path.partition('/')[0]}/{seal.name(path)}.npy" for path in expected}
        assert {line.split(" ")[2] for line in listed} == hidden
    assert verify_store(place.store, place.key, place.owner).notes[-1].endswith("23 outputs + 0 quarantined")
    place.decrypt()
    assert {path: decode(place.back / path)[0, 0, 0] for path in paths} == {path: i for i, path in enumerate(paths)}


def test_bytes_do_not_depend_on_workers_or_stops(place: Place) -> None:
    photos(place.source)
    place.encrypt(shard_size=5, workers=2)
    expected = tree(place.store)
    next(place.store.glob("cat/*.npy")).unlink()
    assert place.encrypt(shard_size=5, resume=True).outputs == 23
    assert tree(place.store) == expected


def test_refused_samples_and_equal_ones_keep_their_names(place: Place) -> None:
    photos(place.source)
    (place.source / "cat/bad.png").write_bytes(b"x")  # its header tells
    (place.source / "dog/cut.png").write_bytes(encode_png(np.zeros((1, 4, 5), np.uint8))[:60])
    (place.source / "dog/00.png").write_bytes((place.source / "cat/03.png").read_bytes())
    summary = place.encrypt(shard_size=5, on_error="quarantine", duplicates="drop")
    assert (summary.inputs, summary.outputs, summary.dropped) == (26, 23, 1)
    reasons = {item["path"]: item["reason"] for item in summary.quarantined}
    assert reasons.keys() == {"cat/bad.png", "dog/cut.png", "dog/00.png"}
    assert reasons["dog/00.png"] == "equal to cat/03.png"  # the first in the order of the source


@pytest.mark.parametrize("to", ["webdataset", "parquet", "zarr"])
def test_a_folder_becomes_another_kind(to: str, place: Place) -> None:
    if to != "webdataset":
        pytest.importorskip({"parquet": "pyarrow", "zarr": "zarr"}[to])
    paths = photos(place.source)
    place.encrypt(to, shard_size=5)
    assert verify_store(place.store, place.key, place.owner).outputs == 23
    place.decrypt()
    order = [paths[i] for i in place.shuffle([23]).samples(range(23)).tolist()]
    if to == "zarr":
        import zarr

        group = zarr.open_group(str(place.back), mode="r")
        numbers = np.asarray(group["images"])[:, 0, 0, 0].tolist()
        assert sorted(numbers) == list(range(23))
        assert np.asarray(group["labels"]).tolist() == [int(number >= 12) for number in numbers]
        assert {paths[number] for number in numbers[:5]} == set(order[:5])


COUNTS = {"train": 29, "test": 13}


def arrays(place: Place, kind: str) -> dict[str, Any]:
    """Arrays of images with labels, for training and test; gives what they hold by name."""
    rng = np.random.default_rng(0)
    place.source.mkdir()
    values = {f"{split}-images": rng.integers(0, 256, (n, 6, 5), np.uint8) for split, n in COUNTS.items()}
    labels = {f"{split}-labels": np.arange(n) for split, n in COUNTS.items()}
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(str(place.source), mode="w")
        for name, value in {**values, **labels}.items():
            group.create_array(name, data=value)
    elif kind == "npy":
        for name, value in {**values, **labels}.items():
            np.save(place.source / f"{name}.npy", value)
    else:
        for name, value in values.items():
            head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in value.shape)
            (place.source / f"{name}-idx3-ubyte").write_bytes(head + value.tobytes())
        for name, value in labels.items():
            data = b"\0\0\x08\x01" + len(value).to_bytes(4, "big") + value.astype(np.uint8).tobytes()
            packed = gzip.compress(data) if name.startswith("test") else data
            (place.source / f"{name}-idx1-ubyte{'.gz' if name.startswith('test') else ''}").write_bytes(packed)
    return {**values, **labels}


def read(root: Path) -> dict[str, Any]:
    """The arrays of a plain folder by name."""
    if (root / "zarr.json").exists():
        import zarr

        found = {}
        for path in sorted(root.glob("*/zarr.json")):
            value = np.asarray(zarr.open(str(path.parent), mode="r"))
            found[path.parent.name] = value
        return found
    found = {}
    for path in root.iterdir():
        name = path.name
        if path.suffix == ".npy":
            found[path.stem] = np.load(path)
            continue
        data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        stem = name.split("-idx")[0]
        sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
        found[stem] = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)
    return found


@pytest.mark.parametrize("normalize", ["none", "minmax"])
@pytest.mark.parametrize(
    ("kind", "to"),
    [("npy", "npy"), ("idx", "idx"), ("zarr", "zarr"), ("zarr", "npy"), ("npy", "zarr"), ("idx", "zarr")],
)
def test_arrays_come_back_in_their_own_order(kind: str, to: str, normalize: str, place: Place) -> None:
    if "zarr" in (kind, to):
        pytest.importorskip("zarr")
    expected = arrays(place, kind)
    place.encrypt(to, normalize=normalize, dtype=None if normalize == "none" else "float32")
    assert verify_store(place.store, place.key, place.owner).outputs == 42
    place.decrypt(owner=normalize == "minmax")
    found = read(place.back)
    assert len(found) == 4
    assert not list(place.back.rglob(".*"))
    by_count = {(value.ndim > 1, len(value)): value for value in found.values()}  # names of arrays may be hidden
    for name, value in expected.items():
        got = by_count["images" in name, len(value)]
        assert np.array_equal(got.reshape(value.shape), value), name


@pytest.mark.parametrize("kind", ["npy", "idx"])
def test_images_and_labels_are_shuffled_alike(kind: str, place: Place) -> None:
    expected = arrays(place, kind)
    place.encrypt(names="hash" if kind == "idx" else "keep")
    shuffle, names = place.shuffle([13, 29]), list(expected)
    assert names[:2] == ["train-images", "test-images"]
    stored = read_labels(place.store)
    for number, split in enumerate(("test", "train")):  # in the order of their names
        rows = shuffle.array(number).sample(range(len(expected[f"{split}-labels"])))
        assert rows.tolist() != sorted(rows.tolist())
        assert stored[f"{split}-labels"].tolist() == rows.tolist()  # labels are the numbers of the images
        plan = SCHEME.plan(place.key, (1, 6, 5), normalize="none")
        values = expected[f"{split}-images"][rows]
        transformed = dlmt.encrypt(values[:, None], plan)[:, 0]
        assert np.array_equal(stored_images(place.store, split), transformed)


def read_labels(store: Path) -> dict[str, Any]:
    found = {}
    for path in store.glob("*labels*"):
        if path.suffix == ".npy":
            found[path.stem] = np.load(path)
        else:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            found[path.name.split("-idx")[0]] = np.frombuffer(data, np.uint8, offset=8)
    return found


def stored_images(store: Path, split: str) -> Any:
    (path,) = store.glob(f"{split}-images*")
    if path.suffix == ".npy":
        return np.load(path)
    return np.frombuffer(path.read_bytes(), ">i4", offset=16).reshape(-1, 6, 5)


def test_parquet_of_arrays_comes_back_in_order(place: Place) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    arrays(place, "npy")
    place.encrypt("parquet", workers=2)
    stored = [pq.read_table(path).column("label").to_pylist() for path in sorted(place.store.glob("*.parquet"))]
    assert sorted(map(sorted, stored)) == [list(range(13)), list(range(29))]
    assert list(range(29)) not in stored
    place.decrypt()
    for path in place.back.glob("*.parquet"):
        table = pq.read_table(path)
        assert table.column("label").to_pylist() == list(range(table.num_rows))
        names = [image["path"] for image in table.column("image").to_pylist()]
        assert [name.rpartition("-")[2] for name in names] == [f"{i:06d}.png" for i in range(table.num_rows)]


def test_cifar_keeps_its_splits(place: Place) -> None:
    place.source.mkdir()
    rng = np.random.default_rng(0)
    for name, count in {"train": 11, "test": 5}.items():
        labels = {"fine_labels": list(range(count)), "coarse_labels": list(range(count))}
        content = {"data": rng.integers(0, 256, (count, 3072), np.uint8), **labels}
        (place.source / name).write_bytes(pickle.dumps(content, protocol=2))
    source = open_source(place.source, JobOptions(), "cifar")
    expected = [np.concatenate([item.images for item in source.read(shard.samples, 1)]) for shard in source.shards()]
    encrypt_store(
        place.source, place.store, place.key, SCHEME, place.owner, JobOptions(shuffle=True, normalize="none"), "cifar"
    )
    stored = np.load(place.store / "train-labels.npy")
    assert stored.tolist() == np.load(place.store / "train-coarse-labels.npy").tolist() != list(range(11))
    place.decrypt(owner=False)
    assert np.array_equal(np.load(place.back / "train-images.npy"), expected[0])
    assert np.array_equal(np.load(place.back / "test-images.npy"), expected[1])
    for name in ("train-labels.npy", "train-coarse-labels.npy"):
        assert np.load(place.back / name).tolist() == list(range(11))


# what is refused, and what stays as it was


def test_sources_without_random_access_are_refused(place: Place, tmp_path: Path) -> None:
    arrays(place, "idx")
    path = place.source / "train-images-idx3-ubyte"
    path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(StoreError, match="gunzip"):
        place.encrypt()
    place.source = tmp_path / "photos"
    photos(place.source)
    for to in ("webdataset", "parquet"):
        if to == "parquet":
            pytest.importorskip("pyarrow")
        place.encrypt(to, store=tmp_path / to, shuffle=False, normalize="range")
        source, place.source = place.source, tmp_path / to
        with pytest.raises(StoreError, match="--shuffle does not apply"):
            place.encrypt()
        place.source = source
    assert not place.store.exists()


def test_large_chunks_are_refused(place: Place) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.open_group(str(place.source), mode="w").create_array(
        "a", data=np.zeros((40, 256, 256), np.uint8), chunks=(20, 256, 256), config={"write_empty_chunks": True}
    )
    with pytest.raises(StoreError, match="chunks of 20 images"):
        place.encrypt()


def test_labels_of_no_images_are_refused(place: Place) -> None:
    arrays(place, "idx")
    (place.source / "other-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x01\0")
    with pytest.raises(StoreError, match="nothing tells which images"):
        place.encrypt()
    assert not place.store.exists()


def test_labels_of_another_number_are_refused() -> None:
    with pytest.raises(StoreError, match="does not hold a label"):
        reordered(b"\0\0\x08\x01\0\0\0\x02\0\0", "a-labels-idx1-ubyte", np.arange(3))


def test_it_is_part_of_the_job_and_absent_where_unused(place: Place) -> None:
    photos(place.source)
    plain = place.encrypt(shuffle=False).store_id
    record = json.loads((place.owner(plain) / "job.json").read_text())
    assert "shuffle" not in record["options"]
    header = StoreSeal(place.key, plain).open_header(read_manifest(place.store).sealed)
    assert "shuffle" not in header
    with pytest.raises(StoreError, match="shuffle None then, True now"):
        place.encrypt(resume=True)
    shuffled = place.encrypt(overwrite=True).store_id
    assert shuffled != plain
    assert StoreSeal(place.key, shuffled).open_header(read_manifest(place.store).sealed)["shuffle"] == "samples"


def test_no_secret_goes_to_worker_processes_with_a_shard(place: Place) -> None:
    photos(place.source)
    source = open_source(place.source, JobOptions())
    shuffled = ShuffledSource(source, Shuffle(place.key, "00" * 16, [23]))
    part = shuffled.part(range(5, 10))
    secret = place.key.sub(32, "order", "00" * 16)
    pickled = pickle.dumps(part)
    assert secret not in pickled
    again = pickle.loads(pickled)
    assert [again.path_of(i) for i in range(5, 10)] == [part.path_of(i) for i in range(5, 10)]


# remote sources


def test_a_remote_folder_is_shuffled_and_remote_arrays_are_refused(
    place: Place, moto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = photos(place.source)
    moto.use(monkeypatch)
    moto.upload(place.source, "shuffled", "photos")
    np.save(place.root / "a.npy", np.zeros((3, 4, 4), np.uint8))
    moto.client().upload_file(str(place.root / "a.npy"), "shuffled", "arrays/a.npy")
    options = JobOptions(shuffle=True, normalize="none", duplicates="report", shard_size=5)
    summary = encrypt_store("s3://shuffled/photos", place.store, place.key, SCHEME, place.owner, options)
    assert (summary.outputs, summary.duplicates) == (23, 0)
    place.decrypt()
    assert {path: decode(place.back / path)[0, 0, 0] for path in paths} == {path: i for i, path in enumerate(paths)}
    with pytest.raises(StoreError, match="is remote"):
        encrypt_store(
            "s3://shuffled/arrays", place.root / "x", place.key, SCHEME, place.owner, JobOptions(shuffle=True)
        )


def test_a_stopped_decrypt_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = arrays(place, "npy")
    place.encrypt(names="keep")
    make, made = ReorderedWriter.publish, []

    def failing(self: ReorderedWriter) -> Any:
        if made:
            raise OSError("stopped")
        made.append(make(self))
        return made[0]

    with monkeypatch.context() as patch:
        patch.setattr(ReorderedWriter, "publish", failing)
        with pytest.raises(OSError, match="stopped"):
            place.decrypt()
    assert not [path for path in place.back.iterdir() if path.name.startswith(".tmp-")]
    decrypt_store(place.store, place.back, place.key, place.owner, resume=True)
    assert {name: value.tolist() for name, value in read(place.back).items()} == {
        name: value.tolist() for name, value in expected.items()
    }


@pytest.mark.parametrize("kind", ["npy", "idx", "zarr"])
def test_arrays_that_change_are_refused(kind: str, place: Place) -> None:
    arrays(place, kind)
    source = open_source(place.source, JobOptions())
    reader = source.pick(range(5))
    changed = next(path for path in place.source.rglob("*") if path.is_file() and "test-images" in str(path))
    os.utime(changed, ns=(1, 1))
    with pytest.raises(StoreError, match="changed since the job began"):
        list(reader.read([3, 1], 1))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["npy", "idx"])
def test_large_arrays_are_shuffled_by_segments(kind: str, workers: int, place: Place) -> None:
    expected = arrays(place, kind)
    names = "keep" if kind == "npy" else "hash"
    place.encrypt(names=names)
    whole = tree(place.store)
    place.encrypt(names=names, overwrite=True, segment_bytes=600, workers=workers)
    assert tree(place.store) == whole
    place.decrypt(owner=False)
    assert {name: value.tolist() for name, value in read(place.back).items()} == {
        name: value.tolist() for name, value in expected.items()
    }
