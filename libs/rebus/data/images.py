"""Safe decoding of untrusted image bytes into plain RGB pixels.

The format is taken from the magic bytes, never from a name; only PNG, JPEG and WebP are opened, each by its own
decoder alone. Size limits are checked on the header, before a pixel is decoded. One decoder serves training and
serving, so both see the same pixels.

Pillow reads every header. The pixels of an intact grey or colour JPEG come from libjpeg-turbo through simplejpeg,
which are those of Pillow bit for bit, without the interpreter's lock and, where the caller wants fewer, at a fraction
of the size; whatever else, and whatever simplejpeg refuses, is Pillow's to decode or to refuse.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from rebus.errors import InvalidArgumentError, invalid

# Encoded bytes; a view into a larger buffer is read without a copy.
ImageBytes = bytes | memoryview
ImageFormat = Literal["PNG", "JPEG", "WEBP"]
Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)

EXIF_ORIENTATION = 0x0112
# EXIF orientation -> the transposition that turns stored pixels upright (EXIF 2.32, section 4.6.4).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The orientations that lie on their side.
_SIDEWAYS = (5, 6, 7, 8)
# Broken EXIF makes Pillow warn once a file, while the pixels are sound; a dataset of such files would drown the log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

# A progressive JPEG goes over its pixels once a scan, so scans x pixels is what it costs, whatever its size in bytes.
# Encoders make about 10 scans.
_MAX_SCANS_OF_MAX_PIXELS = 16
_START_OF_SCAN = b"\xff\xda"

# What Pillow's decoders raise on malformed input.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    OverflowError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Bounds on one encoded image, checked before its pixels are decoded."""

    max_bytes: int = 32 << 20
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise ValueError(f"limits must be positive, got {self}")


DEFAULT_LIMITS = ImageLimits()


def sniff_format(data: ImageBytes) -> ImageFormat | None:
    """The format that the magic bytes announce, or None for any other than PNG, JPEG and WebP."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def image_size(data: ImageBytes, *, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image") -> tuple[int, int]:
    """``(width, height)`` as stored, read from the header alone; ``InvalidArgumentError`` as ``decode_image``."""
    return _open(data, limits, field).size


def decode_image(
    data: ImageBytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    background: Color = WHITE,
    min_size: tuple[int, int] | None = None,
    field: str = "image",
) -> np.ndarray:
    """Decodes to uint8 ``[H, W, 3]``: upright by its EXIF orientation, alpha laid over ``background``.

    Palettes, grey, CMYK and 16-bit channels become 8-bit RGB; of an animation the first frame is taken. ``min_size`` as
    in ``OpenedImage.decode``. Raises ``InvalidArgumentError`` naming ``field`` for an unknown format, a broken or
    truncated file, or one beyond ``limits``.
    """
    return OpenedImage(data, limits=limits, field=field).decode(background=background, min_size=min_size)


class OpenedImage:
    """An encoded image whose header was read within ``limits``, so that its size may decide how it is decoded.

    Errors as ``decode_image``.
    """

    def __init__(self, data: ImageBytes, *, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image") -> None:
        self._data, self._field = data, field
        self._image = _open(data, limits, field)
        self._orientation = _orientation(self._image)

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` upright."""
        return self._turned((self._image.height, self._image.width))

    def decode(self, *, background: Color = WHITE, min_size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 ``[H, W, 3]`` as ``decode_image``.

        With ``min_size`` a JPEG may come at 1/2, 1/4 or 1/8 of its size (scaled in the DCT domain, sides rounded up),
        the smallest that has at least that height and width, upright; without, at full size.
        """
        pixels = _decode_jpeg(self._data, self._image, None if min_size is None else self._turned(min_size))
        if pixels is None:
            try:
                self._image.load()
                pixels = np.array(_to_rgb(self._image, background), dtype=np.uint8)
            except _DECODE_ERRORS as error:
                raise _broken(self._field, self._image.format or "image", error) from None
        if self._orientation in _UPRIGHT:
            pixels = np.array(Image.fromarray(pixels).transpose(_UPRIGHT[self._orientation]))
        return pixels

    def _turned(self, size: tuple[int, int]) -> tuple[int, int]:
        """A stored ``(height, width)`` upright, or an upright one as stored."""
        return (size[1], size[0]) if self._orientation in _SIDEWAYS else size


def _open(data: ImageBytes, limits: ImageLimits, field: str) -> Image.Image:
    """Opens the header within the limits; decodes nothing."""
    if len(data) > limits.max_bytes:
        raise invalid(field, f"{len(data)} bytes, more than the limit of {limits.max_bytes}")
    kind = sniff_format(data)
    if kind is None:
        found = "empty file" if not data else f"starts with {data[:8].hex(' ')}"
        raise invalid(field, f"not a PNG, JPEG or WebP image ({found})")
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
    except _DECODE_ERRORS as error:
        raise _broken(field, kind, error) from None
    width, height = image.size
    if width * height > limits.max_pixels:
        raise invalid(field, f"{width}x{height} pixels, more than the limit of {limits.max_pixels} pixels")
    if "progressive" in image.info:
        scans = bytes(data).count(_START_OF_SCAN)
        if scans * width * height > _MAX_SCANS_OF_MAX_PIXELS * limits.max_pixels:
            raise invalid(
                field,
                f"{scans} scans over {width}x{height} pixels, more work than {_MAX_SCANS_OF_MAX_PIXELS} scans over "
                f"the limit of {limits.max_pixels} pixels",
            )
    return image


def _decode_jpeg(data: ImageBytes, image: Image.Image, min_size: tuple[int, int] | None) -> np.ndarray | None:
    """uint8 ``[H, W, 3]`` by simplejpeg, as stored; None where Pillow must decide.

    CMYK is left to Pillow, which converts it otherwise. Strict decoding raises for a truncated or damaged file, where
    libjpeg alone would fill the rest with grey.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    factor = _jpeg_factor((image.height, image.width), min_size)
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:  # the limits were checked on another size
            return None
        # The least size that both bounds admit is exactly 1 / factor.
        return simplejpeg.decode_jpeg(
            data,
            min_height=-(-image.height // factor),
            min_width=-(-image.width // factor),
            min_factor=factor,
        )
    except ValueError:
        return None


def _jpeg_factor(size: tuple[int, int], min_size: tuple[int, int] | None) -> int:
    """By what ``size`` may be divided; powers of two alone have a fast inverse DCT."""
    if min_size is None:
        return 1
    bounds = list(zip(size, min_size, strict=True))
    return next((factor for factor in (8, 4, 2) if all(-(-side // factor) >= least for side, least in bounds)), 1)


def _broken(field: str, kind: str, error: BaseException) -> InvalidArgumentError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # its text names an object in memory
        reason = "unreadable header"
    return invalid(field, f"corrupt or truncated {kind}: {reason}")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1–8; unreadable EXIF counts as upright, since it says nothing against the pixels."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except _DECODE_ERRORS:
        return 1


def _to_rgb(image: Image.Image, background: Color) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _grey16_to_grey8(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _grey16_to_grey8(image: Image.Image) -> Image.Image:
    """Keeps the high byte, as Pillow does for 16-bit RGB, so that grey and colour agree.

    Pillow's own conversion clips at 255 instead of scaling. A transparent grey level becomes an alpha channel.
    """
    values = np.asarray(image, dtype=np.uint16)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        grey = Image.merge("LA", (grey, alpha))
    return grey
