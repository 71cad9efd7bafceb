"""One image file to pixels: exactly, or a refusal that names the reason; `probe` foretells what `decode` gives."""

from __future__ import annotations

import errno
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from dlmt_fast.errors import ImageError
from dlmt_fast.stores.decode import SUFFIXES, decode, probe

W, H = 11, 7
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}


def picture(mode: str, seed: int = 0) -> PIL.Image.Image:
    """Random pixels; an alpha channel is opaque."""
    rng = np.random.default_rng(seed)
    if mode == "1":
        return PIL.Image.fromarray(rng.integers(0, 2, (H, W), np.uint8) * 255).convert("1")
    if mode == "P":
        image = PIL.Image.fromarray(rng.integers(0, 16, (H, W), np.uint8), "L")
        image = PIL.Image.frombytes("P", (W, H), image.tobytes())
        image.putpalette(rng.integers(0, 256, 48, np.uint8).tobytes())
        return image
    bands = [rng.integers(0, 256, (H, W), np.uint8) for _ in mode]
    if mode.endswith("A"):
        bands[-1][...] = 255
    return PIL.Image.merge(mode, [PIL.Image.fromarray(band) for band in bands])


def saved(path: Path, image: PIL.Image.Image, form: str, **options: Any) -> Path:
    image.save(path, form, **options)
    return path


def check(path: Path, expected: np.ndarray[Any, Any], channels: int | None = None) -> None:
    """Both say (C, H, W), and the pixels are those expected, (H, W) or (H, W, 3)."""
    pixels = decode(path, channels)
    assert pixels.dtype == np.uint8
    assert pixels.transpose(1, 2, 0).flags.c_contiguous  # kernels and encoders take it without turning it
    assert probe(path, channels) == pixels.shape
    assert np.array_equal(pixels, expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1))


def refused(path: Path, match: str, also_by_probe: bool = True, channels: int | None = None) -> None:
    with pytest.raises(ImageError, match=match):
        decode(path, channels)
    if also_by_probe:
        with pytest.raises(ImageError, match=match):
            probe(path, channels)


@pytest.mark.parametrize(
    ("form", "mode"),
    [(form, mode) for form in ("PNG", "BMP", "TIFF") for mode in ("1", "L", "P", "RGB", "RGBA")]
    + [("PNG", "LA"), ("TIFF", "LA")]
    + [("WEBP", "RGB"), ("WEBP", "RGBA"), ("JPEG", "L"), ("JPEG", "RGB")],
)
def test_formats_and_modes(form: str, mode: str, tmp_path: Path) -> None:
    image = picture(mode)
    path = saved(tmp_path / "x.img", image, form, **LOSSLESS.get(form, {}))
    gray = mode in ("1", "L", "LA")
    if form == "JPEG":
        with PIL.Image.open(path) as opened:
            image = opened.convert(mode)
    expected = np.asarray(image.convert("L" if gray else "RGB"))
    check(path, expected)
    check(path, np.asarray(PIL.Image.fromarray(expected).convert("RGB")), channels=3)
    check(path, np.asarray(PIL.Image.fromarray(expected).convert("L")), channels=1)


@pytest.mark.parametrize(("form", "mode"), [("PNG", "LA"), ("PNG", "RGBA"), ("TIFF", "RGBA"), ("WEBP", "RGBA")])
def test_transparent_images_are_refused(form: str, mode: str, tmp_path: Path) -> None:
    image = picture(mode)
    image.putpixel((3, 4), (*image.getpixel((3, 4))[:-1], 254))  # type: ignore[index]
    path = saved(tmp_path / "x.img", image, form, **LOSSLESS[form])
    refused(path, "partly transparent", also_by_probe=False)
    assert probe(path, None) == (1 if mode == "LA" else 3, H, W)


@pytest.mark.parametrize(("mode", "used", "unused"), [("RGB", (9, 8, 7), (1, 2, 3)), ("L", 9, 1)])
def test_a_transparent_colour(mode: str, used: Any, unused: Any, tmp_path: Path) -> None:
    image = PIL.Image.new(mode, (W, H), used)
    check(saved(tmp_path / "a.png", image, "PNG", transparency=unused), np.asarray(image))
    refused(saved(tmp_path / "b.png", image, "PNG", transparency=used), "partly transparent", also_by_probe=False)


