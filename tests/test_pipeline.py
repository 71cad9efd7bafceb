"""Jobs over stores: encrypt, verify, decrypt; what is kept, what is hidden, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import os
import stat
import struct
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import dlmt_fast as dlmt
from dlmt_fast.errors import ImageError, ParameterError, StoreError, WrongKeyError
from dlmt_fast.pipeline import JobOptions, Summary, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.original_names import OriginalNames
from dlmt_fast.stores.decode import decode
from dlmt_fast.stores.manifest import read_manifest

SCHEME = dlmt.DLMT("mat_mmt", max_v_add=256, max_v_mul=10)
STORED = [
    ("range", None),
    ("range", "float32"),
    ("range", "float16"),
    ("minmax", None),
    ("minmax", "float32"),
    ("minmax_channel", "uint8"),
    ("minmax_channel", "float16"),
    ("none", None),
    ("none", "narrowest"),
]


class Place:
    """A source, a key and an owner's folder in one directory."""

    def __init__(self, root: Path, key: dlmt.Key) -> None:
        self.root, self.key = root, key
        self.source, self.store, self.back = root / "source", root / "store", root / "back"

    def owner(self, store_id: str) -> Path:
        return self.root / "owner" / store_id

    def encrypt(self, target: Path | None = None, scheme: dlmt.DLMT = SCHEME, **options: Any) -> Summary:
        return encrypt_store(self.source, target or self.store, self.key, scheme, self.owner, JobOptions(**options))

    def decrypt(self, target: Path | None = None, **options: Any) -> Summary:
        return decrypt_store(self.store, target or self.back, self.key, self.owner, **options)

    def verify(self, key: bool = True) -> Summary:
        return verify_store(self.store, self.key, self.owner) if key else verify_store(self.store)

    @property
    def owners(self) -> Path:
        return self.owner(read_manifest(self.store).store_id)


@pytest.fixture
def place(tmp_path: Path, key: dlmt.Key) -> Place:
    return Place(tmp_path, key)


def photo(path: Path, shape: tuple[int, ...] = (8, 9, 3), seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path, **options)
    return path


NAMES = ["cats/tom.png", "cats/kit ty.jpg", "dogs/rex.bmp", "dogs/deep/äöü.png", "top.png"]


@pytest.fixture
def photos(place: Place) -> Place:
    for seed, name in enumerate(NAMES):
        photo(place.source / name, seed=seed)
    return place


def idx(values: np.ndarray[Any, Any], code: int = 0x08) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape) + values.tobytes()


FOUR = {
    "t10k-images-idx3-ubyte.gz": (np.random.default_rng(1).integers(0, 256, (6, 5, 4), np.uint8)),
    "t10k-labels-idx1-ubyte.gz": np.arange(6, dtype=np.uint8),
    "train-images-idx3-ubyte": np.random.default_rng(2).integers(0, 256, (9, 5, 4), np.uint8),
    "train-labels-idx1-ubyte": np.arange(9, dtype=np.uint8),
}


@pytest.fixture
def four(place: Place) -> Place:
    """A folder as MNIST's; the packed files carry name and time, as gzip(1) writes them."""
    place.source.mkdir()
    for name, values in FOUR.items():
        with open(place.source / name, "wb") as file:
            if name.endswith(".gz"):
                with gzip.GzipFile("secret-name", "wb", fileobj=file, mtime=1234567890) as packed:
                    packed.write(idx(values))
            else:
                file.write(idx(values))
    return place


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if not p.is_dir()}


