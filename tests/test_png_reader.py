"""ISA-L and the native module beside Pillow: the same pixels where they take a PNG file, else Pillow's word."""

from __future__ import annotations

import functools
import io
import random
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import beside_pillow
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from beside_pillow import picture
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib

from dlmt_fast.errors import BackendError, ImageError
from dlmt_fast.stores.decode import decode_bytes, probe_bytes
from dlmt_fast.stores.png_reader import decode_png

try:
    from dlmt_fast.backends import native
except BackendError as error:
    pytest.skip(f"Pillow reads every file: {error}", allow_module_level=True)

agree = functools.partial(beside_pillow.agree, "decode_png")
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR = {1: 0, 3: 2}
MODES = {1: "L", 3: "RGB"}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    rows: bytes, width: int, height: int, channels: int, level: int = 6, part: int = 1 << 20, **more: list[bytes]
) -> bytes:
    """A file whose rows, filters included, are these bytes; pixels in chunks of `part` bytes, `before` and `after`."""
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR[channels], 0, 0, 0)
    stream = zlib.compress(rows, level)
    parts = [chunk(b"IDAT", stream[start : start + part]) for start in range(0, len(stream), part)]
    chunks = [chunk(b"IHDR", header), *more.get("before", []), *parts, *more.get("after", []), chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(chunks)


def random_rows(rng: np.random.Generator, width: int, height: int, channels: int, kinds: int = 5) -> bytes:
    """Any bytes are some image: each filter undoes to something."""
    rows = rng.integers(0, 256, (height, 1 + width * channels), np.uint8)
    rows[rng.random(rows.shape) < 0.3] = rng.choice([0, 1, 127, 128, 255])
    rows[:, 0] = rng.integers(0, kinds, height)
    return rows.tobytes()


def saved(image: PIL.Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def quick(data: bytes) -> np.ndarray[Any, Any] | None:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return decode_png(data, image.mode, image.size)


@pytest.fixture(params=native.levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.level()
    native.set_level(request.param)
    yield request.param
    native.set_level(before)


@given(
    st.integers(1, 70),
    st.integers(1, 12),
    st.sampled_from([1, 3]),
    st.sampled_from([0, 1, 6, 9]),
    st.sampled_from([1, 7, 100, 1 << 20]),
    st.sampled_from([None, 1, 3]),
    st.integers(0, 1000),
)
def test_any_rows_give_pillows_pixels(
    width: int, height: int, channels: int, level: int, part: int, asked: int | None, seed: int
) -> None:
    data = png(random_rows(np.random.default_rng(seed), width, height, channels), width, height, channels, level, part)
    assert quick(data) is not None
    assert agree(data, asked)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", range(5))
def test_each_filter_at_each_level(level: str, channels: int, kind: int) -> None:
    rng = np.random.default_rng(kind)
    for width, height in ((1, 3), (2, 2), (5, 4), (16, 9), (67, 5), (224, 30)):
        rows = np.frombuffer(random_rows(rng, width, height, channels), np.uint8).reshape(height, -1).copy()
        rows[:, 0] = kind
        found = np.empty((height, width, channels), np.uint8)
        assert native.unfilter(rows, found)
        with PIL.Image.open(io.BytesIO(png(rows.tobytes(), width, height, channels))) as image:
            assert np.array_equal(found.squeeze(2) if channels == 1 else found, np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("side", [224, 1024])
def test_photographs(mode: str, side: int) -> None:
    data = saved(picture(side, side - 1, mode))
    assert quick(data) is not None
    assert agree(data)


def test_photographs_of_scikit_image() -> None:
    folder = Path(pytest.importorskip("skimage.data").__file__).parent
    found = Counter(agree(path.read_bytes()) for path in sorted(folder.glob("*.png")))
    assert found[True] >= 5


def test_what_stands_before_the_pixels_does_not_matter_to_them() -> None:
    image = picture(33, 17, "RGB")
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Comment", "of no importance")
    data = saved(image, pnginfo=text, dpi=(72, 72), icc_profile=b"not looked at")
    assert quick(data) is not None
    assert agree(data)
    assert np.array_equal(decode_bytes(data), decode_bytes(saved(image)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_before_the_pixels_and_behind_them(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    before = saved(picture(20, 30, "RGB"), exif=exif)
    place = before.index(b"eXIf") - 4
    length = 12 + int.from_bytes(before[place : place + 4], "big")
    behind = before[:place] + before[place + length : -12] + before[place : place + length] + before[-12:]
    assert quick(before) is not None
    assert quick(behind) is None
    for data in (before, behind):
        assert agree(data)
        assert decode_bytes(data).shape == ((3, 30, 20) if orientation < 5 else (3, 20, 30))
    assert np.array_equal(decode_bytes(before), decode_bytes(behind))


def test_whatever_is_not_plain_is_pillows() -> None:
    colour = picture(24, 18, "RGB")
    gray_and_clear = saved(colour.convert("L"), transparency=7)
    frames = saved(colour, save_all=True, append_images=[picture(24, 18, "RGB", 1)])
    for image, options in (
        (colour.convert("P"), {}),
        (colour.convert("1"), {}),
        (colour.convert("RGBA"), {}),
        (colour.convert("LA"), {}),
        (PIL.Image.fromarray(np.full((9, 9), 40000, np.uint16)), {}),
        (colour, {"transparency": (1, 2, 3)}),
    ):
        agree(saved(image, **options))
    for data in (gray_and_clear, frames, saved(colour, transparency=(1, 2, 3))):
        assert quick(data) is None
        agree(data)


def changed(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def test_files_that_are_not_quite_right_are_pillows() -> None:
    rng, width, height = np.random.default_rng(0), 21, 13
    rows = random_rows(rng, width, height, 3)
    good, stream = png(rows, width, height, 3), zlib.compress(rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    end = chunk(b"IEND", b"")
    wrong = {
        "a row with filter 5": png(changed(rows, 2 * (1 + 3 * width), b"\5"), width, height, 3),
        "a row too few": png(rows[: -1 - 3 * width], width, height, 3),
        "a row too many": png(rows + rows[: 1 + 3 * width], width, height, 3),
        "a bomb": png(rows + bytes(1 << 24), width, height, 3),
        "another checksum of the pixels": SIGNATURE + header + chunk(b"IDAT", stream[:-1] + b"\0") + end,
        "no checksum of the pixels": SIGNATURE + header + chunk(b"IDAT", stream[:-4]) + end,
        "bytes behind the pixels": SIGNATURE + header + chunk(b"IDAT", stream + b"more") + end,
        "text behind the pixels": png(rows, width, height, 3, after=[chunk(b"tEXt", b"a\0b")]),
        "pixels in two places": SIGNATURE
        + header
        + chunk(b"IDAT", stream[:20])
        + chunk(b"tEXt", b"a\0b")
        + chunk(b"IDAT", stream[20:])
        + end,
        "two headers": png(rows, width, height, 3, before=[header]),
        "an unknown part that is critical": png(rows, width, height, 3, before=[chunk(b"QuIt", b"")]),
        "no end": good[:-12],
        "half an end": good[:-4],
        "a wrong checksum of the pixels' chunk": changed(good, len(good) - 16, b"\0\0\0\0"),
        "a wrong checksum of the header": changed(good, 29, b"\0\0\0\0"),
        "a preset dictionary": SIGNATURE + header + chunk(b"IDAT", b"\x78\xbb" + stream[2:]) + end,
        "nothing but a signature": SIGNATURE,
    }
    assert decode_png(good, "RGB", (width, height)) is not None
    for name, data in wrong.items():
        assert decode_png(data, "RGB", (width, height)) is None, name
        agree(data)


def test_what_follows_the_end_is_nobodys() -> None:
    data = saved(picture(9, 9, "L")) + b"more"
    assert quick(data) is not None
    assert agree(data)


def test_nothing_is_decoded_of_a_file_of_another_size_than_pillow_read() -> None:
    data = saved(picture(40, 30, "RGB"))
    assert decode_png(data, "RGB", (40, 30)) is not None
    assert decode_png(data, "RGB", (30, 40)) is None
    assert decode_png(data, "L", (40, 30)) is None


def test_without_the_native_module_pillow_reads_all(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(picture(40, 30, "RGB"))
    expected = decode_bytes(data)
    monkeypatch.setattr("dlmt_fast.stores.png_reader.unfilter", None)
    assert quick(data) is None
    assert np.array_equal(decode_bytes(data), expected)


def test_the_binding_refuses_what_it_could_not_do() -> None:
    rows, out = np.zeros(2 * 7, np.uint8), np.empty((2, 2, 3), np.uint8)
    assert native.unfilter(rows, out)
    assert native.unfilter(np.empty(0, np.uint8), np.empty((0, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="do not have the size"):
        native.unfilter(rows[:-1], out)
    with pytest.raises(ValueError, match=r"shape \(H, W, C\)"):
        native.unfilter(rows, np.empty((2, 3, 2), np.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        native.unfilter(np.zeros(28, np.uint8)[::2], out)
    with pytest.raises(ValueError, match="contiguous"):
        native.unfilter(rows, np.empty((3, 2, 2), np.uint8).transpose(1, 2, 0))
    with pytest.raises(ValueError, match="overlap"):
        native.unfilter(rows, rows[:12].reshape(2, 2, 3))
    with pytest.raises(ValueError, match="read-only"):
        native.unfilter(rows, np.broadcast_to(np.uint8(0), (2, 2, 3)))
    with pytest.raises(TypeError, match="uint8"):
        native.unfilter(rows.astype(np.int8), out)


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, cut out, put in or doubled, or its end cut off; half the time with checksums of
    its chunks made right again, so that damage comes through to what they guard."""
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place, other = rng.randrange(len(new)), rng.randrange(len(new))
        how = rng.randrange(7)
        if how == 0:
            new[place] = rng.randrange(256)
        elif how == 1:
            new[place] ^= 1 << rng.randrange(8)
        elif how == 2 and len(new) > 80:
            del new[place : place + rng.randint(1, 20)]
        elif how == 3:
            new[place:place] = rng.randbytes(rng.randint(1, 20))
        elif how == 4:
            new[place:place] = chunk(rng.choice([b"IDAT", b"tRNS", b"tEXt", b"PLTE", b"IEND"]), rng.randbytes(4))
        elif how == 5:
            new[place:place] = new[other : other + rng.randint(1, 60)]
        elif place > 40:
            del new[place:]
    return mended(bytes(new)) if rng.random() < 0.5 else bytes(new)


def mended(data: bytes) -> bytes:
    """With the right checksum behind each chunk that can be found."""
    new, place = bytearray(data), len(SIGNATURE)
    while place + 12 <= len(new):
        end = place + 8 + int.from_bytes(new[place : place + 4], "big")
        if end + 4 > len(new):
            break
        new[end : end + 4] = struct.pack(">I", zlib.crc32(new[place + 4 : end]))
        place = end + 4
    return bytes(new)


def whole_files(rng: random.Random) -> list[bytes]:
    files = []
    for number in range(16):
        width, height, channels = rng.randint(1, 40), rng.randint(1, 40), rng.choice([1, 3])
        if number % 2:
            files.append(saved(picture(width, height, MODES[channels], number)))
        else:
            rows = random_rows(np.random.default_rng(number), width, height, channels)
            files.append(png(rows, width, height, channels, rng.choice([0, 1, 9]), rng.choice([50, 1 << 20])))
    return files


def try_many(seed: int, count: int) -> Counter[bool]:
    """How many damaged files are images still. Some claim sizes that take seconds to decode, and are left out."""
    rng, taken = random.Random(seed), Counter[bool]()
    files = whole_files(rng)
    for _ in range(count):
        data = damaged(rng.choice(files), rng)
        try:
            large = np.prod(probe_bytes(data, None)) > 1 << 22
        except ImageError:
            large = False
        if not large:
            taken[describes_an_unused_code(data) or agree(data)] += 1
    return taken


def describes_an_unused_code(data: bytes) -> bool:
    """Whether zlib refuses the description of a code in the stream, and all checksums are right nevertheless."""
    try:
        if quick(data) is None:
            return False
    except (PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, SyntaxError, OSError, ValueError, KeyError):
        return False  # not even a header, or of a mode that it does not know
    stream, place = b"", len(SIGNATURE)
    while data[place + 4 : place + 8] != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, place)
        stream += data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += 12 + length
    try:
        zlib.decompress(stream)
    except zlib.error as error:
        why = str(error)
    else:
        return False
    assert re.search(r"invalid (distances|literal/lengths|code lengths) set", why)
    assert int.from_bytes(stream[-4:], "big") == zlib.adler32(isal_zlib.decompress(stream))
    return True


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_are_what_pillow_says_they_are() -> None:
    taken = try_many(0, 3000)
    assert min(taken.values()) > 200


@pytest.mark.long
def test_no_damage_ends_the_process() -> None:
    """In a process of its own, whose end would be seen."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import warnings; "
    program += "warnings.simplefilter('ignore'); import test_png_reader as t; print(dict(t.try_many(1, 100_000)))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
