"""Mixtral and OLMoE as transformers keeps them: published files, and those it writes, hold every expert apart."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from rebus.errors import invalid
from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.mixtral import MixtralConfig
from rebus.models.decoders.olmoe import OlmoeConfig
from rebus.models.hf.family import ExpertRule, Family, Rule
from rebus.models.hf.rotary_families import RotaryFile, read_rotary, rotary_family, write_rotary
from rebus.models.moe.hf import config_from_hf, config_to_hf


@dataclass(frozen=True, kw_only=True)
class MixtralFile(RotaryFile):
    """``MixtralConfig`` of transformers."""

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    rms_norm_eps: float = 1e-5
    rope_theta: float | None = 1_000_000.0
    head_dim: int | None = None
    sliding_window: int | None = None
    num_experts_per_tok: int = 2
    num_local_experts: int = 8


@dataclass(frozen=True, kw_only=True)
class OlmoeFile(RotaryFile):
    """``OlmoeConfig`` of transformers."""

    vocab_size: int = 50304
    hidden_size: int = 2048
    intermediate_size: int = 2048
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    clip_qkv: float | None = None
    num_experts_per_tok: int = 8
    num_experts: int = 64
    norm_topk_prob: bool = False

    @property
    def num_local_experts(self) -> int:
        """What Mixtral calls it, and transformers reads by either name."""
        return self.num_experts


def _read(cls: type[DecoderConfig], file: Any) -> DecoderConfig:
    if getattr(file, "clip_qkv", None) is not None:
        raise invalid("config.json.clip_qkv", f"{file.clip_qkv} is not supported, only null")
    if not 1 <= file.num_experts_per_tok <= file.num_local_experts:
        raise invalid(
            "config.json.num_experts_per_tok",
            f"{file.num_experts_per_tok} is not within 1 and the number of experts, {file.num_local_experts}",
        )
    # No layer is dense, so that ``hidden_width`` stays what it is.
    return dataclasses.replace(read_rotary(cls, file), hidden_width=cls.hidden_width, moe=config_from_hf(file))


def _write(cls: type[RotaryFile], config: DecoderConfig, vocab_size: int) -> RotaryFile:
    file = write_rotary(cls, config, vocab_size)
    if config.moe is None:
        raise invalid("decoder.moe", "is not set; every layer of Mixtral and OLMoE holds experts")
    known = {item.name for item in dataclasses.fields(cls)}
    said = {name: value for name, value in config_to_hf(config.moe).items() if name in known}
    return dataclasses.replace(file, **said)


def _family(family: Family, block: str, projections: tuple[str, str, str]) -> Family:
    """``block`` is their name of the layer of experts, ``projections`` those of an expert's gate, up and down."""
    gate, up, down = (f"{block}.experts.{{expert}}.{name}.weight" for name in projections)
    return dataclasses.replace(
        family,
        to_config=functools.partial(_read, family.config),
        to_file=functools.partial(_write, family.file),
        layer_rules=(*family.layer_rules, Rule(f"{block}.gate", ("mlp.gate",))),
        expert_rules=(
            ExpertRule(gate, "mlp.experts.gate_up_proj", part=0, parts=2),
            ExpertRule(up, "mlp.experts.gate_up_proj", part=1, parts=2),
            ExpertRule(down, "mlp.experts.down_proj"),
        ),
    )


MIXTRAL = _family(
    rotary_family("mixtral", "MixtralForCausalLM", MixtralConfig, MixtralFile), "block_sparse_moe", ("w1", "w3", "w2")
)
OLMOE = _family(
    rotary_family("olmoe", "OlmoeForCausalLM", OlmoeConfig, OlmoeFile), "mlp", ("gate_proj", "up_proj", "down_proj")
)
