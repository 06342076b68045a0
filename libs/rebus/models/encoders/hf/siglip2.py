"""SigLIP 2 of the kind ``naflex``: transformers' ``Siglip2VisionModel``, alone or in a ``Siglip2Model``.

Those of fixed resolution are published as SigLIPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rebus.models.encoders.hf import clip_layout as layout
from rebus.models.encoders.hf import siglip, tables
from rebus.models.encoders.siglip import Siglip2Vision, SiglipVisionConfig


def config_from_hf(config: Mapping[str, Any]) -> SiglipVisionConfig:
    """Our config; what theirs leaves out has the default of its class."""
    theirs = tables.vision_config(config)
    patch_size = tables.square(theirs, "patch_size", 16)
    # Theirs has no size of images, only how many positions are learned.
    size = math.isqrt(theirs.get("num_patches", 256)) * patch_size
    return siglip.config_from_hf({**theirs, "image_size": size, "patch_size": patch_size})


def from_hf(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[SiglipVisionConfig, dict[str, Tensor]]:
    """Our config and state dict; ``InvalidArgumentError`` names what does not fit."""
    ours = config_from_hf(config)
    convolved = {
        name: _as_convolution(tensor, ours.patch_size) if name.endswith(layout.ANCHOR) else tensor
        for name, tensor in state.items()
    }
    weights = tables.import_state(
        lambda: Siglip2Vision(ours), siglip.entries(ours.num_layers), convolved, anchor=layout.ANCHOR
    )
    return ours, weights


def to_hf(config: SiglipVisionConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of a ``Siglip2VisionModel``; which layer is read is no part of them."""
    sizes = layout.sizes_to_hf(config)
    del sizes["image_size"]
    theirs = {
        "model_type": "siglip2_vision_model",
        "architectures": ["Siglip2VisionModel"],
        **sizes,
        "num_patches": config.position_side**2,
        "vision_use_head": config.use_head,
    }
    tensors = tables.export_state(siglip.entries(config.num_layers), state, prefix="vision_model.")
    name = f"vision_model.{layout.ANCHOR}"
    return theirs, tensors | {name: _as_matrix(tensors[name])}


def _as_convolution(weight: Tensor, patch_size: int) -> Tensor:
    """Theirs ``[D, p * p * 3]`` reads a patch pixel by pixel, channels innermost; ours is ``[D, 3, p, p]``."""
    return weight.unflatten(1, (patch_size, patch_size, -1)).permute(0, 3, 1, 2)


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).flatten(1)