def payload(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def worst(scheme: dlmt.DLMT, key: dlmt.Key, shape: tuple[int, int, int], normalize: str, dtype: str | None) -> int:
    return scheme.plan(key, shape, normalize, dtype).worst_error


# round trips


@pytest.mark.parametrize("mode", ["mat", "mat_mmt", "mmt"])
@pytest.mark.parametrize(("normalize", "dtype"), STORED)
def test_a_folder_there_and_back(photos: Place, normalize: str, dtype: str | None, mode: str) -> None:
    scheme = dlmt.DLMT(mode, max_v_mul=10 if mode != "mmt" else 1)
    done = photos.encrypt(scheme=scheme, normalize=normalize, dtype=dtype)
    assert (done.inputs, done.outputs, done.quarantined, done.kind) == (5, 5, [], "folder")
    stored = scheme.plan(photos.key, (3, 8, 9), normalize, dtype).dtype
    assert done.dtype == stored
    assert read_manifest(photos.store).shape == (3, 8, 9)
    suffix = ".png" if stored == "uint8" else ".npy"
    assert sum(name.endswith(suffix) for name in files(photos.store)) == 5
    assert photos.verify(key=False).outputs == 5
    assert "5 images decrypt" in photos.verify().notes[0]
    assert photos.decrypt().notes == []
    limit = worst(scheme, photos.key, (3, 8, 9), normalize, dtype)
    assert set(files(photos.back)) == {name.rpartition(".")[0] + ".png" for name in NAMES}
    for name in NAMES:
        before = decode(photos.source / name).astype(int)
        after = decode(photos.back / (name.rpartition(".")[0] + ".png"))
        assert np.abs(before - after).max() <= limit


@pytest.mark.parametrize(("normalize", "dtype"), [(n, d) for n, d in STORED if d not in ("float16", "narrowest")])
@pytest.mark.parametrize("single", [True, False])
def test_idx_there_and_back(four: Place, normalize: str, dtype: str | None, single: bool) -> None:
    if single:
        four.source /= "train-images-idx3-ubyte"
        four.store, four.back = four.root / "out" / "x-idx3-ubyte.gz", four.root / "out" / "y-idx3-ubyte"
    done = four.encrypt(normalize=normalize, dtype=dtype)
    assert (done.inputs, done.outputs, done.kind) == ((9, 9, "idx") if single else (15, 15, "idx"))
    four.verify(key=False)
    assert f"{done.outputs} images decrypt" in four.verify().notes[0]
    four.decrypt()
    limit = worst(SCHEME, four.key, (1, 5, 4), normalize, dtype)
    if single:
        assert {p.name for p in four.store.parent.iterdir()} == {
            *("x-idx3-ubyte.gz", "x-idx3-ubyte.gz.dlmt-store.json", "y-idx3-ubyte")
        }
    else:
        assert set(files(four.store)) == {*FOUR, "dlmt-store.json"}
        assert set(files(four.back)) == set(FOUR)
    for name, values in FOUR.items():
        if single and name != "train-images-idx3-ubyte":
            continue
        stored = payload((four.store if single else four.store / name).read_bytes())
        back = payload((four.back if single else four.back / name).read_bytes())
        if "labels" in name:
            assert stored == back == idx(values)
            continue
        assert stored[2:4] == bytes([{"uint8": 8, "int32": 12, "float32": 13}[done.dtype], 3])
        assert back[:16] == idx(values)[:16]
        assert np.abs(np.frombuffer(back, np.uint8, offset=16).astype(int) - values.ravel()).max() <= limit


@pytest.mark.parametrize("dtype", ["float16", "narrowest"])
def test_what_idx_cannot_hold_is_refused_at_once(four: Place, dtype: str) -> None:
    with pytest.raises(ParameterError, match="IDX files hold"):
        four.encrypt(normalize="none" if dtype == "narrowest" else "range", dtype=dtype)
    assert not four.store.exists()


def test_no_store_holds_bfloat16(photos: Place) -> None:
    with pytest.raises(ParameterError, match="bfloat16"):
        photos.encrypt(dtype="bfloat16")


def test_stored_values_are_those_of_encrypt(photos: Place) -> None:
    photos.encrypt(names="keep", dtype="float32", mean=(0.5, 0.4, 0.3), std=0.2)
    plan = SCHEME.plan(photos.key, (3, 8, 9), "range", "float32", (0.5, 0.4, 0.3), (0.2,))
    for name in NAMES:
        stored = np.load((photos.store / name).with_suffix(".npy"))
        assert np.array_equal(stored, dlmt.encrypt(decode(photos.source / name), plan))
    assert photos.decrypt().outputs == 5


def test_an_empty_idx_file_before_a_full_one(place: Place) -> None:
    place.source.mkdir()
    values = np.arange(60, dtype=np.uint8).reshape(3, 5, 4)
    for name, content in (("a", values[:0]), ("b", values), ("c", values[:0])):
        (place.source / f"{name}-idx3-ubyte").write_bytes(idx(content))
    assert place.encrypt(normalize="none").outputs == 3
    place.verify()
    place.decrypt()
    assert files(place.back) == files(place.source)


# sizes and channels


def mixed(place: Place) -> Place:
    for name, shape in {"a.png": (8, 9, 3), "b.png": (6, 6, 3), "c.png": (8, 9), "d.png": (9, 8)}.items():
        photo(place.source / name, shape)
    return place


def test_several_sizes_are_listed(place: Place) -> None:
    with pytest.raises(ParameterError, match="4 different shapes") as caught:
        mixed(place).encrypt()
    for text in ("1 x 3x8x9, for example a.png", "1x9x8", "--channels 3", "--size HxW", "--per-size"):
        assert text in str(caught.value)
    with pytest.raises(ParameterError, match="2 different shapes"):
        place.encrypt(size=(4, 4))
    with pytest.raises(ParameterError, match="3 different shapes") as caught:
        place.encrypt(channels=3)
    assert "--channels" not in str(caught.value)
    assert not place.store.exists()


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_size_for_all(place: Place, fit: str, channels: int) -> None:
    mixed(place).encrypt(normalize="none", size=(4, 6), fit=fit, channels=channels, workers=2)
    assert read_manifest(place.store).shape == (channels, 4, 6)
    place.decrypt()
    for name in "abcd":
        expected = decode(place.source / f"{name}.png", channels, (4, 6), fit)
        assert np.array_equal(decode(place.back / f"{name}.png"), expected)


def test_each_size_with_matrices_of_its_own(place: Place) -> None:
    mixed(place).encrypt(normalize="none", per_size=True)
    assert read_manifest(place.store).shape is None
    place.verify()
    place.decrypt()
    for name in "abcd":
        assert np.array_equal(decode(place.back / f"{name}.png"), decode(place.source / f"{name}.png"))


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"size": (4, 4), "per_size": True},
            {"channels": 2},
            {"fit": "zoom"},
            {"on_error": "skip"},
            {"names": "hide"},
        ),
        *({"classes": "drop"}, {"workers": 0}, {"size": (0, 4)}, {"dtype": "int64"}, {"normalize": "max"}),
        *({"mean": (0.5,)}, {"dtype": "float32", "mean": (1.0, 2.0)}, {"dtype": "float32", "std": (0.0,)}),
    ],
    ids=str,
)
def test_wrong_options(photos: Place, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        photos.encrypt(**options)
    assert not photos.store.exists()


def test_options_that_idx_cannot_serve(four: Place) -> None:
    for options in ({"size": (4, 4)}, {"channels": 3}, {"ignore": ("*",)}):
        with pytest.raises(ParameterError, match="does not apply to IDX"):
            four.encrypt(**options)


# names, ids, headers: recomputed from the contract


def hkdf(secret: bytes, info: str) -> bytes:
    prk = hmac.new(b"dlmt-fast/v1", secret, hashlib.sha256).digest()
    return hmac.new(prk, info.encode() + b"\1", hashlib.sha256).digest()


def test_hidden_names(photos: Place, secret: bytes) -> None:
    store_id = photos.encrypt().store_id
    key = hkdf(secret, f"names/{store_id}")
    for name in NAMES:
        digest = hmac.new(key, name.encode(), hashlib.sha256).digest()[:16].hex()
        assert (photos.store / name.split("/")[0] if "/" in name else photos.store).joinpath(f"{digest}.png").is_file()
    listed = [line.split(" ", 2)[2] for line in (photos.store / "dlmt-shard-00000.txt").read_text().splitlines()]
    assert listed == sorted(listed)
    assert len(listed) == 5


def test_the_store_id(photos: Place, secret: bytes) -> None:
    store_id = photos.encrypt().store_id
    record = (photos.owners / "job.json").read_bytes()
    assert store_id == hmac.new(hkdf(secret, "store-id"), record, hashlib.sha256).digest()[:16].hex()
    found = json.loads(record)
    assert record == json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    stamps = b""
    for name in sorted(NAMES, key=str.encode):
        status = (photos.source / name).stat()
        stamp = json.dumps([name, status.st_size, status.st_mtime_ns], separators=(",", ":"), ensure_ascii=False)
        stamps += stamp.encode() + b"\n"
    assert found["source"] == {"kind": "folder", "files": 5, "sha256": hashlib.sha256(stamps).hexdigest()}


def test_the_sealed_header(photos: Place, secret: bytes) -> None:
    store_id = photos.encrypt(dtype="float32", mean=(0.5,), std=(0.25,)).store_id
    sealed = b64decode(json.loads((photos.store / "dlmt-store.json").read_text())["sealed"])
    assert len(sealed) == 12 + 4096 + 16
    aad = b"dlmt-fast/v1/header/" + store_id.encode()
    plain = AESGCM(hkdf(secret, f"header/{store_id}")).decrypt(sealed[:12], sealed[12:], aad)
    assert len(plain) == 4096
    header = json.loads(plain)
    versions = header.pop("versions")
    assert versions["dlmt-fast"] == dlmt.__version__
    assert header == {
        "contract": "dlmt-fast/v1",
        "scheme": SCHEME.params,
        "normalize": "range",
        "dtype": "float32",
        "layout": "CHW",
        "mean": [(0.5).hex()],
        "std": [(0.25).hex()],
        "shape": [3, 8, 9],
    }


def test_the_ledger(photos: Place, secret: bytes) -> None:
    store_id = photos.encrypt(normalize="minmax").store_id
    sealed = (photos.owners / "ledger-00000.bin").read_bytes()
    digest = hashlib.sha256((photos.store / "dlmt-shard-00000.txt").read_bytes()).hexdigest()
    aad = f"dlmt-fast/v1/ledger/{store_id}/0/{digest}".encode()
    ledger = json.loads(AESGCM(hkdf(secret, f"ledger/{store_id}")).decrypt(sealed[:12], sealed[12:], aad))
    assert sorted(original for _, original in ledger["names"]) == sorted(NAMES)
    plan = SCHEME.plan(photos.key, (3, 8, 9), "minmax")
    for (_, original), bounds in zip(ledger["names"], ledger["bounds"], strict=True):
        _, expected = dlmt.encrypt(decode(photos.source / original), plan, return_bounds=True)
        assert bounds == expected.tolist()


def test_the_same_job_gives_the_same_bytes(photos: Place) -> None:
    first, second = photos.root / "one", photos.root / "two"
    assert photos.encrypt(first, workers=1).store_id == photos.encrypt(second, workers=3).store_id
    one, two = files(first), files(second)
    assert one.pop("dlmt-store.json") != two.pop("dlmt-store.json")  # the sealed header's nonce is fresh
    assert one == two
    other = Place(photos.root, dlmt.Key(bytes(32)))
    other.encrypt(photos.root / "three")
    assert not set(one) & set(files(photos.root / "three")) - {"dlmt-shard-00000.txt"}
    os.utime(photos.source / NAMES[0], ns=(1, 1))
    photos.encrypt(photos.root / "four")
    assert not set(one) & set(files(photos.root / "four")) - {"dlmt-shard-00000.txt"}


def test_kept_names(photos: Place) -> None:
    photos.encrypt(names="keep", dtype="float32")
    assert set(files(photos.store)) == {
        *(name.rpartition(".")[0] + ".npy" for name in NAMES), "dlmt-store.json", "dlmt-shard-00000.txt"
    }  # fmt: skip


@pytest.mark.parametrize("names", ["keep", "hash"])
def test_names_that_differ_in_the_suffix_alone(place: Place, names: str) -> None:
    originals = ["c/a.jpg", "c/a.png", "c/b.png", "c/a.jpg.bmp"]
    for seed, name in enumerate(originals):
        photo(place.source / name, seed=seed)
    if names == "keep":
        with pytest.raises(StoreError, match=r"c/a\.jpg and c/a\.png would both be written as c/a\.png"):
            place.encrypt(names=names)
        assert not place.store.exists()
        return
    place.encrypt(normalize="none")
    place.decrypt()
    assert set(files(place.back)) == {f"{name}.png" for name in originals}
    for name in originals:
        assert np.array_equal(decode(place.back / f"{name}.png"), decode(place.source / name))


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        (["a/b.jpg c.tiff"], "a/b.png c.png"),
        (["a.jpg a.png b.jpg"], "a.jpg.png a.png.png b.png"),
        (["a.jpg", "b.jpg", "a.png"], "a.jpg.png b.png a.png.png"),
        (["a.jpg a.png", "a.jpg.jpg b.png"], "a.jpg.png a.png.png a.jpg.jpg.png b.png.png"),
    ],
)
def test_restored_names(shards: list[str], expected: str) -> None:
    names = OriginalNames(lambda: ({name: name for name in shard.split()} for shard in shards))
    assert [names.name(name) for shard in shards for name in shard.split()] == expected.split()


