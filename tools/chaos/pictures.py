"""Pictures, and bytes that pretend to be some."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def _encoded(format: str, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 1).save(buffer, format)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


_PNG, _JPEG = _encoded("PNG"), _encoded("JPEG")
PICTURES = [
    _PNG,
    _PNG,
    _JPEG,
    _encoded("WEBP"),
    _encoded("GIF", "P"),
    _encoded("TIFF"),
    _encoded("PNG", "1"),
    _encoded("PNG", "I;16"),
    _encoded("PNG", "LA"),
    _encoded("JPEG", "CMYK"),
    _encoded("PNG", size=(1, 1)),
    _encoded("PNG", size=(1, 4000)),
    _PNG[: len(_PNG) // 2],
    _JPEG[: len(_JPEG) // 2],
    _JPEG[:20] + b"\xff" * 20 + _JPEG[40:],
    _claiming(30_000, 30_000),
    _claiming(0, 1),
    _claiming((1 << 31) - 1, (1 << 31) - 1),
    b"RIFF\x10\0\0\0WEBPVP8 ",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
]
