"""Image features: each distinct image is encoded once, the least recently used are dropped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rebus.errors import InvalidArgumentError
from rebus.generation.images import ImageFeatures
from rebus.models.mllm import Mllm
from tests.tiny_model import png, tiny_model, tiny_processor, tiny_tokenizer

RED, GREEN, BLUE = (png(color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
BYTES_AN_IMAGE = 4 * 32 * 4  # tokens x width x float32


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mllm]:
    """The tiny model; ``model.encoded`` counts the images that were encoded."""
    made = tiny_model(tiny_tokenizer())
    encode = made.encode_images

    def counting(pixels: Tensor) -> Tensor:
        made.encoded = made.encoded + len(pixels)  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue]
        return encode(pixels)

    made.encoded = 0  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(made, "encode_images", counting)
    return made


def test_features_come_in_order_each_image_encoded_once(model: Mllm) -> None:
    processor = tiny_processor()
    features = ImageFeatures(model, processor, cache_bytes=1 << 20)
    found = features([RED, BLUE, RED])
    assert found is not None
    assert model.encoded == 2
    with torch.no_grad():
        pixels = torch.from_numpy(processor.normalise(processor.batch([RED, BLUE, RED])))
        torch.testing.assert_close(found, model.connector(model.vision_encoder(pixels)))
    again = features([BLUE])
    assert again is not None
    assert model.encoded == 2
    assert torch.equal(again[0], found[1])
    assert features([]) is None


def test_the_least_recently_used_are_dropped(model: Mllm) -> None:
    features = ImageFeatures(model, tiny_processor(), cache_bytes=2 * BYTES_AN_IMAGE)
    features([RED])
    features([GREEN])
    features([RED])
    features([BLUE])  # drops green, which was used before red
    assert model.encoded == 3
    features([RED, BLUE])
    assert model.encoded == 3
    features([GREEN])
    assert model.encoded == 4


def test_more_images_than_the_cache_holds_still_come_whole(model: Mllm) -> None:
    features = ImageFeatures(model, tiny_processor(), cache_bytes=BYTES_AN_IMAGE)
    found = features([RED, GREEN, BLUE])
    assert found is not None
    assert found.shape == (3, 4, 32)
    assert len({tuple(row.flatten().tolist()) for row in found}) == 3


def test_a_bad_image_is_named_and_nothing_is_kept(model: Mllm) -> None:
    features = ImageFeatures(model, tiny_processor(), cache_bytes=1 << 20)
    with pytest.raises(InvalidArgumentError, match=r"images\[2\]"):
        features([RED, RED, b"GIF89a"])
    assert model.encoded == 0
