"""One processor for all media: tiles put together again, frames, parts, and a digest that tells them apart."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from rebus.data.images import decode_image
from rebus.data.preprocess.augment import JpegNoise, JpegNoiseConfig
from rebus.data.preprocess.image import ImageProcessorConfig
from rebus.data.preprocess.log_mel import LogMelConfig
from rebus.data.preprocess.media import MediaProcessor, MediaProcessorConfig
from rebus.data.preprocess.resize import Area, patch_mask
from rebus.errors import FailedPreconditionError, InvalidArgumentError
from tests.media_files import clip, number_of, tone, wav

SIDE = 16
SPLITTERS = [{"name": "dynamic", "min_tiles": 1}, {"name": "sub-images"}, {"name": "aspect"}, {"name": "single"}]


def image_config(resize: str, resample: str = "nearest") -> ImageProcessorConfig:
    return ImageProcessorConfig(image_size=SIDE, resize=resize, resample=resample, background=(1, 2, 3))  # pyright: ignore[reportArgumentType]


def processor(splitter: str | dict[str, Any] = "single", resize: str = "pad", **frames: Any) -> MediaProcessor:
    image = image_config(resize)
    spec = {"name": splitter} if isinstance(splitter, str) else splitter
    return MediaProcessor(
        MediaProcessorConfig(
            image=image,
            splitter=spec,
            frames=frames or {"name": "uniform", "num_frames": 4},
            audio=LogMelConfig(chunk_seconds=1.0),
        )
    )


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 256, (height, width, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels), "PNG")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("resize", ["squash", "pad", "pad-end", "crop"])
@pytest.mark.paper("mm1-5", "internvl25")
def test_tiles_assemble_to_the_whole_picture(splitter: dict[str, Any], resize: str) -> None:
    media = processor(splitter, resize)
    for height, width in [(16, 16), (40, 20), (20, 45), (3, 60), (100, 90)]:
        pixels = picture(height, width)
        tiled = media.tile(pixels)
        grid = tiled.grid
        assert len(tiled) == grid.num_tiles == len(tiled.pixels)
        assert grid == media.grid(height, width)

        places = {(tile.row, tile.column): cut for tile, cut in zip(tiled.tiles, tiled.pixels, strict=True)}
        assert len(places) == len(tiled)
        overview = media.image_processor.resize(pixels)
        if grid.num_tiles == 1:
            np.testing.assert_array_equal(places[0, 0], overview)
            continue
        rows = [np.hstack([places[r, c] for c in range(1, grid.columns + 1)]) for r in range(1, grid.rows + 1)]
        canvas, _ = media.image_processor.onto(pixels, grid.rows * SIDE, grid.columns * SIDE)
        np.testing.assert_array_equal(np.vstack(rows), canvas)
        if grid.overview != "none":
            np.testing.assert_array_equal(places[0, 0], overview)
            assert tiled.positions(7)[0 if grid.overview == "first" else -1] == (7, 0, 0)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("resize", ["squash", "pad", "pad-end", "crop"])
@pytest.mark.parametrize(("height", "width"), [(304, 416), (96, 704), (512, 248), (128, 128)])
def test_a_jpeg_is_tiled_as_its_whole_and_decoded_no_larger_than_its_tiles_need(
    monkeypatch: pytest.MonkeyPatch, splitter: dict[str, Any], resize: str, height: int, width: int
) -> None:
    coarse = Image.fromarray(picture(3, 4)).resize((width, height), Image.Resampling.BICUBIC)
    data = encoded(coarse, "JPEG", quality=95)
    config = MediaProcessorConfig(image=image_config(resize, "bilinear"), splitter=splitter)
    media = MediaProcessor(config)
    decoded: list[tuple[int, ...]] = []
    onto = media.image_processor.onto
    monkeypatch.setattr(media.image_processor, "onto", lambda p, *size: decoded.append(p.shape[:2]) or onto(p, *size))

    found = media.image(data)

    rows, columns = found.grid.rows, found.grid.columns
    fits = [f for f in (8, 4, 2) if -(-height // f) >= rows * SIDE and -(-width // f) >= columns * SIDE]
    factor = (fits or [1])[0]
    assert decoded[0] == (-(-height // factor), -(-width // factor))
    whole = media.tile(decode_image(data))
    assert (found.grid, found.tiles) == (whole.grid, whole.tiles)
    assert np.abs(found.pixels.astype(int) - whole.pixels).mean() < 2.5


def test_the_grid_is_that_of_the_whole_image_where_rounded_sides_would_have_another() -> None:
    media = processor("aspect")
    for height, width in [(433, 97), (289, 106), (123, 340)]:
        assert media.image(encoded(Image.fromarray(picture(height, width)), "JPEG")).grid == media.grid(height, width)


def test_noise_is_that_of_the_whole_image() -> None:
    data, noise = encoded(Image.fromarray(picture(130, 150)), "JPEG"), JpegNoise(JpegNoiseConfig(), seed=3)

    found = processor("aspect").image(data, noise=noise, key=(1, 2))

    np.testing.assert_array_equal(found.pixels, processor("aspect").tile(noise(decode_image(data), 1, 2)).pixels)


@pytest.mark.paper("internvl25")
def test_internvl_pixels_equal_transformers() -> None:
    image = ImageProcessorConfig(image_size=SIDE, resample="bicubic")
    media = MediaProcessor(MediaProcessorConfig(image=image, splitter={"name": "aspect"}))
    for height, width in [(70, 100), (100, 20), (16, 16)]:
        pixels = picture(height, width)

        found = media.tile(pixels).pixels

        expected = GotOcr2ImageProcessorPil().crop_image_to_patches(
            pixels.transpose(2, 0, 1),
            1,
            12,
            patch_size=SizeDict(height=SIDE, width=SIDE),
            resample=Image.Resampling.BICUBIC,
        )
        # Without torchvision transformers resizes with Pillow, which rounds otherwise between its two passes. These
        # pictures are noise: another tile or filter would differ by tens of levels.
        assert np.abs(found.astype(int) - np.stack(expected).transpose(0, 2, 3, 1)).mean() < 0.5


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("resize", ["squash", "pad", "pad-end", "crop"])
@pytest.mark.parametrize("patch", [1, 4, 16])
def test_patches_outside_the_picture_are_masked(splitter: dict[str, Any], resize: str, patch: int) -> None:
    for height, width in [(40, 20), (20, 45), (3, 60)]:
        tiled = processor(splitter, resize).tile(picture(height, width))

        masks = tiled.patch_masks(patch)

        shown = (tiled.pixels != (1, 2, 3)).any(-1)  # pictures hold no background
        blocks = shown.reshape(len(tiled), SIDE // patch, patch, SIDE // patch, patch)
        np.testing.assert_array_equal(masks, blocks.any((2, 4)))
    with pytest.raises(ValueError, match="do not divide"):
        patch_mask(Area(0, 0, 1, 1), 16, 16, 5)


def test_padding_at_the_end_keeps_places() -> None:
    """A patch at the same distance from the picture's corner is at the same place, whatever the shape."""
    pixels = picture(16, 16)
    wide, tall = (processor(resize="pad-end").tile(p).pixels[0] for p in (pixels[:8], pixels[:, :8]))

    np.testing.assert_array_equal(wide[:8, :8], pixels[:8, :8])
    np.testing.assert_array_equal(tall[:8, :8], pixels[:8, :8])


