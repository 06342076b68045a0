"""CLIP's image encoder: transformers' ``CLIPVisionModel``, alone or in a ``CLIPModel`` or a LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rebus.models.encoders.clip import ClipVision, ClipVisionConfig
from rebus.models.encoders.hf import clip_layout as layout
from rebus.models.encoders.hf import tables
from rebus.models.encoders.hf.tables import Entry, entry, linear


def config_from_hf(config: Mapping[str, Any]) -> ClipVisionConfig:
    """Our config; what theirs leaves out has the default of its class."""
    theirs = tables.vision_config(config)
    return ClipVisionConfig(**layout.sizes_from_hf(theirs, patch_size=32, norm_eps=1e-5, activation="quick_gelu"))


def from_hf(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ClipVisionConfig, dict[str, Tensor]]:
    """Our config and state dict; ``InvalidArgumentError`` names what does not fit."""
    ours = config_from_hf(config)
    weights = tables.import_state(
        lambda: ClipVision(ours), _entries(ours), state, anchor=layout.ANCHOR, ignored=layout.IGNORED
    )
    return ours, weights


def to_hf(config: ClipVisionConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of a ``CLIPVisionModel``; which layer is read is no part of them."""
    theirs = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], **layout.sizes_to_hf(config)}
    return theirs, tables.export_state(_entries(config), state, prefix="vision_model.")


def _entries(config: ClipVisionConfig) -> list[Entry]:
    return [
        entry("class_token", "embeddings.class_embedding"),
        entry("patch_embed.weight", f"{layout.PATCH_EMBED}.weight"),
        entry("position", layout.POSITION),
        # Misspelt upstream.
        *linear("pre_norm", ["pre_layrnorm"]),
        *tables.per_layer(layout.LAYER, config.num_layers, ours="blocks.{}.", theirs=["encoder.layers.{}."]),
        *linear("pool_norm", ["post_layernorm"]),
    ]
