"""Safe decoding of untrusted image bytes into plain RGB pixels.

The format is taken from the magic bytes, never from a name; only PNG, JPEG and WebP are opened, each by its own
decoder alone. Size limits are checked on the header, before a pixel is decoded. One decoder serves training and
serving, so both see the same pixels.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from rebus.errors import InvalidArgumentError, invalid

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
# Broken EXIF makes Pillow warn once a file, while the pixels are sound; a dataset of such files would drown the log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

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


def sniff_format(data: bytes) -> ImageFormat | None:
    """The format that the magic bytes announce, or None for any other than PNG, JPEG and WebP."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def image_size(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image") -> tuple[int, int]:
    """``(width, height)`` as stored, read from the header alone; ``InvalidArgumentError`` as ``decode_image``."""
    return _open(data, limits, field).size


def decode_image(
    data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, background: Color = WHITE, field: str = "image"
) -> np.ndarray:
    """Decodes to uint8 ``[H, W, 3]``: upright by its EXIF orientation, alpha laid over ``background``.

    Palettes, grey, CMYK and 16-bit channels become 8-bit RGB; of an animation the first frame is taken.
    Raises ``InvalidArgumentError`` naming ``field`` for an unknown format, a broken or truncated file, or one
    beyond ``limits``.
    """
    image = _open(data, limits, field)
    orientation = _orientation(image)
    try:
        image.load()
        rgb = _to_rgb(image, background)
    except _DECODE_ERRORS as error:
        raise _broken(field, image.format or "image", error) from None
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb, dtype=np.uint8)


def _open(data: bytes, limits: ImageLimits, field: str) -> Image.Image:
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
    return image


def _broken(field: str, kind: str, error: BaseException) -> InvalidArgumentError:
    return invalid(field, f"corrupt or truncated {kind}: {' '.join(str(error).split()) or type(error).__name__}")


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