@pytest.mark.parametrize("classes", ["keep", "index"])
def test_torchvision_reads_the_classes(photos: Place, classes: str) -> None:
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    (photos.source / "top.png").rename(photos.source / "cats" / "top.png")
    photos.encrypt(classes=classes)
    before, after = folder(photos.source), folder(photos.store)
    assert after.classes == (before.classes if classes == "keep" else ["0", "1"])
    assert sorted(after.targets) == sorted(before.targets) == [0, 0, 0, 1, 1]
    plan = SCHEME.plan(photos.key, (3, 8, 9))

    def content(data: Any, transform: Callable[[Any], Any]) -> set[tuple[int, bytes]]:
        return {(target, transform(np.asarray(image).transpose(2, 0, 1)).tobytes()) for image, target in data}

    assert content(after, lambda x: x) == content(before, lambda x: dlmt.encrypt(np.ascontiguousarray(x), plan))


def test_torchvision_reads_idx(four: Place) -> None:
    reader = pytest.importorskip("torchvision.datasets.mnist")
    four.encrypt()
    plan = SCHEME.plan(four.key, (1, 5, 4))
    values = FOUR["train-images-idx3-ubyte"]
    read = reader.read_image_file(str(four.store / "train-images-idx3-ubyte"))
    assert np.array_equal(read.numpy(), dlmt.encrypt(values[:, None], plan)[:, 0])
    labels = reader.read_label_file(str(four.store / "train-labels-idx1-ubyte"))
    assert labels.tolist() == list(range(9))


