"""Random damage to everything that is read: only our own errors come out, and nothing half-written stays."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import dlmt_fast as dlmt
from dlmt_fast import cli
from dlmt_fast.errors import DlmtError, ImageError, StoreDamagedError, WrongKeyError
from dlmt_fast.pipeline import JobOptions, decrypt_store, encrypt_store, verify_store
from dlmt_fast.pipeline.seal import StoreSeal
from dlmt_fast.stores.decode import decode, probe
from dlmt_fast.stores.idx import IdxSource
from dlmt_fast.stores.idx_format import checked_header, looks_like_idx, read_labels, read_slices
from dlmt_fast.stores.listing import read_listing
from dlmt_fast.stores.manifest import Manifest, decode_manifest, read_manifest
from dlmt_fast.stores.npy import decode_npy, encode_npy

SCHEME = dlmt.DLMT("mat_mmt")
ID = "0123456789abcdef" * 2


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few bytes changed, removed, repeated or inserted, or its end cut off."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(result) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "delete", "insert", "cut", "repeat", "word"]))
        if kind == "flip" and result:
            result[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and result:
            result[at] = draw(st.sampled_from(b"\0\xff\x7f\x80 0129-\"'[]{},:.eE/\\\n"))
        elif kind == "delete":
            del result[at : at + draw(st.integers(1, 8))]
        elif kind == "insert":
            result[at:at] = draw(st.binary(max_size=8))
        elif kind == "cut":
            del result[at:]
        elif kind == "word":
            result[at : at + 4] = draw(
                st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\1\0\0"])
            )
        else:
            result[at:at] = result[at : at + draw(st.integers(1, 64))]
    return bytes(result)


def ours_only(work: Callable[[], object]) -> object:
    """The result, or None where one of our own errors came out; anything else fails the test."""
    try:
        return work()
    except DlmtError:
        return None


MANIFEST = Manifest("folder", ID, "uint8", (3, 4, 5), 2, (), (), bytes(range(200))).encode()
LISTING = "".join(f"{'a' * 64} {7 + i} c/{i}.png\n" for i in range(4)).encode()


@given(damaged(MANIFEST))
def test_manifests(data: bytes) -> None:
    assume(data != MANIFEST)
    with pytest.raises(DlmtError):
        decode_manifest(data, Path("x"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(json.loads(MANIFEST))), JSON)
def test_manifests_with_any_value_in_a_field(field: str, value: Any) -> None:
    import hashlib

    document = json.loads(MANIFEST) | {field: value}
    body = {name: item for name, item in document.items() if name != "sha256"}
    if field != "sha256":
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        document["sha256"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    ours_only(lambda: decode_manifest(json.dumps(document, indent=1).encode() + b"\n", Path("x")))


@given(damaged(LISTING) | st.binary(max_size=200))
def test_listings(data: bytes) -> None:
    entries = ours_only(lambda: read_listing(data, "x"))
    for entry in entries or ():  # type: ignore[attr-defined]
        parts = entry.name.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert not set("\n\\\0") & set(entry.name)


@given(damaged(encode_npy(np.arange(60, dtype=np.int32).reshape(3, 4, 5))) | st.binary(max_size=200))
def test_npy_files(data: bytes) -> None:
    found: Any = ours_only(lambda: decode_npy(data, np.dtype(np.int32), "x"))
    if found is not None:
        assert found.ndim == 3
        assert found.nbytes < len(data)


SEAL = StoreSeal(dlmt.Key(bytes(range(32))), ID)
HEADER = SEAL.seal_header({"contract": "dlmt-fast/v1"})
LEDGER = SEAL.seal_ledger(0, "a" * 64, {"names": [["x.png", "y.jpg"]], "bounds": [[0, 9]]})


@settings(max_examples=30)
@given(damaged(HEADER) | st.binary(max_size=60))
def test_sealed_headers(data: bytes) -> None:
    assume(data != HEADER)
    with pytest.raises(WrongKeyError):
        SEAL.open_header(data)


@given(damaged(LEDGER) | st.binary(max_size=60))
def test_ledgers(data: bytes) -> None:
    assert SEAL.open_ledger(0, "a" * 64, LEDGER)["bounds"] == [[0, 9]]
    assume(data != LEDGER)
    with pytest.raises(StoreDamagedError):
        SEAL.open_ledger(0, "a" * 64, data)
    with pytest.raises(StoreDamagedError):
        SEAL.open_ledger(1, "a" * 64, LEDGER)


def idx(values: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


IMAGES = idx(np.random.default_rng(0).integers(0, 256, (5, 3, 4), np.uint8))
LABELS = idx(np.arange(50, dtype=np.uint8))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "x-idx3-ubyte"


@pytest.mark.parametrize("content", [IMAGES, gzip.compress(IMAGES)], ids=["plain", "gzip"])
@given(data=st.data())
def test_idx_images(content: bytes, scratch: Path, data: st.DataObject) -> None:
    scratch.write_bytes(data.draw(damaged(content) | st.binary(max_size=40)))
    looks_like_idx(scratch)
    header: Any = ours_only(lambda: checked_header(scratch))
    if header is not None:
        slices: Any = ours_only(lambda: list(read_slices(scratch, header)))
        assert slices is None or sum(len(part) for _, part in slices) == header.sizes[0]
    source: Any = ours_only(lambda: IdxSource(scratch))
    if source is not None:
        ours_only(lambda: list(source.read(source.shards()[0].samples[:9], 1)))


@pytest.mark.parametrize("content", [LABELS, gzip.compress(LABELS)], ids=["plain", "gzip"])
@given(data=st.data())
def test_idx_labels(content: bytes, scratch: Path, data: st.DataObject) -> None:
    scratch.write_bytes(data.draw(damaged(content)))
    found: Any = ours_only(lambda: read_labels(scratch))
    assert found is None or len(found) == 8 + int.from_bytes(found[4:8], "big")


def picture(form: str, **options: Any) -> bytes:
    buffer, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


PICTURES = {
    "png": picture("PNG"),
    "jpeg": picture("JPEG", progressive=True),
    "bmp": picture("BMP"),
    "tiff": picture("TIFF"),
    "lzw": picture("TIFF", compression="tiff_lzw"),
    "webp": picture("WEBP", lossless=True),
    "mpo": picture("MPO", save_all=True, append_images=[PIL.Image.new("RGB", (11, 7))]),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("form", PICTURES)
@given(data=st.data())
def test_images(form: str, strict: bool, scratch: Path, data: st.DataObject) -> None:
    scratch.write_bytes(data.draw(damaged(PICTURES[form])))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")  # Pillow warns of some damage
        foretold: Any = ours_only(lambda: probe(scratch, None))
        try:
            pixels = decode(scratch)
        except ImageError:
            return
    assert pixels.dtype == np.uint8
    assert pixels.size
    assert foretold in (None, pixels.shape)


# a whole store, one of whose files is damaged


class Store:
    """A store with its key and owner's folder, to be copied, damaged and read."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind, self.key = root, kind, dlmt.Key(bytes(range(32)), SCHEME.params)
        source = root / "source"
        source.mkdir()
        if kind == "idx":
            (source / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(IMAGES))
            (source / "t10k-images-idx3-ubyte").write_bytes(IMAGES)
            (source / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(5, dtype=np.uint8))))
        else:
            for i in range(3):
                (source / f"c{i}").mkdir()
                (source / f"c{i}" / "x.png").write_bytes(PICTURES["png"])
        self.key.save(root / "k")
        options = JobOptions(normalize="minmax", dtype="float32" if kind == "npy" else None)
        encrypt_store(source, root / "store", self.key, SCHEME, self.owner, options)
        shutil.rmtree(source)
        self.files = sorted(
            path
            for path in root.rglob("*")
            if path.is_file() and path.name != "job.json" and path.parent.name != "locks"
        )
        self.content = {path: path.read_bytes() for path in self.files}

    def owner(self, store_id: str) -> Path:
        return self.root / "k.stores" / store_id

    @property
    def target(self) -> Path:
        return self.root / "back"

    def check_clean(self) -> None:
        """After a decrypt that failed: nothing of it, but where another shard was whole, which counts."""
        if self.target.exists():
            assert self.kind == "idx"
            assert (self.target / ".dlmt-job").exists()
            assert not list(self.target.rglob(".tmp-*"))
            shutil.rmtree(self.target)
        assert {
            path
            for path in self.root.rglob("*")
            if path.is_file() and path.name != "job.json" and path.parent.name != "locks"
        } == set(self.files)


