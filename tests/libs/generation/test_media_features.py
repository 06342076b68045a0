"""Features of media: each distinct image is encoded once, the least recently used are dropped."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from torch import Tensor

from rebus.data.encoding import Row
from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig
from rebus.errors import InvalidArgumentError
from rebus.generation.media import MediaFeatures
from rebus.models.mllm import Mllm, MllmConfig
from tests.tiny_model import png, question, tiny_encoder, tiny_model, tiny_processor, tiny_tokenizer

ENCODER = tiny_encoder(tiny_tokenizer())
RED, GREEN, BLUE = (png(color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
BYTES_AN_IMAGE = 4 * 32 * 4  # tokens x width x float32


def rows(images: list[bytes]) -> list[tuple[Row, list[bytes]]]:
    """A prompt an image."""
    prompts = [question("yes", [image]) for image in images]
    return [(ENCODER.encode_prompt(prompt.segments), list(prompt.media)) for prompt in prompts]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mllm]:
    """The tiny model; ``model.encoded`` counts the images that were encoded."""
    made = tiny_model(tiny_tokenizer())
    encode = made.encode_images

    def counting(pixels: Tensor, frames: Tensor | None = None) -> Tensor:
        made.encoded = made.encoded + len(pixels)  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue]
        return encode(pixels, frames)

    made.encoded = 0  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(made, "encode_images", counting)
    return made


def test_images_of_many_shapes_are_encoded_together() -> None:
    """By a model that reads any shape, each as it is alone."""
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "hidden_width": 32, "patch_size": 8}
    resampler = {"num_tokens": 3, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_width": 8}
    config = MllmConfig(
        encoder={"name": "siglip-navit", "image_size": 32, **sizes},
        connector={"name": "perceiver-resampler", **resampler},
        vocab_size=300,
        image_token_id=299,
        preprocess=ImageProcessorConfig(image_size=32, resize="within", min_size=16),
    )
    torch.manual_seed(0)
    model = Mllm(config).eval()
    processor = ImageProcessor(config.preprocess)
    pictures = [encoded(height, width) for height, width in ((20, 50), (50, 20), (24, 24))]
    found = MediaFeatures(model, cache_bytes=1 << 20)(rows(pictures))
    assert found is not None
    for features, picture in zip(found.split(3), pictures, strict=True):
        alone = torch.from_numpy(processor.normalise(processor(picture)[None]))
        torch.testing.assert_close(features, model.encode_images(alone)[0])


def encoded(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_features_come_in_order_each_image_encoded_once(model: Mllm) -> None:
    processor = tiny_processor()
    features = MediaFeatures(model, cache_bytes=1 << 20)
    found = features(rows([RED, BLUE, RED]))
    assert found is not None
    assert model.encoded == 2
    with torch.no_grad():
        pixels = torch.from_numpy(processor.normalise(processor.batch([RED, BLUE, RED])))
        torch.testing.assert_close(found, model.connector(model.vision_encoder(pixels)).flatten(0, 1))
    again = features(rows([BLUE]))
    assert again is not None
    assert model.encoded == 2
    assert torch.equal(again, found[4:8])
    assert features(rows([])) is None


def test_the_least_recently_used_are_dropped(model: Mllm) -> None:
    features = MediaFeatures(model, cache_bytes=2 * BYTES_AN_IMAGE)
    features(rows([RED]))
    features(rows([GREEN]))
    features(rows([RED]))
    features(rows([BLUE]))  # drops green, which was used before red
    assert model.encoded == 3
    features(rows([RED, BLUE]))
    assert model.encoded == 3
    features(rows([GREEN]))
    assert model.encoded == 4


def test_more_images_than_the_cache_holds_still_come_whole(model: Mllm) -> None:
    features = MediaFeatures(model, cache_bytes=BYTES_AN_IMAGE)
    found = features(rows([RED, GREEN, BLUE]))
    assert found is not None
    assert found.shape == (3 * 4, 32)
    assert len({tuple(row.flatten().tolist()) for row in found.unflatten(0, (3, 4))}) == 3


def test_a_bad_image_is_named_and_nothing_is_kept(model: Mllm) -> None:
    features = MediaFeatures(model, cache_bytes=1 << 20)
    with pytest.raises(InvalidArgumentError, match=r"images\[2\]"):
        features(rows([RED, RED, b"GIF89a"]))
    assert model.encoded == 0