@pytest.mark.parametrize("name", ["c\nd/a.png", "c\\d/a.png", "dlmt-store.json/a.png", "dlmt-shard-00000.txt/a.png"])
def test_classes_that_a_listing_cannot_hold(place: Place, name: str) -> None:
    photo(place.source / name)
    with pytest.raises(StoreError, match="cannot keep its name or class"):
        place.encrypt()
    assert not place.store.exists()
    place.encrypt(classes="index")
    place.verify()
    place.decrypt()
    assert set(files(place.back)) == {name}


# quarantine


def spoilt(place: Place) -> Place:
    photo(place.source / "a" / "good.png")
    photo(place.source / "b" / "good.png", seed=1)
    (place.source / "a" / "empty.png").write_bytes(b"")
    (place.source / "a" / "README").write_text("x")
    (place.source / "a" / "LICENSE").write_text("x")
    data = photo(place.source / "cut.jpg", seed=2, quality=100).read_bytes()
    (place.source / "cut.jpg").write_bytes(data[:-100])  # its header is whole: decoding finds out
    return place


@pytest.mark.parametrize("names", ["hash", "keep"])
def test_bad_images_are_listed_and_counted(place: Place, names: str) -> None:
    done = spoilt(place).encrypt(on_error="quarantine", names=names)
    assert (done.inputs, done.outputs, len(done.quarantined)) == (6, 2, 4)
    assert {item["path"] for item in done.quarantined} == {"a/README", "a/LICENSE", "a/empty.png", "cut.jpg"}
    listed = json.loads((place.owners / "quarantine-00000.json").read_text())
    assert sorted(listed, key=str) == sorted(done.quarantined, key=str)
    journal = json.loads((place.owners / "journal-00000.json").read_text())
    assert (journal["inputs"], journal["outputs"], journal["quarantined"]) == (6, 2, 4)
    assert read_manifest(place.store).count == 2
    found = place.verify()
    assert (found.inputs, found.outputs) == (6, 2)
    assert sorted(found.quarantined, key=str) == sorted(done.quarantined, key=str)
    assert place.verify(key=False).inputs == 2  # of the rest only the owner knows
    place.decrypt()
    assert set(files(place.back)) == {"a/good.png", "b/good.png"}


