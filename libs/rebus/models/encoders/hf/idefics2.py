"""Idefics2's image encoder: transformers' ``Idefics2VisionTransformer``, alone or in the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rebus.models.encoders.hf import clip_layout as layout
from rebus.models.encoders.hf import siglip, tables
from rebus.models.encoders.siglip import SiglipNavit, SiglipNavitConfig


def config_from_hf(config: Mapping[str, Any]) -> SiglipNavitConfig:
    """Our config; what theirs leaves out has the default of its class."""
    theirs = tables.vision_config(config)
    return SiglipNavitConfig(
        **layout.sizes_from_hf(theirs, patch_size=32, norm_eps=1e-6, activation="gelu_pytorch_tanh")
    )


def from_hf(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[SiglipNavitConfig, dict[str, Tensor]]:
    """Our config and state dict; ``InvalidArgumentError`` names what does not fit."""
    ours = config_from_hf(config)
    weights = tables.import_state(
        lambda: SiglipNavit(ours), siglip.entries(ours.num_layers), state, anchor=layout.ANCHOR, ignored=layout.IGNORED
    )
    return ours, weights


def to_hf(config: SiglipNavitConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The ``vision_config`` and state dict of an ``Idefics2VisionTransformer``; which layer is read is no part."""
    theirs = {"model_type": "idefics2_vision", **layout.sizes_to_hf(config)}
    return theirs, tables.export_state(siglip.entries(config.num_layers), state)