@pytest.mark.parametrize(("alpha", "taken"), [(255, True), (0, False)])
def test_a_palette_with_alpha(alpha: int, taken: bool, tmp_path: Path) -> None:
    image = picture("P")
    path = saved(tmp_path / "x.png", image, "PNG", transparency=bytes([alpha] * 16))
    if taken:
        check(path, np.asarray(image.convert("RGB")))
    else:
        refused(path, "partly transparent", also_by_probe=False)


def test_cmyk_needs_channels(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jpg", picture("CMYK"), "JPEG")
    refused(path, "colour mode is CMYK; --channels 3")
    with PIL.Image.open(path) as opened:
        rgb = opened.convert("RGB")
    check(path, np.asarray(rgb), channels=3)
    check(path, np.asarray(rgb.convert("L")), channels=1)


def png(colour: int, depth: int, rows: bytes) -> bytes:
    """A PNG file by hand: Pillow cannot write 16-bit colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", W, H, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_refused(colour: int, samples: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(colour, 16, (b"\0" + b"\xff\x80" * (W * samples)) * H))
    with PIL.Image.open(path) as opened:
        opened.load()  # Pillow takes it, the colour ones as 8 bits without a word
    refused(path, "more than 8 bits")
    refused(path, "more than 8 bits", channels=3)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_of_gray_are_scaled_exactly(depth: int, tmp_path: Path) -> None:
    values = np.random.default_rng(depth).integers(0, 1 << depth, (H, W))
    bits = ((values[..., None] >> np.arange(depth)[::-1]) & 1).reshape(H, -1).astype(np.uint8)
    path = tmp_path / "x.png"
    path.write_bytes(png(0, depth, b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)))
    check(path, (values * (255 // ((1 << depth) - 1))).astype(np.uint8))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_wide_tiff_is_refused(mode: str, tmp_path: Path) -> None:
    refused(saved(tmp_path / "x.tif", PIL.Image.new(mode, (W, H), 7), "TIFF"), "more than 8 bits")


def test_sixteen_bit_colour_tiff_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((H, W, 3), np.uint16), photometric="rgb")
    with pytest.raises(ImageError):
        decode(path)
    with pytest.raises(ImageError):
        probe(path, None)


@pytest.mark.parametrize("masks", [(0xF800, 0x07E0, 0x001F), (0x7C00, 0x03E0, 0x001F)])
def test_a_bitmap_of_sixteen_bits_a_pixel_has_fewer_a_sample(masks: tuple[int, int, int], tmp_path: Path) -> None:
    rows = np.random.default_rng(1).integers(0, 0x8000, (4, 6), np.uint16)
    info = struct.pack("<IiiHHIIiiII", 40, 6, 4, 1, 16, 3, rows.nbytes, 1, 1, 0, 0) + struct.pack("<III", *masks)
    path = tmp_path / "x.bmp"
    path.write_bytes(struct.pack("<2sIHHI", b"BM", 66 + rows.nbytes, 0, 0, 66) + info + rows.tobytes())
    with PIL.Image.open(path) as opened:
        check(path, np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(form: str, orientation: int, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "x.img", picture("RGB"), form, exif=exif, **LOSSLESS.get(form, {}))
    with PIL.Image.open(path) as opened:
        expected = np.asarray(PIL.ImageOps.exif_transpose(opened))
    assert expected.shape == ((H, W, 3) if orientation < 5 else (W, H, 3))
    check(path, expected)


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    path = saved(tmp_path / "x.png", picture("RGB"), "PNG")
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk + data[-12:])
    check(path, np.rot90(np.asarray(picture("RGB")), -1))


def test_probing_decodes_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    paths = [saved(tmp_path / form, picture("RGB"), form, exif=exif) for form in ("PNG", "JPEG", "TIFF")]
    paths.append(saved(tmp_path / "plain", picture("RGB"), "PNG"))

    def fail(*args: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert [probe(path, None) for path in paths] == [(3, W, H)] * 3 + [(3, H, W)]


def test_odd_exif_values_do_no_harm(tmp_path: Path) -> None:
    ifd = struct.pack("<H", 2) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHIf", 0x9206, 11, 1, 1e30)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + ifd + bytes(4)
    path = saved(tmp_path / "x.png", picture("RGB"), "PNG", exif=exif)
    check(path, np.rot90(np.asarray(picture("RGB")), -1))


def test_metadata_stays_behind(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x010F] = "Maker of secrets"
    info = {"exif": exif, "icc_profile": b"secret profile" * 20, "dpi": (300, 300)}
    path = saved(tmp_path / "x.png", picture("RGB"), "PNG", **info)
    pixels = decode(path)
    assert type(pixels) is np.ndarray
    assert pixels.size == 3 * H * W
    assert np.array_equal(pixels, decode(saved(tmp_path / "y.png", picture("RGB"), "PNG")))


def frames(form: str) -> bytes:
    buffer = io.BytesIO()
    picture("RGB").save(buffer, form, save_all=True, append_images=[picture("RGB", 1)])
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP"])
def test_several_frames_are_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(frames(form))
    refused(path, "2 frames")


def test_mpo_gives_its_photograph(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(frames("MPO"))
    with PIL.Image.open(path) as opened:
        assert opened.format == "MPO"
        check(path, np.asarray(opened))


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_what_is_no_image(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"")
    refused(path, "empty")
    path.write_text("dear diary\n" * 100)
    refused(path, "no PNG, JPEG, BMP, TIFF or WebP")
    picture("L").save(path, "GIF")
    refused(path, "no PNG, JPEG, BMP, TIFF or WebP")


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    check(saved(tmp_path / "x.jpg", picture("RGB"), "PNG"), np.asarray(picture("RGB")))


@pytest.mark.parametrize(("form", "slack"), [("PNG", 20), ("JPEG", 2), ("BMP", 3), ("TIFF", 0), ("WEBP", 1)])
def test_truncated_files_are_refused(form: str, slack: int, tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", picture("RGB"), form, **LOSSLESS.get(form, {})).read_bytes()
    path = tmp_path / "cut"
    complete = decode(tmp_path / "whole")
    taken = []
    for size in range(0, len(whole), max(1, len(whole) // 97)):
        path.write_bytes(whole[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of a truncated TIFF directory
            try:
                pixels = decode(path)
            except ImageError:
                continue
        taken.append(size)
        assert np.array_equal(pixels, complete), f"{size} bytes give other pixels"
    assert all(size >= len(whole) - slack for size in taken), taken


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.png", picture("RGB"), "PNG")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", W * H)
    check(path, np.asarray(picture("RGB")))
    for limit in (W * H - 1, W * H // 2 - 1, 1):
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        refused(path, "decompression bomb")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused(path, "decompression bomb")


def test_a_header_that_claims_much_allocates_little(tmp_path: Path) -> None:
    data = png(2, 8, b"")
    path = tmp_path / "x.png"
    path.write_bytes(data[:16] + struct.pack(">II", 1 << 30, 1 << 30) + data[24:])
    with pytest.raises(ImageError):
        decode(path)


@pytest.mark.parametrize("reader", [decode, lambda path: probe(path, None)])
def test_disk_errors_are_not_the_images_fault(
    reader: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "none.png")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = saved(tmp_path / "x.png", picture("RGB"), "PNG")
    monkeypatch.setattr(PIL.Image, "open", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        reader(path)
    assert not isinstance(caught.value, ImageError)


SIZES = [(7, 11), (14, 22), (5, 5), (40, 6), (6, 40), (1, 1)]


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_size_and_fit(size: tuple[int, int], mode: str, tmp_path: Path) -> None:
    image = picture(mode)
    path = saved(tmp_path / "x.png", image, "PNG")
    plain = image.convert("RGB") if mode == "P" else image
    bicubic, box = PIL.Image.Resampling.BICUBIC, (size[1], size[0])
    expected = {
        "crop": PIL.ImageOps.fit(plain, box, bicubic),
        "stretch": plain.resize(box, bicubic),
        "pad": PIL.ImageOps.pad(plain, box, bicubic, color=0),
    }
    for fit, resized in expected.items():
        pixels = decode(path, size=size, fit=fit)
        assert pixels.shape == (1 if mode == "L" else 3, *size)
        assert np.array_equal(
            pixels, np.asarray(resized)[None] if mode == "L" else np.asarray(resized).transpose(2, 0, 1)
        )


def test_crop_covers_and_cuts_the_centre(tmp_path: Path) -> None:
    pixels = np.repeat(np.array([[10, 200, 200, 10]], np.uint8), 2, axis=0)
    path = saved(tmp_path / "x.png", PIL.Image.fromarray(pixels), "PNG")
    assert decode(path, size=(2, 2), fit="crop")[0].tolist() == [[200, 200], [200, 200]]
    padded = decode(path, size=(4, 4), fit="pad")[0]
    assert padded.tolist() == [[0] * 4, [10, 200, 200, 10], [10, 200, 200, 10], [0] * 4]


def test_pad_takes_extreme_shapes(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", PIL.Image.new("L", (1000, 1), 9), "PNG")
    assert decode(path, size=(8, 8), fit="pad").shape == (1, 8, 8)
