"""Whisper's encoder: transformers' ``WhisperEncoder``, alone or in a ``WhisperForConditionalGeneration``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rebus.models.encoders.hf import tables
from rebus.models.encoders.hf.tables import Entry, entry, linear
from rebus.models.encoders.whisper import WhisperEncoder, WhisperEncoderConfig

# A token covers so many frames of the spectrogram.
_STRIDE = 2
_LAYER = [
    *linear("norm1", ["self_attn_layer_norm"]),
    Entry("qkv_proj.weight", (tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),)),
    Entry("qkv_proj.qv_bias", (tuple(f"self_attn.{name}_proj.bias" for name in "qv"),)),
    *linear("out_proj", ["self_attn.out_proj"]),
    *linear("norm2", ["final_layer_norm"]),
    *linear("fc1", ["fc1"]),
    *linear("fc2", ["fc2"]),
]


def config_from_hf(config: Mapping[str, Any]) -> WhisperEncoderConfig:
    """Our config; what theirs leaves out has the default of its class."""
    return WhisperEncoderConfig(
        num_mels=config.get("num_mel_bins", 80),
        num_frames=_STRIDE * config.get("max_source_positions", 1500),
        width=config.get("d_model", 384),
        num_layers=config.get("encoder_layers", 4),
        num_heads=config.get("encoder_attention_heads", 6),
        hidden_width=config.get("encoder_ffn_dim", 1536),
        activation=tables.activation_from_hf(config, "gelu", field="activation_function"),
    )


def from_hf(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[WhisperEncoderConfig, dict[str, Tensor]]:
    """Our config and state dict; ``InvalidArgumentError`` names what does not fit."""
    ours = config_from_hf(config)
    weights = tables.import_state(lambda: WhisperEncoder(ours), _entries(ours), state, anchor="conv1.weight")
    return ours, weights


def to_hf(config: WhisperEncoderConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The encoder's part of a Whisper's config, and the state dict of a ``WhisperEncoder``."""
    theirs = {
        "model_type": "whisper",
        "num_mel_bins": config.num_mels,
        "max_source_positions": config.num_frames // _STRIDE,
        "d_model": config.width,
        "encoder_layers": config.num_layers,
        "encoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.hidden_width,
        "activation_function": tables.activation_to_hf(config.activation),
    }
    return theirs, tables.export_state(_entries(config), state)


def _entries(config: WhisperEncoderConfig) -> list[Entry]:
    return [
        *linear("conv1", ["conv1"]),
        *linear("conv2", ["conv2"]),
        entry("position", "embed_positions.weight"),
        *tables.per_layer(_LAYER, config.num_layers, ours="blocks.{}.", theirs=["layers.{}."]),
        *linear("norm", ["layer_norm"]),
    ]
