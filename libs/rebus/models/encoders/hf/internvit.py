"""InternViT: transformers' ``InternVLVisionModel``, alone or in an InternVL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rebus.errors import invalid
from rebus.models.encoders.hf import tables
from rebus.models.encoders.hf.tables import Entry, entry, linear
from rebus.models.encoders.internvit import InternVit, InternVitConfig
from rebus.models.encoders.transformer import Norm

_NORMS: dict[str, Norm] = {"layer_norm": "layer", "rms_norm": "rms"}
# What no published model sets, and what is not built here.
_FIXED = {"use_absolute_position_embeddings": True, "use_mask_token": False}
_LAYER = [
    *linear("norm1", ["layernorm_before"]),
    *linear("qkv_proj", ["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
    entry("q_norm.weight", "attention.q_norm.weight"),
    entry("k_norm.weight", "attention.k_norm.weight"),
    *linear("out_proj", ["attention.projection_layer"]),
    entry("scale1", "lambda_1"),
    *linear("norm2", ["layernorm_after"]),
    *linear("fc1", ["mlp.fc1"]),
    *linear("fc2", ["mlp.fc2"]),
    entry("scale2", "lambda_2"),
]


def config_from_hf(config: Mapping[str, Any]) -> InternVitConfig:
    """Our config; what theirs leaves out has the default of its class. ``InvalidArgumentError`` names what is not."""
    theirs = tables.vision_config(config)
    for name, value in _FIXED.items():
        if (found := theirs.get(name, value)) != value:
            raise invalid(f"config.{name}", f"{found} is not supported, only {value}")
    if (norm := theirs.get("norm_type", "layer_norm")) not in _NORMS:
        raise invalid("config.norm_type", f"expected one of {', '.join(_NORMS)}, found {norm!r}")
    return InternVitConfig(
        image_size=tables.square(theirs, "image_size", 448),
        patch_size=tables.square(theirs, "patch_size", 14),
        width=theirs.get("hidden_size", 1024),
        num_layers=theirs.get("num_hidden_layers", 24),
        num_heads=theirs.get("num_attention_heads", 16),
        hidden_width=theirs.get("intermediate_size", 4096),
        activation=tables.activation_from_hf(theirs, "gelu"),
        norm=_NORMS[norm],
        norm_eps=theirs.get("layer_norm_eps", 1e-6),
        qk_norm=theirs.get("use_qk_norm", False),
        qkv_bias=theirs.get("attention_bias", False),
        layer_scale=theirs.get("layer_scale_init_value", 0.1),
        final_norm=not theirs.get("use_mean_pooling", True),
    )


def from_hf(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[InternVitConfig, dict[str, Tensor]]:
    """Our config and state dict; ``InvalidArgumentError`` names what does not fit."""
    ours = config_from_hf(config)
    return ours, tables.import_state(lambda: InternVit(ours), _entries(ours), state, anchor="embeddings.cls_token")


def to_hf(config: InternVitConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of an ``InternVLVisionModel``; which layer is read is no part of them."""
    theirs = {
        "model_type": "internvl_vision",
        "architectures": ["InternVLVisionModel"],
        "image_size": [config.position_size] * 2,
        "patch_size": [config.patch_size] * 2,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_width,
        "hidden_act": tables.activation_to_hf(config.activation),
        "norm_type": next(name for name, norm in _NORMS.items() if norm == config.norm),
        "layer_norm_eps": config.norm_eps,
        "use_qk_norm": config.qk_norm,
        "attention_bias": config.qkv_bias,
        "layer_scale_init_value": config.layer_scale,
        "use_mean_pooling": not config.final_norm,
        **_FIXED,
    }
    return theirs, tables.export_state(_entries(config), state)


def _entries(config: InternVitConfig) -> list[Entry]:
    return [
        entry("class_token", "embeddings.cls_token", lead=2),
        *linear("patch_embed", ["embeddings.patch_embeddings.projection"]),
        entry("position", "embeddings.position_embeddings", lead=1),
        *tables.per_layer(_LAYER, config.num_layers, ours="blocks.{}.", theirs=["encoder.layer.{}."]),
        *linear("norm", ["layernorm"]),
    ]
