"""The image processor against pixels made by hand and plain formulas."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rebus import config as configs
from rebus.data.images import decode_image
from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig, model_processor
from rebus.data.preprocess.image import CODE_VERSION
from rebus.data.preprocess.resize import CanvasMode
from rebus.errors import FailedPreconditionError, InvalidArgumentError


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def halves(height: int, width: int) -> np.ndarray:
    """Black left half, white right half."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return pixels


def test_an_image_of_the_right_size_is_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)

    np.testing.assert_array_equal(ImageProcessor(ImageProcessorConfig(image_size=8))(encode(pixels)), pixels)


def test_squash_box_filter_is_the_block_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    processor = ImageProcessor(ImageProcessorConfig(image_size=4, resample="box"))

    blocks = pixels.reshape(4, 2, 4, 4, 3).mean(axis=(1, 3))
    # Pillow rounds twice, after the horizontal and after the vertical pass: at most half a level each.
    np.testing.assert_allclose(processor(encode(pixels)), blocks, atol=1.01)


def test_pad_keeps_the_shape_and_fills_with_the_background() -> None:
    config = ImageProcessorConfig(image_size=4, resize="pad", resample="nearest", background=(9, 8, 7))

    out = ImageProcessor(config)(encode(halves(2, 4)))

    np.testing.assert_array_equal(out[1:3], halves(2, 4))
    assert (out[[0, 3]] == (9, 8, 7)).all()


def test_crop_takes_the_centre() -> None:
    pixels = np.zeros((2, 6, 3), np.uint8)
    pixels[:, 2:4] = 255
    config = ImageProcessorConfig(image_size=4, resize="crop", resample="nearest")

    assert (ImageProcessor(config)(encode(pixels)) == 255).all()


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_extreme_shapes_still_give_a_square(resize: str) -> None:
    config = ImageProcessorConfig(image_size=4, resize=resize)  # pyright: ignore[reportArgumentType]

    for shape in [(1, 500, 3), (500, 1, 3), (1, 1, 3)]:
        assert ImageProcessor(config)(encode(np.full(shape, 255, np.uint8))).min() == 255


def test_normalise_equals_the_formula() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), np.uint8)

    out = ImageProcessor(ImageProcessorConfig(mean=mean, std=std)).normalise(pixels)

    expected = ((pixels.astype(np.float64) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_normalise_refuses_what_is_not_uint8_nhwc() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        ImageProcessor(ImageProcessorConfig()).normalise(np.zeros((1, 3, 4, 4), np.uint8))


def test_batch_equals_one_by_one_and_names_the_bad_image() -> None:
    processor = ImageProcessor(ImageProcessorConfig(image_size=8))
    images = [encode(halves(4, 4 + 2 * i)) for i in range(3)]

    np.testing.assert_array_equal(processor.batch(images), np.stack([processor(i) for i in images]))
    with pytest.raises(InvalidArgumentError) as caught:
        processor.batch([images[0], images[1][:40]])
    assert caught.value.violations[0].field == "images[1]"


def test_digest_names_the_processing() -> None:
    config = ImageProcessorConfig()

    assert ImageProcessor(config).digest == ImageProcessor(replace(config)).digest
    assert ImageProcessor(config).digest != ImageProcessor(replace(config, image_size=65)).digest


def test_pad_end_starts_at_the_upper_left() -> None:
    config = ImageProcessorConfig(image_size=4, resize="pad-end", resample="nearest", background=(9, 8, 7))

    out = ImageProcessor(config)(encode(halves(2, 4)))

    np.testing.assert_array_equal(out[:2], halves(2, 4))
    assert (out[2:] == (9, 8, 7)).all()


@pytest.mark.parametrize(
    ("resize", "shape", "expected"),
    [
        ("shortest", (10, 20), (8, 16)),
        ("shortest", (20, 10), (16, 8)),
        ("longest", (10, 20), (4, 8)),
        ("longest", (20, 10), (8, 4)),
        ("longest", (7, 7), (8, 8)),
        ("shortest", (1, 500), (8, 64)),  # squashed to 8 to 1
        ("longest", (500, 1), (8, 1)),
    ],
)
def test_one_side_is_given_and_the_other_follows(
    resize: str, shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    config = ImageProcessorConfig(image_size=8, resize=resize)  # pyright: ignore[reportArgumentType]
    processor = ImageProcessor(config)

    assert processor(encode(np.zeros((*shape, 3), np.uint8))).shape == (*expected, 3)
    with pytest.raises(ValueError, match="many shapes"):
        processor.batch([])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((10, 12), (10, 12)), ((10, 40), (5, 20)), ((41, 20), (20, 9)), ((3, 12), (4, 12)), ((2, 500), (4, 20))],
)
def test_both_sides_stay_within_bounds(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    config = ImageProcessorConfig(image_size=20, resize="within", min_size=4)

    assert ImageProcessor(config)(encode(np.zeros((*shape, 3), np.uint8))).shape == (*expected, 3)


def test_a_setting_that_is_not_used_changes_no_digest() -> None:
    """Models trained before it came must stay what they are."""
    before = {name: value for name, value in vars(ImageProcessorConfig()).items() if name != "min_size"}
    expected = configs.digest({"code": CODE_VERSION, "config": before})
    assert ImageProcessor(ImageProcessorConfig()).digest == expected
    within = ImageProcessorConfig(resize="within", min_size=4)
    assert ImageProcessor(within).digest != ImageProcessor(replace(within, min_size=5)).digest
    for bad in ({"resize": "within"}, {"min_size": 4}, {"resize": "within", "min_size": 65}):
        with pytest.raises(ValueError, match="min_size"):
            ImageProcessorConfig(**bad)  # pyright: ignore[reportArgumentType]


def test_a_model_takes_only_what_its_encoder_reads_and_what_it_was_trained_with() -> None:
    config = ImageProcessorConfig(image_size=8)
    digest = ImageProcessor(config).digest

    assert model_processor(config, image_size=8, digest=digest).digest == digest
    with pytest.raises(FailedPreconditionError, match="this code does .*; serve it with the code revision that"):
        model_processor(config, image_size=8, digest="0" * 64)
    with pytest.raises(InvalidArgumentError, match=r"model.preprocess.image_size: is 8, the encoder reads 9"):
        model_processor(config, image_size=9)
    with pytest.raises(InvalidArgumentError, match=r"model.preprocess.resize: is 'longest', the encoder reads squares"):
        model_processor(replace(config, resize="longest"), image_size=8)


@pytest.mark.parametrize("resize", ["squash", "pad", "pad-end", "crop"])
def test_a_jpeg_decoded_at_a_fraction_of_its_size_looks_the_same(resize: CanvasMode) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    processor = ImageProcessor(ImageProcessorConfig(image_size=64, resize=resize))

    whole = processor.resize(decode_image(buffer.getvalue()))

    assert np.abs(processor(buffer.getvalue()).astype(int) - whole).mean() < 1.5
