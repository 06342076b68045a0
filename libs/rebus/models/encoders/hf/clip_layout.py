"""What CLIP, SigLIP and Idefics2 have in common in transformers: a layer's names, and those of the sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebus.models.encoders.hf import tables
from rebus.models.encoders.hf.tables import linear
from rebus.models.encoders.vision_transformer import VisionTransformerConfig

LAYER = [
    *linear("norm1", ["layer_norm1"]),
    *linear("qkv_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    *linear("out_proj", ["self_attn.out_proj"]),
    *linear("norm2", ["layer_norm2"]),
    *linear("fc1", ["mlp.fc1"]),
    *linear("fc2", ["mlp.fc2"]),
]
PATCH_EMBED = "embeddings.patch_embedding"
# The name that every encoder of this layout has.
ANCHOR = f"{PATCH_EMBED}.weight"
POSITION = "embeddings.position_embedding.weight"
# Older checkpoints hold the numbers of the positions too.
IGNORED = ("embeddings.position_ids",)


def sizes_from_hf(config: Mapping[str, Any], *, patch_size: int, norm_eps: float, activation: str) -> dict[str, Any]:
    """The fields of our config; where theirs leaves one out, the family's default."""
    return {
        "image_size": tables.square(config, "image_size", 224),
        "patch_size": tables.square(config, "patch_size", patch_size),
        "width": config.get("hidden_size", 768),
        "num_layers": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "hidden_width": config.get("intermediate_size", 3072),
        "activation": tables.activation_from_hf(config, activation),
        "norm_eps": config.get("layer_norm_eps", norm_eps),
    }


def sizes_to_hf(config: VisionTransformerConfig) -> dict[str, Any]:
    """The fields of theirs; the image's size is that of the learned positions."""
    return {
        "image_size": config.position_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_width,
        "hidden_act": tables.activation_to_hf(config.activation),
        "layer_norm_eps": config.norm_eps,
    }
