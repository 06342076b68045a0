"""AST: transformers' ``ASTModel``, alone or below a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rebus.models.encoders.audio_spectrogram import AudioSpectrogramConfig, AudioSpectrogramTransformer
from rebus.models.encoders.hf import tables
from rebus.models.encoders.hf.tables import Entry, entry, linear

_ATTENTION = "attention.attention"
# As published, and as transformers keeps it in memory since version 5.
_LAYER = [
    *linear("norm1", ["layernorm_before"]),
    *linear(
        "qkv_proj",
        [f"{_ATTENTION}.query", f"{_ATTENTION}.key", f"{_ATTENTION}.value"],
        ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    ),
    *linear("out_proj", ["attention.output.dense"], ["attention.o_proj"]),
    *linear("norm2", ["layernorm_after"]),
    *linear("fc1", ["intermediate.dense"], ["mlp.fc1"]),
    *linear("fc2", ["output.dense"], ["mlp.fc2"]),
]


def config_from_hf(config: Mapping[str, Any]) -> AudioSpectrogramConfig:
    """Our config; what theirs leaves out has the default of its class."""
    return AudioSpectrogramConfig(
        num_mels=config.get("num_mel_bins", 128),
        num_frames=config.get("max_length", 1024),
        patch_size=tables.square(config, "patch_size", 16),
        mel_stride=config.get("frequency_stride", 10),
        frame_stride=config.get("time_stride", 10),
        width=config.get("hidden_size", 768),
        num_layers=config.get("num_hidden_layers", 12),
        num_heads=config.get("num_attention_heads", 12),
        hidden_width=config.get("intermediate_size", 3072),
        activation=tables.activation_from_hf(config, "gelu"),
        norm_eps=config.get("layer_norm_eps", 1e-12),
        qkv_bias=config.get("qkv_bias", True),
    )


def from_hf(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[AudioSpectrogramConfig, dict[str, Tensor]]:
    """Our config and state dict; ``InvalidArgumentError`` names what does not fit."""
    ours = config_from_hf(config)
    weights = tables.import_state(
        lambda: AudioSpectrogramTransformer(ours), _entries(ours), state, anchor="embeddings.cls_token"
    )
    return ours, weights


def to_hf(config: AudioSpectrogramConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of an ``ASTModel``; which layer is read is no part of them."""
    theirs = {
        "model_type": "audio-spectrogram-transformer",
        "architectures": ["ASTModel"],
        "num_mel_bins": config.num_mels,
        "max_length": config.num_frames,
        "patch_size": config.patch_size,
        "frequency_stride": config.mel_stride,
        "time_stride": config.frame_stride,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_width,
        "hidden_act": tables.activation_to_hf(config.activation),
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
    }
    return theirs, tables.export_state(_entries(config), state)


def _entries(config: AudioSpectrogramConfig) -> list[Entry]:
    published, in_memory = "encoder.layer.{}.", "layers.{}."
    return [
        entry("class_token", "embeddings.cls_token", lead=2),
        entry("distillation_token", "embeddings.distillation_token", lead=2),
        *linear("patch_embed", ["embeddings.patch_embeddings.projection"]),
        entry("position", "embeddings.position_embeddings", lead=1),
        *tables.per_layer(_LAYER, config.num_layers, ours="blocks.{}.", theirs=[published, in_memory]),
        *linear("norm", ["layernorm"]),
    ]