def test_a_bad_image_fails_the_job_by_default(place: Place) -> None:
    with pytest.raises(ImageError, match=r"LICENSE.*and 2 more.*--on-error quarantine"):
        spoilt(place).encrypt()
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        place.encrypt(ignore=("a/[RLe]*",))
    assert not place.store.exists()


def test_nothing_but_bad_images(place: Place) -> None:
    place.source.mkdir()
    (place.source / "a.png").write_bytes(b"x")
    with pytest.raises(StoreError, match="none of the 1 files can be taken"):
        place.encrypt(on_error="quarantine")


# keys and owners


def test_another_key(photos: Place) -> None:
    photos.encrypt()
    other = Place(photos.root, dlmt.Key(bytes(32)))
    for work in (other.decrypt, other.verify):
        with pytest.raises(WrongKeyError, match="another key"):
            work()
    assert not photos.back.exists()


@pytest.mark.parametrize("normalize", ["minmax", "minmax_channel", "range"])
def test_without_the_ledger(photos: Place, normalize: str) -> None:
    photos.encrypt(normalize=normalize)
    (photos.owners / "ledger-00000.bin").unlink()
    if normalize == "range":
        assert "names are not restored" in photos.decrypt().notes[0]
        hidden = {name for name in files(photos.store) if name.endswith(".png")}
        assert set(files(photos.back)) == hidden
        return
    assert "no ledger at hand" in photos.verify().notes[0]
    with pytest.raises(StoreError, match="needs the ledger"):
        photos.decrypt()
    assert not photos.back.exists()


