"""What of a store goes out: decoded from its containers and searched for names, parameters and key material."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import re
import shutil
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from key_material import key_material, spellings

import dlmt_fast as dlmt
from dlmt_fast.pipeline import JobOptions, encrypt_store

SCHEME = dlmt.DLMT("mat_mmt", max_v_add=1237, max_v_mul=1013)
PUBLIC = {"format", "version", "kind", "store_id", "dtype", "shape", "count", "shards", "extras", "sealed", "sha256"}
#: What no text of a store may say: mode, parameters, normalisation, options, bounds, versions.
SETTINGS = (
    rb"\b(mat|mmt|mat_mmt|range|minmax|minmax_channel|none|1237|1013|scheme|mode|params|max_v_add|max_v_mul|rise|"
)
SETTINGS += (
    rb"normalize|lo|hi|bounds|layout|mean|std|contract|fingerprint|pillow|numpy|python|owner|host|pid|time|date)\b"
)


def text_and_body(name: str, data: bytes) -> tuple[bytes, bytes]:
    """What a file says in words or fields, and its content, decompressed. Unknown containers and fields fail."""
    if name.endswith(".png"):
        kinds, bodies, at = [], {}, 8
        while at < len(data):
            (size,) = struct.unpack_from(">I", data, at)
            kinds.append(data[at + 4 : at + 8])
            bodies[kinds[-1]] = data[at + 8 : at + 8 + size]
            at += 12 + size
        assert kinds == [b"IHDR", b"IDAT", b"IEND"]
        return bodies[b"IHDR"], zlib.decompress(bodies[b"IDAT"])
    if name.endswith(".npy"):
        end = 10 + int.from_bytes(data[8:10], "little")
        header = re.fullmatch(
            rb"\{'descr': '[|<]\w+', 'fortran_order': False, 'shape': \((\d+, ?)+\d*\), \} *\n", data[10:end]
        )
        assert header
        return header[0], data[end:]
    if name.endswith(".tar"):
        return members(data)
    if name.endswith(".cls"):
        assert data.isdigit()
        return data, b""
    if name.endswith(".gz"):
        assert data[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no flags, so no name and no comment; no time
        body = gzip.decompress(data)
        return body[:4], body
    if name.endswith(".json"):
        document = json.loads(data)
        assert set(document) == PUBLIC
        sealed = base64.b64decode(document.pop("sealed"))
        return json.dumps(document, ensure_ascii=False).encode(), sealed
    if name.endswith(".txt"):
        assert re.fullmatch(rb"([0-9a-f]{64} [0-9]+ [^\n]+\n)*", data)
        return data, b""
    assert re.search(r"idx[13]-ubyte$", name)
    return data[:4], data


def members(data: bytes) -> tuple[bytes, bytes]:
    """The same of a tar: every header without user, group and time, and what its members say."""
    texts, bodies = [], []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
            assert not info.pax_headers
            text, body = text_and_body(info.name, data[info.offset_data : info.offset_data + info.size])
            texts += [info.name.encode(), data[info.offset : info.offset_data].replace(b"\0", b" "), text]
            bodies.append(body)
    return b"\n".join(texts), b"".join(bodies)


def photos(root: Path) -> list[bytes]:
    """Makes a source; gives the words that it must not tell."""
    exif = PIL.Image.Exif()
    exif[0x010F] = "TopSecretCamera"
    for seed, name in enumerate(("patients/anna-holiday.jpg", "controls/passport scan.png")):
        (root / name).parent.mkdir(parents=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
        icc = b"private profile" * 10
        PIL.Image.fromarray(pixels).save(root / name, exif=exif, icc_profile=icc, comment="a private comment")
    (root / "controls" / "broken.png").write_bytes(b"no image")
    return [
        b"patients",
        b"controls",
        b"anna",
        b"holiday",
        b"passport",
        b"scan",
        b"broken",
        b"TopSecret",
        b"Exif",
        b"private",
    ]


def mnist(root: Path) -> list[bytes]:
    root.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    for name, data in {
        "train-images-idx3-ubyte.gz": struct.pack(">BBBB3I", 0, 0, 8, 3, 6, 5, 4) + values.tobytes(),
        "train-labels-idx1-ubyte.gz": struct.pack(">BBBBI", 0, 0, 8, 1, 6) + bytes(range(6)),
        "t10k-images-idx3-ubyte": struct.pack(">BBBB3I", 0, 0, 8, 3, 6, 5, 4) + values.tobytes(),
    }.items():
        with open(root / name, "wb") as file:
            if name.endswith(".gz"):
                with gzip.GzipFile("unpublished", "wb", fileobj=file, mtime=1234567890) as packed:
                    packed.write(data)
            else:
                file.write(data)
    return [b"unpublished", struct.pack("<I", 1234567890)]


def arrays(root: Path) -> list[bytes]:
    root.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
    np.save(root / "anna-holiday.npy", values)
    np.save(root / "anna-holiday-labels.npy", np.arange(6))
    np.save(root / "passport.npy", values)
    return [b"anna", b"holiday", b"passport"]


def tars(root: Path) -> list[bytes]:
    photos(root / "photos")
    for number, name in enumerate(("patients/anna-holiday.jpg", "controls/passport scan.png")):
        with tarfile.open(root / f"clinic-{number}.tar", "w") as archive:
            for member, data in (
                (name, (root / "photos" / name).read_bytes()),
                (name[:-4] + ".diagnosis", b'{"a": "private"}'),
            ):
                info = tarfile.TarInfo(member)
                info.size, info.uname, info.mtime = len(data), "anna", 1234567890
                archive.addfile(info, io.BytesIO(data))
            for suffix in (".cls", ".txt"):
                info = tarfile.TarInfo(name[:-4] + suffix)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"7"))
    shutil.rmtree(root / "photos")
    return [
        b"patients",
        b"controls",
        b"anna",
        b"holiday",
        b"passport",
        b"scan",
        b"clinic",
        b"Exif",
        b"private",
        b"diagnosis",
    ]


def cifar(root: Path) -> list[bytes]:
    root.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        fields = {"batch_label": "a private batch", "filenames": ["anna_s_01.png"] * 3, "labels": [1, 2, 3]}
        pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
        (root / name).write_bytes(pickle.dumps(fields | {"data": pixels}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["passport"]}))
    return [b"anna", b"private", b"passport", b"batch", b"numpy"]


#: How many files each source becomes, by the kind of the target where that is another one.
FILES = {
    (photos, None): 4,
    (tars, None): 3,
    (mnist, None): 4,
    (arrays, None): 4,
    (cifar, None): 5,
    (mnist, "folder"): 15,
    (mnist, "webdataset"): 3,
    (arrays, "folder"): 15,
    (arrays, "webdataset"): 3,
}
SHAPES = {photos: (3, 8, 9), tars: (3, 8, 9), mnist: (1, 5, 4), arrays: (3, 5, 4), cifar: (3, 32, 32)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float32", "mean": (0.5,), "std": (0.25,)},
        {"normalize": "none"},
        {"normalize": "minmax"},
        {"shuffle": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("make", "to"), FILES)
def test_a_store_tells_nothing_of_key_names_or_settings(
    make: Any, to: str | None, options: dict[str, Any], tmp_path: Path, secret: bytes, key: dlmt.Key
) -> None:
    if "shuffle" in options and make in (tars, mnist):
        pytest.skip("tars and compressed files are read from start to end")
    source, store = tmp_path / "source", tmp_path / "store"
    words = make(source)
    words.append(str(tmp_path).encode())
    chosen = JobOptions(on_error="quarantine", classes="index" if make is photos else "keep", **options)
    done = encrypt_store(
        source, store, key, SCHEME, lambda store_id: tmp_path / "owner" / store_id, chosen, target_named=to
    )
    assert len(done.quarantined) == (make is photos)
    words += key_material(secret, done.store_id, SCHEME, SHAPES[make])
    uploaded = {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert len(uploaded) == FILES[make, to]
    for name, data in uploaded.items():
        text, body = text_and_body(name, data)
        assert not re.search(SETTINGS, text), (name, text)
        for word in words:
            assert word not in name.encode(), (name, word)
            assert word not in data, (name, word)
            assert word not in text, (name, word)
            assert word not in body, (name, word)


def test_the_search_finds_what_it_looks_for(secret: bytes) -> None:
    for text in (secret, b"x" + secret.hex().encode(), base64.b64encode(b"ab" + secret + b"c")):
        assert any(spelling in text for spelling in spellings(secret))
    assert re.search(SETTINGS, b'{"normalize": "x"}')
    assert re.search(SETTINGS, b'{"x": "mat"}')
    assert not re.search(SETTINGS, b'{"format": "dlmt-store"}')


def test_equal_sizes_for_equal_dimensions(tmp_path: Path, key: dlmt.Key) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    for name, pixels in {
        "flat": np.zeros((20, 20, 3)),
        "busy": np.random.default_rng(0).integers(0, 256, (20, 20, 3)),
    }.items():
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(source / f"{name}.png")
    for dtype in ("uint8", "float32"):
        target = store / dtype
        encrypt_store(source, target, key, SCHEME, lambda i: tmp_path / i, JobOptions(dtype=dtype))
        assert len({path.stat().st_size for path in target.iterdir() if path.suffix in (".png", ".npy")}) == 1
