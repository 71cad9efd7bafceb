"""One image file to uint8 pixels (C, H, W), exactly, or a refusal that names the reason.

Pillow reads every header, and the pixels too but for plain JPEG and PNG; see `jpeg.decode_jpeg` and
`png_reader.decode_png` for which. An image lies in memory as decoders give it, pixel by pixel (H, W, C): kernels and
encoders take it so, and nobody turns it on the way.

Orientation from EXIF is applied; everything else beside the pixels is dropped. Conversions that lose nothing happen by
themselves (palette to RGB, bilevel to gray, an alpha channel that is opaque everywhere is dropped); those that change
pixels happen only where `channels` asks for them; the rest is refused.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import isal
import numpy as np
import PIL.Image
import PIL.ImageOps
import simplejpeg
from numpy.typing import NDArray

from ..errors import DlmtError, ImageError
from .contract import FileStamp, Shape
from .jpeg import decode_jpeg
from .png_reader import PNG_IS_OURS, decode_png
from .reading import opened

T = TypeVar("T")

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"})
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP")  # "JPEG" opens MPO too, which is registered nowhere
_GRAY, _COLOUR = {"1", "L", "LA", "La"}, {"RGB", "P", "PA", "RGBA", "RGBa", "RGBX"}
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_CONVERTED = {"CMYK", "YCbCr"}
_PLAIN = {"L", "RGB"}
_SIXTEEN = re.compile("(?<!BGR);16")  # BGR;16 is BMP's 5, 6 and 5 bits
_ORIENTATION = 0x0112
_TRANSPOSED = {  # by EXIF orientation
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_DECODER_ERRNO = {None, errno.EINVAL, errno.EOVERFLOW}  # of an OSError that content causes, such as an absurd offset
_BOMB = f"it claims more than {PIL.Image.MAX_IMAGE_PIXELS} pixels, as a decompression bomb does"


def decoders() -> dict[str, str]:
    """Versions of what pixels come from; whether the native module is built decides who decodes PNG."""
    versions = {"pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__, "isal": isal.__version__}
    return versions | {"native module": "built" if PNG_IS_OURS else "missing"}


def probe(path: Path, channels: int | None, stamp: FileStamp | None = None) -> Shape:
    """The shape that `decode` will give, from the header alone.

    Raises:
        ImageError: the file cannot be taken.
        OSError: it cannot be read. StoreError: it is remote, and not as in its stamp.
    """
    with opened(path, stamp) as file:
        return _guarded(lambda: _probe(file, channels))


def probe_bytes(data: bytes, channels: int | None) -> Shape:
    """As `probe`, of a file's bytes."""
    return _guarded(lambda: _probe(io.BytesIO(data), channels))


def decode(
    path: Path, channels: int | None = None, size: tuple[int, int] | None = None, fit: str = "crop"
) -> NDArray[np.uint8]:
    """The pixels of an image file; see `decode_bytes`.

    Raises:
        ImageError: the file cannot be taken.
        OSError: it cannot be read.
    """
    return decode_bytes(path.read_bytes(), channels, size, fit)  # an I/O error is not taken for a damaged image