def test_an_encoded_image_is_tiled_and_a_bad_one_named() -> None:
    media, pixels = processor("sub-images"), picture(40, 20)

    np.testing.assert_array_equal(media.image(png(pixels)).pixels, media.tile(pixels).pixels)
    with pytest.raises(InvalidArgumentError, match=r"images\[2\]"):
        media.image(b"no picture", field="images[2]")


@pytest.mark.paper("internvl25")
def test_jpeg_noise_is_seeded_and_within_its_bounds() -> None:
    noise, other = (JpegNoise(JpegNoiseConfig(), seed=seed) for seed in (0, 1))
    pixels = picture(24, 24)
    drawn = [noise.quality(number) for number in range(2000)]

    assert (min(drawn), max(drawn)) == (75, 100)
    # Means of 2000 uniform draws from 26 values differ from 87.5 by less than 5 standard errors.
    assert abs(np.mean(drawn) - 87.5) < 5 * 7.5 / np.sqrt(2000)
    assert drawn != [other.quality(number) for number in range(2000)]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=noise.quality(3, 1))
    np.testing.assert_array_equal(noise(pixels, 3, 1), np.array(Image.open(out)))
    half = JpegNoise(JpegNoiseConfig(probability=0.5), seed=0)
    kept = sum(half.quality(number) is None for number in range(2000))
    assert abs(kept - 1000) < 5 * np.sqrt(500)
    media = processor()
    np.testing.assert_array_equal(
        media.image(png(pixels), noise=noise, key=(3, 1)).pixels, media.tile(noise(pixels, 3, 1)).pixels
    )


def test_video_frames_are_sampled_from_the_part() -> None:
    media, data = processor(), clip(frames=24, size=(32, 32))

    frames, times = media.video(data)
    assert frames.shape == (4, SIDE, SIDE, 3)
    assert [number_of(frame) for frame in frames] == [3, 9, 15, 21]
    assert times == pytest.approx([0.3, 0.9, 1.5, 2.1])

    frames, times = media.video(data, start_seconds=1.0, end_seconds=1.8)
    assert [number_of(frame) for frame in frames] == [11, 13, 15, 17]
    with pytest.raises(InvalidArgumentError, match="no frames from 5 s to the end"):
        media.video(data, start_seconds=5.0)

    relevant = processor(name="aks", num_frames=2, fps=10.0, max_depth=0)
    frames, _ = relevant.video(data, relevance=lambda numbers: [-abs(number - 20) for number in numbers])
    assert [number_of(frame) for frame in frames] == [19, 20]


def test_sound_becomes_pieces() -> None:
    assert processor().audio(wav(tone(2.5)), end_seconds=2.0).shape == (2, 80, 100)


def test_the_digest_tells_configs_apart_and_refuses_another() -> None:
    config = MediaProcessorConfig()
    same = replace(config, splitter={"name": "single"}, frames={"name": "uniform", "num_frames": 24})
    others = [
        replace(config, image=ImageProcessorConfig(resize="pad")),
        replace(config, splitter={"name": "dynamic"}),
        replace(config, splitter={"name": "dynamic", "max_tiles": 16}),
        replace(config, frames={"name": "uniform", "num_frames": 8}),
        replace(config, audio=LogMelConfig(num_mels=128)),
    ]
    digest = MediaProcessor(config).digest

    assert MediaProcessor(same, digest=digest).digest == digest
    assert len({digest, *(MediaProcessor(other).digest for other in others)}) == 6
    with pytest.raises(FailedPreconditionError, match="serve it with the code revision that trained it"):
        MediaProcessor(others[0], digest=digest)
    with pytest.raises(ValueError, match="makes no squares"):
        replace(config, splitter={"name": "aspect"}, image=ImageProcessorConfig(resize="longest"))
    with pytest.raises(
        InvalidArgumentError, match=r"preprocess.splitter.name: unknown splitter 'dinamic'; did you mean"
    ):
        MediaProcessor(replace(config, splitter={"name": "dinamic"}))