def test_only_the_owner_reads_the_owners_folder(photos: Place) -> None:
    before = os.umask(0)
    try:
        photos.encrypt(on_error="quarantine")
    finally:
        os.umask(before)
    assert stat.S_IMODE(photos.owners.stat().st_mode) == 0o700
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in photos.owners.rglob("*")}
    names = {"job.json", "journal-00000.json", "ledger-00000.bin", "quarantine-00000.json", "sources-00000.bin"}
    names |= {"gate", "1-of-1"}
    assert found == dict.fromkeys(names, 0o600) | {"locks": 0o700}


@pytest.mark.parametrize("via", ["plain", "link to target", "link in target", "target itself", "dots"])
def test_the_owners_folder_is_never_uploaded(photos: Place, via: str) -> None:
    link = photos.root / "link"
    owner = {
        "plain": photos.store / "owner",
        "link to target": link / "owner",
        "link in target": photos.root / "elsewhere" / "owner",
        "target itself": photos.store,
        "dots": photos.root / "x" / ".." / "store" / "owner",
    }[via]
    if via == "link to target":
        link.symlink_to(photos.store, target_is_directory=True)
    if via == "link in target":
        (photos.root / "elsewhere").symlink_to(photos.store, target_is_directory=True)
    with pytest.raises(StoreError, match="inside the target"):
        encrypt_store(photos.source, photos.store, photos.key, SCHEME, lambda _: owner)
    assert not photos.store.exists()


def test_an_owners_folder_serves_one_job(photos: Place) -> None:
    own = lambda _: photos.root / "own"  # noqa: E731
    encrypt_store(photos.source, photos.root / "one", photos.key, SCHEME, own, JobOptions(normalize="minmax"))
    kept = files(photos.root / "own")
    with pytest.raises(StoreError, match="belongs to another job"):
        encrypt_store(photos.source, photos.root / "two", photos.key, SCHEME, own)
    assert not (photos.root / "two").exists()
    assert files(photos.root / "own") == kept
    decrypt_store(photos.root / "one", photos.back, photos.key, own)


def test_a_second_process_on_the_same_job_is_refused(photos: Place) -> None:
    store_id = photos.encrypt().store_id
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys\nd = os.open(sys.argv[1], os.O_RDWR)\nfcntl.flock(d, fcntl.LOCK_EX)\n"
            "os.ftruncate(d, 0)\nos.pwrite(d, b'host there, pid 7', 0)\nprint(flush=True)\nsys.stdin.read()",
            str(photos.owner(store_id) / "locks" / "1-of-1"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StoreError, match=r"runs already .host there, pid 7"):
            photos.encrypt(photos.root / "two")
        assert not (photos.root / "two").exists()
        holder.communicate()
    photos.encrypt(photos.root / "two")
