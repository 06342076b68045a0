"""DINOv2: transformers' ``Dinov2Model`` and ``Dinov2WithRegistersModel``, alone or below a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rebus.errors import invalid
from rebus.models.encoders.dinov2 import Dinov2, Dinov2Config
from rebus.models.encoders.hf import tables
from rebus.models.encoders.hf.tables import Entry, entry, linear

# Of masked pre-training; nothing here reads it.
_MASK_TOKEN = "embeddings.mask_token"
_ATTENTION = "attention.attention"
# A SwiGLU's inner width is a multiple of this.
_SWIGLU_STEP = 8
_MAX_MLP_RATIO = 16

# As published, and as transformers keeps it in memory since version 5.
_LAYER = [
    *linear("norm1", ["norm1"]),
    *linear(
        "qkv_proj",
        [f"{_ATTENTION}.query", f"{_ATTENTION}.key", f"{_ATTENTION}.value"],
        ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    ),
    *linear("out_proj", ["attention.output.dense"], ["attention.o_proj"]),
    entry("scale1", "layer_scale1.lambda1"),
    *linear("norm2", ["norm2"]),
    entry("scale2", "layer_scale2.lambda1"),
]
_GELU = [*linear("fc1", ["mlp.fc1"]), *linear("fc2", ["mlp.fc2"])]
_SWIGLU = [
    *linear("fc1", ["mlp.weights_in"], ["mlp.gate_proj", "mlp.up_proj"]),
    *linear("fc2", ["mlp.weights_out"], ["mlp.down_proj"]),
]


def config_from_hf(config: Mapping[str, Any]) -> Dinov2Config:
    """Our config; what theirs leaves out has the default of its class."""
    registers = config.get("model_type") == "dinov2_with_registers"
    width, swiglu = config.get("hidden_size", 768), config.get("use_swiglu_ffn", False)
    size = tables.square(config, "image_size", 224)
    return Dinov2Config(
        image_size=size,
        trained_size=size,
        patch_size=tables.square(config, "patch_size", 16 if registers else 14),
        width=width,
        num_layers=config.get("num_hidden_layers", 12),
        num_heads=config.get("num_attention_heads", 12),
        hidden_width=_hidden_width(width, config.get("mlp_ratio", 4), swiglu=swiglu),
        activation="swiglu" if swiglu else tables.activation_from_hf(config, "gelu"),
        norm_eps=config.get("layer_norm_eps", 1e-6),
        num_registers=config.get("num_register_tokens", 4) if registers else 0,
        layer_scale=config.get("layerscale_value", 1.0),
        qkv_bias=config.get("qkv_bias", True),
    )


def from_hf(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[Dinov2Config, dict[str, Tensor]]:
    """Our config and state dict; ``InvalidArgumentError`` names what does not fit. The mask token is left out."""
    ours = config_from_hf(config)
    weights = tables.import_state(
        lambda: Dinov2(ours), _entries(ours), state, anchor="embeddings.cls_token", ignored=[_MASK_TOKEN]
    )
    return ours, weights


def to_hf(config: Dinov2Config, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of a ``Dinov2Model``, or one with registers; which layer is read is no part of them.

    Raises ``InvalidArgumentError`` for an inner width that no whole ``mlp_ratio`` makes.
    """
    swiglu = config.activation == "swiglu"
    theirs: dict[str, Any] = {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        "image_size": config.position_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": _mlp_ratio(config, swiglu=swiglu),
        "use_swiglu_ffn": swiglu,
        "hidden_act": "gelu" if swiglu else tables.activation_to_hf(config.activation),
        "layer_norm_eps": config.norm_eps,
        "layerscale_value": config.layer_scale,
        "qkv_bias": config.qkv_bias,
    }
    tensors = tables.export_state(_entries(config), state)
    if config.num_registers:
        theirs |= {"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
        theirs["num_register_tokens"] = config.num_registers
        # This class has a mask token always; zero is what one starts with.
        tensors[_MASK_TOKEN] = torch.zeros(1, config.width, dtype=tensors["layernorm.weight"].dtype)
    else:
        theirs["use_mask_token"] = False
    return theirs, tensors


def _hidden_width(width: int, ratio: int, *, swiglu: bool) -> int:
    """A SwiGLU keeps two thirds, rounded up, of what the same ratio gives a plain feed-forward part."""
    hidden = int(width * ratio)
    return -(-int(hidden * 2 / 3) // _SWIGLU_STEP) * _SWIGLU_STEP if swiglu else hidden


def _mlp_ratio(config: Dinov2Config, *, swiglu: bool) -> int:
    for ratio in range(1, _MAX_MLP_RATIO + 1):
        if _hidden_width(config.width, ratio, swiglu=swiglu) == config.hidden_width:
            return ratio
    raise invalid(
        "config.hidden_width",
        f"{config.hidden_width} is no whole multiple of width={config.width}, as transformers has",
    )


def _entries(config: Dinov2Config) -> list[Entry]:
    layer = [*_LAYER, *(_SWIGLU if config.activation == "swiglu" else _GELU)]
    return [
        entry("class_token", "embeddings.cls_token", lead=2),
        entry("registers", "embeddings.register_tokens", lead=1),
        *linear("patch_embed", ["embeddings.patch_embeddings.projection"]),
        entry("position", "embeddings.position_embeddings", lead=1),
        *tables.per_layer(layer, config.num_layers, ours="blocks.{}.", theirs=["encoder.layer.{}."]),
        *linear("norm", ["layernorm"]),
    ]
