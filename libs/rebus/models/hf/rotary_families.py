"""LLaMA (SmolLM2 too), Mistral, Qwen2 and Qwen3 as transformers keeps them: one naming, four ``config.json``."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

from rebus.errors import invalid
from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.llama import LlamaConfig
from rebus.models.decoders.mistral import MistralConfig
from rebus.models.decoders.qwen import Qwen2Config, Qwen3Config
from rebus.models.hf.activations import read_activation, write_activation
from rebus.models.hf.family import Family, Rule
from rebus.models.hf.rope import read_rope, write_rope


@dataclass(frozen=True, kw_only=True)
class RotaryFile:
    """What all of them say; the defaults are transformers'."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    # Of files from transformers 4.
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class LlamaFile(RotaryFile):
    """``LlamaConfig`` of transformers."""

    head_dim: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class MistralFile(RotaryFile):
    """``MistralConfig`` of transformers."""

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    head_dim: int | None = None
    sliding_window: int | None = 4096


@dataclass(frozen=True, kw_only=True)
class Qwen2File(RotaryFile):
    """``Qwen2Config`` of transformers; the window counts only where ``use_sliding_window`` is on."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Qwen3File(Qwen2File):
    """``Qwen3Config`` of transformers."""

    head_dim: int | None = 128
    attention_bias: bool = False


def read_rotary(cls: type[DecoderConfig], file: RotaryFile) -> DecoderConfig:
    """Settings of our decoder ``cls`` from what the file says."""
    heads = file.num_attention_heads
    own_head = getattr(file, "head_dim", None) or 0
    bias = getattr(file, "attention_bias", cls.attention_bias)
    rope = {**(file.rope_scaling or {}), **(file.rope_parameters or {})}
    if file.partial_rotary_factor is not None:
        rope.setdefault("partial_rotary_factor", file.partial_rotary_factor)
    return cls(
        width=file.hidden_size,
        num_layers=file.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=file.num_key_value_heads or heads,
        head_dim=0 if heads > 0 and own_head * heads == file.hidden_size else own_head,
        hidden_width=file.intermediate_size,
        activation=read_activation(file.hidden_act, field="config.json.hidden_act"),
        max_positions=file.max_position_embeddings,
        norm_eps=file.rms_norm_eps,
        tie_embeddings=file.tie_word_embeddings,
        attention_bias=bias,
        mlp_bias=getattr(file, "mlp_bias", False),
        **read_rope(rope, theta=file.rope_theta, max_positions=file.max_position_embeddings),
        **_read_window(file),
    )


def _read_window(file: RotaryFile) -> dict[str, Any]:
    if isinstance(file, Qwen2File):
        window = (file.sliding_window or 0) if file.use_sliding_window else 0
        first = file.max_window_layers if window else 0
        _check_layer_types(file, window, first)
        return {"sliding_window": window, "window_from_layer": first}
    return {"sliding_window": getattr(file, "sliding_window", None) or 0}


def _check_layer_types(file: Qwen2File, window: int, first: int) -> None:
    """Refuses layers with and without a window in another order than one after the other."""
    count = file.num_hidden_layers
    if file.layer_types is None or not 0 < count <= len(file.layer_types):
        return
    full = min(first, count) if window else count
    if file.layer_types != ["full_attention"] * full + ["sliding_attention"] * (count - full):
        raise invalid("config.json.layer_types", f"expected {full} times full_attention, then sliding_attention")


def write_rotary(cls: type[RotaryFile], config: DecoderConfig, vocab_size: int) -> RotaryFile:
    """What the file ``cls`` says of our decoder; settings that it has no word for are left out."""
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.hidden_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": write_activation(config.activation),
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": write_rope(config),
        # The same in the words of transformers 4 and of what reads its files.
        "rope_theta": config.rope_theta,
        "rope_scaling": write_rope(config) if config.rope_scaling else None,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "use_sliding_window": bool(config.sliding_window),
        "sliding_window": config.sliding_window or None,
        "max_window_layers": config.window_from_layer if config.sliding_window else config.num_layers,
    }
    known = {item.name for item in fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in known})


def rotary_family(name: str, architecture: str, config: type[DecoderConfig], file: type[RotaryFile]) -> Family:
    """A family whose layers are named as LLaMA's."""
    return Family(
        name=name,
        architecture=architecture,
        config=config,
        file=file,
        to_config=functools.partial(read_rotary, config),
        to_file=functools.partial(write_rotary, file),
        prefix="model.",
        layers="layers",
        layer_rules=tuple(Rule(stem, (stem,)) for stem in _LAYER),
        rules=(Rule("embed_tokens", ("embed_tokens",)), Rule("norm", ("norm",))),
        ignored=("rotary_emb.inv_freq",),
    )


# Our names are theirs.
_LAYER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
LLAMA = rotary_family("llama", "LlamaForCausalLM", LlamaConfig, LlamaFile)
MISTRAL = rotary_family("mistral", "MistralForCausalLM", MistralConfig, MistralFile)
QWEN2 = rotary_family("qwen2", "Qwen2ForCausalLM", Qwen2Config, Qwen2File)
QWEN3 = rotary_family("qwen3", "Qwen3ForCausalLM", Qwen3Config, Qwen3File)
