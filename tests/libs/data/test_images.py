"""Decoding against pixels made by hand."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rebus.data.images import ImageLimits, decode_image, image_size, sniff_format
from rebus.errors import InvalidArgumentError

# pytest lays its own filters over the one that the module sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG assembled from its chunks, so that the test does not rest on Pillow's encoder."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    middle = b"".join(chunk(e[:4], e[4:]) for e in extra)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + data + chunk(b"IEND", b"")


def corners() -> Image.Image:
    """2x3 pixels, all different, so that every rotation and mirroring shows."""
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(3, 2, 3) * 10
    return Image.fromarray(pixels)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_each_format_is_recognised_and_keeps_its_colours(format: str) -> None:
    data = encode(Image.new("RGB", (16, 8), RED), format)

    assert sniff_format(data) == format
    assert image_size(data) == (16, 8)
    assert decode_image(data).shape == (8, 16, 3)
    assert np.abs(decode_image(data).astype(int) - RED).max() <= 3  # JPEG and WebP are lossy


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, k=-1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(orientation: int, upright: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(corners(), exif=exif)

    np.testing.assert_array_equal(decode_image(data), upright(np.array(corners())))


def test_unreadable_exif_counts_as_upright() -> None:
    data = encode(corners(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")

    np.testing.assert_array_equal(decode_image(data), np.array(corners()))


def test_cmyk_becomes_rgb() -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)

    assert np.abs(decode_image(data)[0, 0].astype(int) - RED).max() <= 3


def test_grey_and_bilevel_become_rgb() -> None:
    assert decode_image(encode(Image.new("L", (1, 1), 77)))[0, 0].tolist() == [77] * 3
    assert decode_image(encode(Image.new("1", (1, 1), 1)))[0, 0].tolist() == [255] * 3


def test_16_bit_grey_keeps_the_high_byte() -> None:
    rows = b"\0" + struct.pack(">3H", 0x0000, 0x12FF, 0xFFFF)

    assert decode_image(png(3, 1, 16, 0, rows))[0, :, 0].tolist() == [0x00, 0x12, 0xFF]


def test_16_bit_grey_with_a_transparent_level() -> None:
    rows = b"\0" + struct.pack(">2H", 0x1000, 0x2000)
    data = png(2, 1, 16, 0, rows, b"tRNS" + struct.pack(">H", 0x1000))

    assert decode_image(data)[0].tolist() == [[255] * 3, [0x20] * 3]


def test_16_bit_rgb_agrees_with_16_bit_grey() -> None:
    rows = b"\0" + struct.pack(">3H", 0x12FF, 0x00FF, 0xFFFF)

    assert decode_image(png(1, 1, 16, 2, rows))[0, 0].tolist() == [0x12, 0x00, 0xFF]


def test_alpha_is_laid_over_the_background() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putpixel((0, 0), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth of black over the background
    data = encode(image)

    assert decode_image(data)[0].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 204]]
    assert decode_image(data, background=GREEN)[0, 1].tolist() == [0, 255, 0]


def test_palette_transparency_is_laid_over_the_background() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)

    assert decode_image(encode(image))[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert decode_image(encode(image, transparency=0))[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, BLUE)]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused_at_every_length(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = encode(Image.fromarray(noise), format)

    for kept in [*range(40), len(data) // 4, len(data) // 2, len(data) * 3 // 4]:
        with pytest.raises(InvalidArgumentError) as caught:
            decode_image(data[:kept], field="row[3]")
        assert caught.value.violations[0].field == "row[3]"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_random_damage_never_raises_anything_else(format: str) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (24, 24, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(noise), format, exif=exif)

    for _ in range(200):
        damaged = bytearray(data)
        for position in rng.integers(8, len(data), 4):
            damaged[position] = rng.integers(256)
        with contextlib.suppress(InvalidArgumentError):
            decode_image(bytes(damaged))


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(20), b"<svg/>", b"%PDF-1.7"])
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="not a PNG, JPEG or WebP"):
        decode_image(data)


def test_limits_hold_before_decoding() -> None:
    bomb = png(60_000, 60_000, 1, 0, b"")  # 3.6 Gpixel announced, no data behind it

    with pytest.raises(InvalidArgumentError, match="pixels"):
        decode_image(bomb)
    with pytest.raises(InvalidArgumentError, match="10x10 pixels, more than the limit of 99"):
        decode_image(encode(Image.new("RGB", (10, 10))), limits=ImageLimits(max_pixels=99))
    with pytest.raises(InvalidArgumentError, match="bytes, more than the limit of 20"):
        decode_image(encode(Image.new("RGB", (10, 10))), limits=ImageLimits(max_bytes=20))
