"""Features of media: each distinct image is encoded once, the least recently used are dropped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rebus.data.encoding import Row
from rebus.errors import InvalidArgumentError
from rebus.generation.media import MediaFeatures
from rebus.models.mllm import Mllm
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
