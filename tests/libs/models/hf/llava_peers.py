"""Tiny random LLaVAs of transformers, and how to compare whole models of ours with theirs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rebus import registry
from rebus.models.connectors import hf as connectors
from rebus.models.hf.internvl import INTERNVL
from rebus.models.hf.llava import LLAVA
from rebus.models.mllm import Mllm
from tests.libs.models.hf.greedy import assert_same_text
from tests.libs.models.hf.peers import PEERS, VOCAB, decoder_gradients, redraw

IMAGE = VOCAB - 1
SIDE, IMAGE_TOKENS = 32, 16
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": SIDE,
    "patch_size": 8,
}
TOWERS: dict[str, Any] = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
STRATEGIES = {"clip": "default", "siglip": "full"}
MODULES = {tower.name: tower.hf for kind in (LLAVA, INTERNVL) for tower in kind.towers}
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}


def llava(
    tower: str,
    text: str,
    *,
    vision: dict[str, Any] | None = None,
    vocab_size: int = VOCAB,
    seed: int = 0,
    **changes: Any,
) -> Any:
    """A LLaVA with that tower and a text model of ``PEERS``, every weight drawn; its rows hold up to 192 tokens."""
    model_type, values = PEERS[text]
    long = {"n_positions" if model_type == "gpt2" else "max_position_embeddings": 192}
    # transformers' LLaVA cannot tie the tables of GPT-2 and OPT.
    untied = {"tie_word_embeddings": False} if model_type in ("gpt2", "opt") else {}
    specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = LlavaConfig(
        vision_config=TOWERS[tower](**VISION | (vision or {})),
        text_config=CONFIG_MAPPING[model_type](**values | long | untied | specials | {"vocab_size": vocab_size}),
        **{
            "image_token_index": IMAGE,
            "image_seq_length": IMAGE_TOKENS,
            "vision_feature_select_strategy": STRATEGIES[tower],
            **changes,
        },
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    redraw(model)
    return model


def save(model: Any, folder: Path, preprocessor: dict[str, Any] | None = None) -> Path:
    """The model's folder, with an image processor's file."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor or PREPROCESSOR))
    return folder


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def prompt(images: int, words: int, seed: int = 3, image_tokens: int = IMAGE_TOKENS) -> Tensor:
    """A row of words with images between them."""
    drawn = torch.randint(VOCAB - 1, (words,), generator=torch.Generator().manual_seed(seed))
    parts = [torch.cat([part, torch.full((image_tokens,), IMAGE)]) for part in drawn.tensor_split(images + 1)[:-1]]
    return torch.cat([*parts, drawn.tensor_split(images + 1)[-1]])


def logits(model: Mllm, ids: Tensor, images: Tensor) -> Tensor:
    """Of whole rows ``[B, S]``."""
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return model.logits(model(ids, positions, pixels=images))


def gradients_like_theirs(model: Mllm) -> dict[str, Tensor]:
    """Our gradients under their names and in their layouts."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): grad for name, grad in grads.items() if name.startswith(prefix)}

    config = registry.settings("encoder", model.config.encoder)[1]
    vision = MODULES[model.config.encoder["name"]].to_hf(config, part("vision_encoder."))[1]
    found = {f"model.vision_tower.{name.removeprefix('vision_model.')}": grad for name, grad in vision.items()}
    for name, grad in connector_gradients(model.connector, part("connector.")).items():
        found[f"model.{'' if name == 'image_newline' else 'multi_modal_projector.'}{name}"] = grad
    family = model.config.decoder["name"]
    found |= decoder_gradients(model.decoder, part("decoder."), family, prefix="model.language_model.")
    return found


def connector_gradients(connector: nn.Module, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the connector's parameters under their names."""
    holder = copy.deepcopy(connector)
    holder.load_state_dict(grads)
    return connectors.to_hf(holder)


def assert_same_model(ours: Mllm, theirs: Any) -> None:
    """Logits of two rows, one with two images and one with one, and the gradient of every parameter, agree."""
    each = ours.image_tokens
    ids = torch.stack([prompt(2, 9, image_tokens=each), prompt(1, 9 + each, image_tokens=each)])
    images = pixels(3)
    weights = torch.randn(*ids.shape, VOCAB, generator=torch.Generator().manual_seed(4))
    found, expected = logits(ours, ids, images), theirs(input_ids=ids, pixel_values=images).logits
    torch.testing.assert_close(found, expected)

    ours.zero_grad()
    theirs.zero_grad()
    for values in (found, expected):
        (values.log_softmax(-1) * weights).mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    own = gradients_like_theirs(ours)
    assert own.keys() == gradients.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, gradients[name], msg=lambda m, name=name: f"{name}: {m}")


def assert_same_greedy(ours: Mllm, theirs: Any, ids: Tensor, images: Tensor, *, cached: bool) -> None:
    """As ``assert_same_text``, for images ``[N, 3, H, W]``."""
    assert_same_text(ours, theirs, ids, ours.encode_images(images), {"pixel_values": images}, cached=cached)
