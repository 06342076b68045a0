"""Tiny random Idefics2s of transformers, images of many shapes, and how to compare ours with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Idefics2Config, Idefics2ForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rebus import registry
from rebus.models.encoders.hf import idefics2 as tower
from rebus.models.mllm import Mllm
from tests.libs.models.hf.llava_peers import connector_gradients
from tests.libs.models.hf.peers import PEERS, VOCAB, decoder_gradients, redraw

IMAGE = VOCAB - 1
LATENTS, PATCH = 5, 8
# Of the weights: through seven blocks and more larger ones would make large numbers of rounding errors.
SCALE = 0.12
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": PATCH,
}
PERCEIVER = {
    "hidden_size": 32,
    "rms_norm_eps": 1e-4,
    "resampler_n_latents": LATENTS,
    "resampler_depth": 2,
    "resampler_n_heads": 4,
    "resampler_head_dim": 6,
    "num_key_value_heads": 2,
}
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Idefics2ImageProcessor",
    "size": {"shortest_edge": 16, "longest_edge": 48},
    "do_image_splitting": False,
}
# Height and width: square, wide, tall, more than the table of positions, and with pixels left over of a patch.
SHAPES = ((32, 32), (16, 48), (40, 24), (48, 48), (27, 37))


def idefics2(text: str = "mistral", *, perceiver: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> Any:
    """An Idefics2 with a text model of ``PEERS``, every weight drawn; its rows hold up to 192 tokens."""
    model_type, values = PEERS[text]
    specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    settings: dict[str, Any] = {**values, "max_position_embeddings": 192, **specials}
    config = Idefics2Config(
        vision_config=dict(VISION),
        perceiver_config={**PERCEIVER, **(perceiver or {})},
        text_config=CONFIG_MAPPING[model_type](**settings),
        image_token_id=IMAGE,
        **changes,
    )
    torch.manual_seed(seed)
    model = Idefics2ForConditionalGeneration(config).eval()
    redraw(model, SCALE)
    return model


def save(model: Any, folder: Path, **preprocessor: Any) -> Path:
    """The model's folder, with an image processor's file."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | preprocessor))
    return folder


def images(count: int, seed: int = 2) -> list[Tensor]:
    """As many images, the next of ``SHAPES`` each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *SHAPES[at % len(SHAPES)], generator=generator) for at in range(count)]


def prompt(count: int, words: int, seed: int = 3) -> Tensor:
    """A row of words with images between them."""
    drawn = torch.randint(VOCAB - 1, (words,), generator=torch.Generator().manual_seed(seed)).tensor_split(count + 1)
    return torch.cat([*(torch.cat([part, torch.full((LATENTS,), IMAGE)]) for part in drawn[:-1]), drawn[-1]])


def padded(rows: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """The images of each row as transformers reads them: on the canvas of the largest, with a mask, as many a row."""
    every = [image for row in rows for image in row]
    height, width = (max(image.shape[axis] for image in every) for axis in (1, 2))
    shape = (len(rows), max(map(len, rows)))
    pixels, mask = torch.zeros(*shape, 3, height, width), torch.zeros(*shape, height, width, dtype=torch.long)
    for at, row in enumerate(rows):
        for index, image in enumerate(row):
            pixels[at, index, :, : image.shape[1], : image.shape[2]] = image
            mask[at, index, : image.shape[1], : image.shape[2]] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def logits(model: Mllm, ids: Tensor, shown: Sequence[Tensor]) -> Tensor:
    """Of whole rows ``[B, S]``."""
    return model.logits(model(ids, torch.arange(ids.shape[1]).expand_as(ids), pixels=shown))


def gradients_like_theirs(model: Mllm) -> dict[str, Tensor]:
    """Our gradients under their names and in their layouts."""
    config = registry.settings("encoder", model.config.encoder)[1]
    vision = tower.to_hf(config, _gradients(model.vision_encoder))[1]
    connector = connector_gradients(model.connector, _gradients(model.connector))
    return {
        **{f"model.vision_model.{name}": grad for name, grad in vision.items()},
        **{f"model.connector.{name}": grad for name, grad in connector.items()},
        **decoder_gradients(
            model.decoder, _gradients(model.decoder), model.config.decoder["name"], prefix="model.text_model."
        ),
    }


def _gradients(part: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in part.named_parameters() if p.grad is not None}


def assert_same_model(ours: Mllm, theirs: Any) -> None:
    """Logits of two rows, one with three images and one with two, and the gradient of every parameter, agree."""
    ids = torch.stack([prompt(3, 9), prompt(2, 9 + LATENTS)])
    shown = images(5)
    weights = torch.randn(*ids.shape, VOCAB, generator=torch.Generator().manual_seed(4))
    found = logits(ours, ids, shown)
    expected = theirs(input_ids=ids, **padded([shown[:3], shown[3:]])).logits
    torch.testing.assert_close(found, expected)

    ours.zero_grad()
    theirs.zero_grad()
    for values in (found, expected):
        (values.log_softmax(-1) * weights).mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    own = gradients_like_theirs(ours)
    assert own.keys() == gradients.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, gradients[name], msg=lambda m, name=name: f"{name}: {m}")