def decode_bytes(
    data: bytes, channels: int | None = None, size: tuple[int, int] | None = None, fit: str = "crop"
) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 (C, H, W), a view of memory (H, W, C).

    Args:
        data: the file's bytes.
        channels: 1 or 3 converts; None takes the file's own.
        size: (H, W) to scale to with Pillow's antialiased bicubic filter; None keeps the size.
        fit: "crop" covers the size and cuts the centre, "stretch" ignores the aspect, "pad" adds black borders.

    Raises:
        ImageError: the file cannot be taken.
    """
    return _guarded(lambda: _decode(data, channels, size, fit))


def _guarded(work: Callable[[], T]) -> T:
    """Run a decoder; whatever it raises on damaged content becomes an ImageError."""
    try:
        return work()
    except (DlmtError, MemoryError):  # of ours: ImageError, and what a remote store does not give
        raise
    except PIL.UnidentifiedImageError:
        raise ImageError("the content is no PNG, JPEG, BMP, TIFF or WebP image") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise ImageError(_BOMB) from None
    except Exception as error:  # image plugins raise almost anything on damaged content
        if isinstance(error, OSError) and error.errno not in _DECODER_ERRNO:
            raise  # the disk failed, not the image
        raise ImageError(f"it cannot be decoded ({type(error).__name__}: {error})") from None


def _open(file: Any) -> PIL.Image.Image:
    if not file.read(1):
        raise ImageError("the file is empty")
    file.seek(0)
    image = PIL.Image.open(file, formats=_FORMATS)
    if image.width * image.height > (PIL.Image.MAX_IMAGE_PIXELS or sys.maxsize):
        raise ImageError(_BOMB)
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a photograph with previews behind it
        raise ImageError(f"it holds {image.n_frames} frames; split it into single images")  # type: ignore[attr-defined]
    raw_modes = [str(tile[3]) for tile in image.tile]
    if image.mode in ("I", "F") or image.mode.startswith("I;") or any(_SIXTEEN.search(raw) for raw in raw_modes):
        raise ImageError("its samples have more than 8 bits; convert it to 8 bits a channel first")
    return image


def _channels(image: PIL.Image.Image, channels: int | None) -> int:
    if image.mode in _CONVERTED and channels is None:
        raise ImageError(f"its colour mode is {image.mode}; --channels 3 converts it to RGB")
    if image.mode not in _GRAY | _COLOUR | _CONVERTED:
        raise ImageError(f"its colour mode {image.mode} is not supported; convert it to RGB first")
    return channels or (1 if image.mode in _GRAY else 3)


def _probe(file: Any, channels: int | None) -> Shape:
    image = _open(file)
    width, height = image.size
    if image.format == "TIFF":  # whose size some versions of Pillow turn already
        width, height = (image.tag_v2[tag] for tag in (256, 257))  # type: ignore[attr-defined]
    exif = PIL.Image.Image.getexif(image) if _exif_is_read(image, file) else image.getexif()
    if exif.get(_ORIENTATION, 1) in (5, 6, 7, 8):
        width, height = height, width
    return _channels(image, channels), height, width


def _exif_is_read(image: PIL.Image.Image, file: Any) -> bool:
    """Whether an opened image knows its EXIF. A PNG may hold it behind the pixels, which its `getexif` then decodes."""
    if image.format != "PNG":
        return False
    place, kinds = file.tell(), []
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        kinds.append(head[4:])
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    file.seek(place)
    behind = kinds[kinds.index(b"IDAT") :] if b"IDAT" in kinds else kinds
    return head[4:] == b"IEND" and not {b"eXIf", b"tEXt", b"zTXt", b"iTXt"} & set(behind)


def _decode(data: bytes, channels: int | None, size: tuple[int, int] | None, fit: str) -> NDArray[np.uint8]:
    image = _open(io.BytesIO(data))
    mode = "L" if _channels(image, channels) == 1 else "RGB"
    pixels = _quickly(data, image)
    if pixels is None:
        image.load()
    exif = image.getexif() if pixels is None else PIL.Image.Image.getexif(image)  # PNG's own would load the pixels
    turn = _TRANSPOSED.get(exif.get(_ORIENTATION, 1))  # a loaded TIFF is turned already, and says so
    if pixels is not None:
        if turn is None and image.mode == mode and size in (None, image.size[::-1]):
            return pixels.transpose(2, 0, 1)
        image = PIL.Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])
    image = image if turn is None else image.transpose(turn)
    if image.mode in _ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] != 255:
            raise ImageError("it is partly transparent; flatten it onto a background first")
        image = rgba.convert("RGB") if image.mode not in _GRAY else rgba.getchannel("R")
    if image.mode != mode:
        image = image.convert("RGB").convert(mode) if image.mode not in ("1", "L") else image.convert(mode)
    if size is not None and (size[1], size[0]) != image.size:
        image = _resize(image, (size[1], size[0]), fit)
    values = np.asarray(image, np.uint8)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _quickly(data: bytes, image: PIL.Image.Image) -> NDArray[np.uint8] | None:
    """The pixels (H, W, C), where a faster decoder than Pillow's is sure of them."""
    if image.mode not in _PLAIN:
        return None
    if image.format == "JPEG":
        return decode_jpeg(data, image.mode, image.size)
    return decode_png(data, image.mode, image.size) if image.format == "PNG" else None


def _resize(image: PIL.Image.Image, size: tuple[int, int], fit: str) -> PIL.Image.Image:
    bicubic = PIL.Image.Resampling.BICUBIC
    if fit == "crop":
        return PIL.ImageOps.fit(image, size, bicubic)
    if fit == "pad":
        return PIL.ImageOps.pad(image, size, bicubic, color=0)
    return image.resize(size, bicubic)
