"""SigLIP's image encoder: transformers' ``SiglipVisionModel``, alone or in a ``SiglipModel`` or a LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rebus.models.encoders.hf import clip_layout as layout
from rebus.models.encoders.hf import tables
from rebus.models.encoders.hf.tables import Entry, entry, linear
from rebus.models.encoders.siglip import SiglipVision, SiglipVisionConfig


def config_from_hf(config: Mapping[str, Any]) -> SiglipVisionConfig:
    """Our config; what theirs leaves out has the default of its class."""
    theirs = tables.vision_config(config)
    sizes = layout.sizes_from_hf(theirs, patch_size=16, norm_eps=1e-6, activation="gelu_pytorch_tanh")
    return SiglipVisionConfig(**sizes, use_head=theirs.get("vision_use_head", True))


def from_hf(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[SiglipVisionConfig, dict[str, Tensor]]:
    """Our config and state dict; ``InvalidArgumentError`` names what does not fit."""
    ours = config_from_hf(config)
    weights = tables.import_state(
        lambda: SiglipVision(ours), entries(ours.num_layers), state, anchor=layout.ANCHOR, ignored=layout.IGNORED
    )
    return ours, weights


def to_hf(config: SiglipVisionConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of a ``SiglipVisionModel``; which layer is read is no part of them."""
    theirs = {
        "model_type": "siglip_vision_model",
        "architectures": ["SiglipVisionModel"],
        **layout.sizes_to_hf(config),
        "vision_use_head": config.use_head,
    }
    return theirs, tables.export_state(entries(config.num_layers), state, prefix="vision_model.")


def entries(num_layers: int) -> list[Entry]:
    """All tensors of a SigLIP with the head; one without, and Idefics2's, has some of them."""
    return [
        *linear("patch_embed", [layout.PATCH_EMBED]),
        entry("position", layout.POSITION),
        *tables.per_layer(layout.LAYER, num_layers, ours="blocks.{}.", theirs=["encoder.layers.{}."]),
        *linear("norm", ["post_layernorm"]),
        entry("head.query_D", "head.probe", lead=2),
        entry("head.qkv_proj.weight", "head.attention.in_proj_weight"),
        entry("head.qkv_proj.bias", "head.attention.in_proj_bias"),
        *linear("head.out_proj", ["head.attention.out_proj"]),
        *linear("head.norm", ["head.layernorm"]),
        *linear("head.fc1", ["head.mlp.fc1"]),
        *linear("head.fc2", ["head.mlp.fc2"]),
    ]
