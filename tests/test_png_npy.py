"""The two encodings of a folder store: PNG in stored blocks, and .npy read back strictly."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dlmt_fast.errors import StoreDamagedError
from dlmt_fast.stores.npy import decode_npy, encode_npy
from dlmt_fast.stores.png import encode_png

SHAPES = [(1, 1, 1), (3, 1, 1), (1, 7, 5), (3, 5, 7), (1, 1, 300), (3, 300, 1), (3, 33, 65), (3, 256, 256)]
AROUND_ONE_BLOCK = [(1, 1, 0xFFFD), (1, 1, 0xFFFE), (1, 1, 0xFFFF), (1, 255, 256), (1, 256, 255), (3, 145, 151)]
DTYPES = ["uint8", "uint16", "int32", "float32", "float16"]


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file, each CRC checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size) == (zlib.crc32(kind + body),)
        found.append((kind, body))
        at += 12 + size
    return found


@pytest.mark.parametrize("shape", SHAPES + AROUND_ONE_BLOCK, ids=str)
def test_pillow_reads_the_png_back(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, shape, np.uint8)
    data = encode_png(image)
    PIL.Image.open(io.BytesIO(data)).verify()
    with PIL.Image.open(io.BytesIO(data)) as opened:
        assert (opened.format, opened.mode, opened.size) == ("PNG", "L" if shape[0] == 1 else "RGB", shape[:0:-1])
        back = np.asarray(opened).reshape(shape[1], shape[2], shape[0]).transpose(2, 0, 1)
        assert np.array_equal(back, image)
        assert not opened.info


@pytest.mark.parametrize("shape", SHAPES + AROUND_ONE_BLOCK, ids=str)
def test_the_chunks_hold_the_pixels_and_nothing_else(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, shape, np.uint8)
    parts = chunks(encode_png(image))
    assert [kind for kind, _ in parts] == [b"IHDR", b"IDAT", b"IEND"]
    assert parts[0][1] == struct.pack(">IIBBBBB", shape[2], shape[1], 8, 0 if shape[0] == 1 else 2, 0, 0, 0)
    assert parts[2][1] == b""
    inflate = zlib.decompressobj()
    rows = inflate.decompress(parts[1][1])
    assert inflate.eof
    assert not inflate.unused_data
    expected = b"".join(b"\0" + image[:, y].T.tobytes() for y in range(shape[1]))
    assert rows == expected


@pytest.mark.parametrize("shape", SHAPES + AROUND_ONE_BLOCK, ids=str)
def test_the_size_tells_the_dimensions_only(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    images = [np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), rng.integers(0, 256, shape, np.uint8)]
    sizes = {len(encode_png(image)) for image in images}
    raw = shape[1] * (1 + shape[0] * shape[2])
    assert sizes == {8 + 3 * 12 + 13 + 2 + 4 + raw + 5 * -(-raw // 0xFFFF)}


def test_any_strides_give_the_same_png(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (3, 9, 11), np.uint8)
    turned = np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1)
    wide = np.repeat(image, 2, axis=2)[:, :, ::2]
    assert encode_png(image) == encode_png(turned) == encode_png(wide)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        encode_png(np.zeros((channels, 2, 2), np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (1, 300, 2)], ids=str)
def test_npy_round_trip(dtype: str, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    image = rng.integers(0, 200, shape).astype(dtype)
    data = encode_npy(image)
    back = decode_npy(data, np.dtype(dtype), "x.npy")
    assert back.dtype == image.dtype
    assert np.array_equal(back, image)
    assert np.array_equal(np.load(io.BytesIO(data)), image)
    assert encode_npy(image.transpose(0, 2, 1).copy().transpose(0, 2, 1)) == data


def test_the_bytes_of_an_npy_file_depend_on_the_values_alone() -> None:
    """Pinned, since the padding of NumPy's own writer differs from version to version."""
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 2), }"
    want = b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n" + struct.pack("<2i", 1, -2)
    values = np.array([[[1, -2]]], np.int32)
    assert encode_npy(values) == want
    assert encode_npy(values.astype(">i4")) == want


def with_header(text: str, body: bytes = bytes(24), version: bytes = b"\x01\x00") -> bytes:
    header = text.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + body


GOOD = "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2, 3), }\n"


def test_the_header_below_is_good_as_it_stands() -> None:
    assert decode_npy(with_header(GOOD), np.dtype(np.int32), "x").shape == (1, 2, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        with_header(GOOD, version=b"\x02\x00"),
        with_header(GOOD, body=bytes(23)),
        with_header(GOOD, body=bytes(25)),
        with_header(GOOD)[:40],
        with_header(GOOD.replace("False", "True")),
        with_header(GOOD.replace("<i4", ">i4")),
        with_header(GOOD.replace("<i4", "<f4")),
        with_header(GOOD.replace("<i4", "|O")),
        with_header(GOOD.replace("(1, 2, 3)", "(6,)")),
        with_header(GOOD.replace("(1, 2, 3)", "(1, 1, 2, 3)")),
        with_header(GOOD.replace("(1, 2, 3)", "(0, 2, 3)"), body=b""),
        with_header(GOOD.replace("(1, 2, 3)", "(-1, -2, 3)")),
        with_header(GOOD.replace("(1, 2, 3)", "(True, 2, 3)")),
        with_header(GOOD.replace("(1, 2, 3)", "(1, 2L, 3)")),  # NumPy's reader warns
        with_header(GOOD.replace("(1, 2, 3)", "(9999999999, 9999999999, 9999999999)")),
        with_header("((("),  # NumPy's reader raises tokenize.TokenError
        with_header("-" * 9000 + "1"),  # and here MemoryError
        with_header("'''"),
        with_header("\xff\xfe"),
    ],
)
def test_other_npy_files_are_damage(data: bytes) -> None:
    with pytest.raises(StoreDamagedError, match="x is no array file"):
        decode_npy(data, np.dtype(np.int32), "x")


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_dtype_is_damage(dtype: str) -> None:
    image: Any = np.zeros((1, 2, 2), "int8")
    with pytest.raises(StoreDamagedError, match="expected"):
        decode_npy(encode_npy(image), np.dtype(dtype), "x")


def test_an_object_array_runs_nothing() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[[print]]], dtype=object), allow_pickle=True)
    with pytest.raises(StoreDamagedError):
        decode_npy(buffer.getvalue(), np.dtype(np.int32), "x")
