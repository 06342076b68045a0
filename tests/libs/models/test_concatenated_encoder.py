"""Several image encoders as one: each channel is what its own encoder says, on the first one's grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rebus import registry
from rebus.data.preprocess import ImageProcessorConfig
from rebus.errors import InvalidArgumentError
from rebus.models.mllm import Mllm, MllmConfig

SIZES = {"num_layers": 1, "num_heads": 2, "hidden_width": 16}
SMALL = {"name": "vit", "image_size": 16, "patch_size": 4, "width": 8, **SIZES}
LARGE = {"name": "vit", "image_size": 32, "patch_size": 16, "width": 12, **SIZES}
BOTH = {"name": "concatenated", "encoders": [SMALL, LARGE]}


def test_channels_are_those_of_each_encoder_at_its_own_size() -> None:
    torch.manual_seed(0)
    encoder = registry.build("encoder", BOTH)
    pixels = torch.randn(2, 3, 32, 32)
    assert (encoder.image_size, encoder.grid, encoder.width, encoder.num_tokens) == (32, (4, 4), 20, 16)
    found = encoder(pixels)

    smaller = F.interpolate(pixels, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(found[..., :8], encoder.encoders[0](smaller))
    coarse = encoder.encoders[1](pixels).transpose(1, 2).unflatten(2, (2, 2))
    finer = F.interpolate(coarse, (4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(found[..., 8:], finer.flatten(2).transpose(1, 2))

    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_one_encoder_is_itself() -> None:
    torch.manual_seed(0)
    encoder = registry.build("encoder", {"name": "concatenated", "encoders": [SMALL]})
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(encoder(pixels), encoder.encoders[0](pixels))


def mllm(**parts: Any) -> Mllm:
    llama = {"name": "llama", "width": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "hidden_width": 8}
    preprocess = ImageProcessorConfig(image_size=32)
    return Mllm(MllmConfig(decoder=llama, vocab_size=9, image_token_id=3, preprocess=preprocess, **parts))


def test_a_model_sees_by_both_but_layers_are_refused() -> None:
    assert mllm(encoder=BOTH).encode_images(torch.randn(1, 3, 32, 32)).shape == (1, 16, 8)
    dense = {"name": "dense", "layers": [0], "last_layer": 1, "num_groups": 1}
    with pytest.raises(InvalidArgumentError, match="'dense' reads layers .* but encoder 'concatenated' gives only"):
        mllm(encoder=BOTH, connector=dense)


def test_bad_settings_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"encoder.encoders\[1\].name: unknown encoder 'vitt'"):
        registry.settings("encoder", {"name": "concatenated", "encoders": [SMALL, {"name": "vitt"}]})
    with pytest.raises(InvalidArgumentError, match="expected 1 to 8, found 0"):
        registry.settings("encoder", {"name": "concatenated", "encoders": []})
    with pytest.raises(ValueError, match="expected 32 pixels a side"):
        registry.build("encoder", BOTH)(torch.zeros(1, 3, 16, 16))
