"""libjpeg-turbo beside Pillow: the same pixels where it takes a file, and Pillow's word where it does not."""

from __future__ import annotations

import functools
import io
import random
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import beside_pillow
import numpy as np
import PIL.Image
import pytest
from beside_pillow import picture
from hypothesis import given
from hypothesis import strategies as st

from dlmt_fast.errors import ImageError
from dlmt_fast.stores import decode as decoding
from dlmt_fast.stores.decode import decode_bytes, probe_bytes
from dlmt_fast.stores.jpeg import decode_jpeg

agree = functools.partial(beside_pillow.agree, "decode_jpeg")

SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def saved(image: PIL.Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def quick(data: bytes, mode: str = "RGB") -> np.ndarray[Any, Any] | None:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return decode_jpeg(data, mode, image.size)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["L", "RGB"]),
    st.sampled_from([1, 30, 75, 90, 100]),
    st.sampled_from(list(SUBSAMPLINGS.values())),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([None, 1, 3]),
    st.integers(0, 1000),
)
def test_the_same_pixels_as_pillows(
    width: int,
    height: int,
    mode: str,
    quality: int,
    subsampling: int,
    progressive: bool,
    restart: int,
    channels: int | None,
    seed: int,
) -> None:
    colour = {"subsampling": subsampling} if mode == "RGB" else {}
    image = picture(width, height, mode, seed)
    data = saved(image, quality=quality, progressive=progressive, restart_marker_blocks=restart, **colour)
    assert quick(data, mode) is not None
    assert agree(data, channels)


@pytest.mark.parametrize("side", [224, 1024])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS.values(), ids=SUBSAMPLINGS)
def test_large_images_too(side: int, subsampling: int) -> None:
    assert agree(saved(picture(side, side - 1, "RGB"), quality=90, subsampling=subsampling))


def test_photographs() -> None:
    folder = Path(pytest.importorskip("skimage.data").__file__).parent
    for name in ("rocket.jpg", "retina.jpg", "hubble_deep_field.jpg"):
        data = (folder / name).read_bytes()
        assert quick(data) is not None
        assert agree(data)


def test_values_that_hold_rgb_and_not_ycbcr() -> None:
    data = saved(picture(33, 17, "RGB"), keep_rgb=True)
    assert quick(data) is not None
    assert agree(data)


def test_cmyk_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(PIL.Image.merge("CMYK", [picture(9, 9, "L", seed) for seed in range(4)]))
    monkeypatch.setattr(decoding, "decode_jpeg", lambda *arguments: pytest.fail("a CMYK file was given to it"))
    assert decode_bytes(data, channels=3).shape == (3, 9, 9)
    with pytest.raises(ImageError, match="colour mode is CMYK"):
        decode_bytes(data)


def test_a_sampling_that_it_does_not_know_is_pillows() -> None:
    data = bytearray(saved(picture(32, 32, "RGB"), subsampling=0, quality=50))
    sampling = data.index(b"\xff\xc0") + 11  # of the first component; 3x1 needs more blocks than there are
    assert data[sampling] == 0x11
    data[sampling] = 0x31
    assert quick(bytes(data)) is None
    agree(bytes(data))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_that_ends_early_is_refused_in_pillows_words(progressive: bool) -> None:
    whole = saved(picture(40, 30, "RGB"), progressive=progressive)
    for size in range(0, len(whole) - 2, 7):
        assert not agree(whole[:size])
    assert quick(whole[:-2]) is None  # no end marker


def test_harmless_bytes_between_markers_are_pillows_to_take() -> None:
    """Some cameras leave them; libjpeg-turbo warns, and the image is whole."""
    whole = saved(picture(40, 30, "RGB"))
    data = whole[:-2] + b"\0\0\0" + whole[-2:]
    assert quick(data) is None
    assert agree(data)
    assert np.array_equal(decode_bytes(data), decode_bytes(whole))


def test_nothing_is_decoded_of_a_file_of_another_size_than_pillow_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(picture(40, 30, "RGB"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *arguments, **options: pytest.fail("pixels were decoded"))
    assert decode_jpeg(data, "RGB", (30, 40)) is None
    assert decode_jpeg(data, "L", (40, 30)) is None  # colour where gray was read


def test_a_header_that_claims_much_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(saved(picture(16, 16, "RGB")))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 65500, 65500)
    monkeypatch.setattr(decoding, "decode_jpeg", lambda *arguments: pytest.fail("it was to be decoded"))
    for reader in (decode_bytes, lambda data: probe_bytes(data, None)):
        with pytest.raises(ImageError, match="decompression bomb"):
            reader(bytes(data))


# --- damage ----------------------------------------------------------------------------------------------------------

MARKERS = [
    b"\xff\xff",
    b"\0\0",
    b"\xff\xd9",
    b"\xff\xda",
    b"\xff\xc4",
    b"\xff\xdb",
    b"\x7f\xff",
    b"\xff\xc0",
    b"\xff\xdd",
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, cut out, put in, doubled, or its end cut off; more often near its start."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        place = rng.randrange(len(changed) if rng.random() < 0.6 else min(len(changed), 64))
        other = rng.randrange(len(changed))
        how = rng.randrange(7)
        if how == 0:
            changed[place] = rng.randrange(256)
        elif how == 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif how == 2 and len(changed) > 40:
            del changed[place : place + rng.randint(1, 20)]
        elif how == 3:
            changed[place:place] = rng.randbytes(rng.randint(1, 20))
        elif how == 4:
            changed[place : place + 2] = rng.choice(MARKERS)
        elif how == 5:
            changed[place:place] = changed[other : other + rng.randint(1, 60)]
        elif place > 20:
            del changed[place:]
    return bytes(changed)


def whole_files(rng: random.Random) -> list[bytes]:
    files = []
    for number in range(16):
        image = picture(rng.randint(1, 48), rng.randint(1, 48), rng.choice(["L", "RGB"]), number)
        colour = {"subsampling": rng.choice([0, 1, 2])} if image.mode == "RGB" else {}
        files.append(saved(image, quality=rng.choice([30, 75, 95]), progressive=rng.random() < 0.4, **colour))
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
            taken[agree(data)] += 1
    return taken


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged EXIF
def test_damaged_files_are_what_pillow_says_they_are() -> None:
    taken = try_many(0, 1500)
    assert min(taken.values()) > 200


@pytest.mark.long
def test_no_damage_ends_the_process() -> None:
    """In a process of its own, whose end would be seen."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import warnings; "
    program += "warnings.simplefilter('ignore'); import test_jpeg; print(dict(test_jpeg.try_many(1, 100_000)))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