@pytest.fixture(scope="module", params=["png", "npy", "idx"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp(request.param), request.param)


@given(data=st.data())
def test_a_store_with_a_damaged_file(store: Store, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(store.files))
    content = data.draw(damaged(store.content[path]))
    assume(content != store.content[path])
    uploaded = store.root / "store" in path.parents
    path.write_bytes(content)
    try:
        if uploaded:
            with pytest.raises(DlmtError):
                verify_store(store.root / "store")
        if uploaded or path.name.startswith("ledger"):
            with pytest.raises(DlmtError):
                decrypt_store(store.root / "store", store.target, store.key, store.owner)
            store.check_clean()
    finally:
        path.write_bytes(store.content[path])


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["dlmt", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code

    return run


in_function = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@in_function
@given(data=st.data())
def test_the_command_on_a_damaged_store_or_key(store: Store, command: Callable[..., int], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(store.files))
    path.write_bytes(data.draw(damaged(store.content[path])))
    same = path.read_bytes() == store.content[path]
    try:
        root = store.root
        code = command("decrypt", root / "store", store.target, "--key", root / "k", "--json")
        if code:
            assert code in (1, 2)
            store.check_clean()
        elif path.name == "k":  # other white space, the checksum covers the rest
            assert json.loads(path.read_bytes()) == json.loads(store.content[path])
        else:  # journal, quarantine and source lists are not needed for decrypting
            assert same or path.name.startswith(("journal", "quarantine", "sources"))
        assert command("verify", root / "store", "--key", root / "k", "--json") in ((0,) if same else (0, 1, 2))
    finally:
        shutil.rmtree(store.target, ignore_errors=True)
        path.write_bytes(store.content[path])


@in_function
@given(content=damaged(IMAGES) | damaged(gzip.compress(IMAGES)) | st.binary(max_size=40))
def test_the_command_on_a_damaged_idx_file(store: Store, command: Callable[..., int], content: bytes) -> None:
    root = store.root
    source, target = root / "in" / "x-idx3-ubyte", root / "out" / "y-idx3-ubyte"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(content)
    code = command("encrypt", source, target, "--key", root / "k", "--owner", root / "owner", "--from", "idx", "--json")
    try:
        assert code in (0, 1, 2)
        if code:
            assert not target.parent.exists()
        else:
            assert read_manifest(target).count == read_header_count(content)
            assert command("decrypt", target, root / "out" / "z", "--key", root / "k") == 0
            plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            back = (root / "out" / "z").read_bytes()
            assert len(back) == len(plain)
    finally:
        for folder in ("in", "out", "owner"):
            shutil.rmtree(root / folder, ignore_errors=True)


def read_header_count(content: bytes) -> int:
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return int.from_bytes(plain[4:8], "big")


@in_function
@given(content=st.binary(max_size=300) | st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_the_command_with_any_bytes_as_key(store: Store, command: Callable[..., int], content: bytes) -> None:
    wrong = store.root / "wrong"
    wrong.write_bytes(content)
    wrong.chmod(0o600)
    try:
        for words in (("decrypt", store.root / "store", store.target), ("encrypt", store.root / "store", store.target)):
            assert command(*words, "--key", wrong) == 1
        assert command("verify", store.root / "store", "--key", wrong) == 1
    finally:
        wrong.unlink()
    store.check_clean()
