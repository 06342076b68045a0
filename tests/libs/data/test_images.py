"""Decoding against pixels made by hand."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rebus.data.images import ImageLimits, OpenedImage, decode_image, image_size, sniff_format
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


def pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some texture, as no flat image would show a wrong upsampling."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


jpeg_kinds = st.fixed_dictionaries(
    {
        "quality": st.integers(1, 100),
        "subsampling": st.sampled_from([0, 1, 2]),
        "progressive": st.booleans(),
        "optimize": st.booleans(),
        "restart_marker_blocks": st.sampled_from([0, 1, 5]),
    }
)


@given(
    kind=jpeg_kinds,
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    orientation=st.sampled_from([None, 1, 3, 6, 8]),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_jpegs_of_every_kind_have_the_pixels_of_pillow(
    kind: dict[str, Any], mode: str, size: tuple[int, int], orientation: int | None
) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encode(photo(*size).convert(mode), "JPEG", exif=exif, **kind)

    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)
    np.testing.assert_array_equal(decode_image(memoryview(data)), expected)


def test_colour_jpegs_do_not_pass_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the pixels would be right and the interpreter's lock held."""
    data = encode(photo(64, 64), "JPEG")
    monkeypatch.setattr(Image.Image, "convert", None)

    assert decode_image(data).shape == (64, 64, 3)


def test_a_jpeg_stored_as_rgb_keeps_its_colours() -> None:
    data = encode(photo(40, 30), "JPEG", keep_rgb=True, quality=95)

    np.testing.assert_array_equal(decode_image(data), pillow(data))
    assert np.abs(decode_image(data).astype(int) - np.array(photo(40, 30))).mean() < 4


def test_several_pictures_in_a_jpeg_give_the_first() -> None:
    data = encode(photo(32, 24), "MPO", save_all=True, append_images=[photo(32, 24, seed=1)])

    np.testing.assert_array_equal(decode_image(data), pillow(data))


_SIDES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(stored=_SIDES, least=_SIDES, turned=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_scaled_jpeg_is_the_smallest_of_its_halvings(
    stored: tuple[int, int], least: tuple[int, int], turned: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    data = encode(photo(*stored), "JPEG", exif=exif)
    height, width = stored if turned else stored[::-1]

    found = decode_image(data, min_size=least)

    assert OpenedImage(data).size == (height, width)
    halvings = [(-(-height // f), -(-width // f)) for f in (8, 4, 2)]
    enough = [size for size in halvings if size[0] >= least[0] and size[1] >= least[1]]
    assert found.shape == (*(enough or [(height, width)])[0], 3)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_scaled_pixels_are_the_means_of_what_they_cover(factor: int) -> None:
    data = encode(photo(256, 192), "JPEG", quality=95)

    found = decode_image(data, min_size=(192 // factor, 256 // factor))

    blocks = pillow(data).reshape(192 // factor, factor, 256 // factor, factor, 3)
    assert np.abs(found - blocks.mean(axis=(1, 3))).mean() < 1.5


def test_other_formats_ignore_the_least_size() -> None:
    assert decode_image(encode(photo(64, 48)), min_size=(8, 8)).shape == (48, 64, 3)


def outcome(decode: Any) -> Any:
    """Comparable pixels, or the text of the refusal."""
    try:
        pixels = decode()
        return pixels.shape, pixels.tobytes()
    except InvalidArgumentError as error:
        return str(error)


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_jpegs_come_out_as_pillow_alone_decides(progressive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    data = encode(photo(40, 32), "JPEG", progressive=progressive, restart_marker_blocks=4)
    damaged = [data[: int(kept)] for kept in rng.integers(2, len(data), 60)]
    for _ in range(200):
        changed = bytearray(data)
        for position in rng.integers(3, len(data), rng.integers(1, 4)):
            changed[position] = rng.integers(256)
        damaged.append(bytes(changed))

    limits = ImageLimits(max_pixels=10_000)

    found = [outcome(lambda d=d: decode_image(d, limits=limits)) for d in damaged]
    monkeypatch.setattr("rebus.data.images._decode_jpeg", lambda *_: None)
    alone = [outcome(lambda d=d: decode_image(d, limits=limits)) for d in damaged]

    assert found == alone
    assert 60 < sum(isinstance(result, str) for result in found) < len(found) - 10


def test_a_progressive_jpeg_of_too_many_scans_is_refused() -> None:
    data = encode(photo(48, 48), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    last_scan = data[at:-2]
    bomb = data[:-2] + last_scan * 400 + data[-2:]

    limits = ImageLimits(max_pixels=48 * 48)
    assert decode_image(data, limits=limits).shape == (48, 48, 3)
    with pytest.raises(InvalidArgumentError, match="4\\d\\d scans over 48x48 pixels, more work than 16 scans"):
        decode_image(bomb, limits=limits)
