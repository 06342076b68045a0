"""GPT-2 and OPT as transformers keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rebus.errors import invalid
from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.gpt2 import Gpt2Config, OptConfig
from rebus.models.hf.activations import read_activation, write_activation
from rebus.models.hf.family import Family, Rule


@dataclass(frozen=True, kw_only=True)
class Gpt2File:
    """``GPT2Config`` of transformers."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False


@dataclass(frozen=True, kw_only=True)
class OptFile:
    """``OPTConfig`` of transformers."""

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    max_position_embeddings: int = 2048
    num_attention_heads: int = 12
    activation_function: str = "relu"
    tie_word_embeddings: bool = True
    do_layer_norm_before: bool = True
    _remove_final_layer_norm: bool = False
    word_embed_proj_dim: int | None = None
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True


def _read_gpt2(file: Gpt2File) -> DecoderConfig:
    _only(file, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return Gpt2Config(
        width=file.n_embd,
        num_layers=file.n_layer,
        num_heads=file.n_head,
        num_kv_heads=file.n_head,
        hidden_width=file.n_inner or 4 * file.n_embd,
        activation=read_activation(file.activation_function, field="config.json.activation_function"),
        max_positions=file.n_positions,
        norm_eps=file.layer_norm_epsilon,
        tie_embeddings=file.tie_word_embeddings,
    )


def _write_gpt2(config: DecoderConfig, vocab_size: int) -> Gpt2File:
    return Gpt2File(
        vocab_size=vocab_size,
        n_positions=config.max_positions,
        n_embd=config.width,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        n_inner=config.hidden_width,
        activation_function=write_activation(config.activation),
        layer_norm_epsilon=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings,
    )


def _read_opt(file: OptFile) -> DecoderConfig:
    # OPT-350m alone normalises after its blocks and projects its embeddings.
    _only(file, do_layer_norm_before=True, _remove_final_layer_norm=False)
    _only(file, enable_bias=True, layer_norm_elementwise_affine=True)
    if file.word_embed_proj_dim not in (None, file.hidden_size):
        raise invalid(
            "config.json.word_embed_proj_dim", f"{file.word_embed_proj_dim} is not hidden_size={file.hidden_size}"
        )
    return OptConfig(
        width=file.hidden_size,
        num_layers=file.num_hidden_layers,
        num_heads=file.num_attention_heads,
        num_kv_heads=file.num_attention_heads,
        hidden_width=file.ffn_dim,
        activation=read_activation(file.activation_function, field="config.json.activation_function"),
        max_positions=file.max_position_embeddings,
        tie_embeddings=file.tie_word_embeddings,
    )


def _write_opt(config: DecoderConfig, vocab_size: int) -> OptFile:
    return OptFile(
        vocab_size=vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        ffn_dim=config.hidden_width,
        max_position_embeddings=config.max_positions,
        num_attention_heads=config.num_heads,
        activation_function=write_activation(config.activation),
        tie_word_embeddings=config.tie_embeddings,
        word_embed_proj_dim=config.width,
    )


def _only(file: Any, **expected: bool) -> None:
    for name, value in expected.items():
        if (found := getattr(file, name)) != value:
            raise invalid(f"config.json.{name}", f"{found} is not supported, only {value}")


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    config=Gpt2Config,
    file=Gpt2File,
    to_config=_read_gpt2,
    to_file=_write_gpt2,
    prefix="transformer.",
    layers="h",
    layer_rules=(
        Rule("ln_1", ("input_layernorm",)),
        Rule("attn.c_attn", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), transposed=True),
        Rule("attn.c_proj", ("self_attn.o_proj",), transposed=True),
        Rule("ln_2", ("post_attention_layernorm",)),
        Rule("mlp.c_fc", ("mlp.up_proj",), transposed=True),
        Rule("mlp.c_proj", ("mlp.down_proj",), transposed=True),
    ),
    rules=(Rule("wte", ("embed_tokens",)), Rule("wpe", ("embed_positions",)), Rule("ln_f", ("norm",))),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
OPT = Family(
    name="opt",
    architecture="OPTForCausalLM",
    config=OptConfig,
    file=OptFile,
    to_config=_read_opt,
    to_file=_write_opt,
    prefix="model.",
    layers="decoder.layers",
    layer_rules=(
        Rule("self_attn_layer_norm", ("input_layernorm",)),
        Rule("self_attn.q_proj", ("self_attn.q_proj",)),
        Rule("self_attn.k_proj", ("self_attn.k_proj",)),
        Rule("self_attn.v_proj", ("self_attn.v_proj",)),
        Rule("self_attn.out_proj", ("self_attn.o_proj",)),
        Rule("final_layer_norm", ("post_attention_layernorm",)),
        Rule("fc1", ("mlp.up_proj",)),
        Rule("fc2", ("mlp.down_proj",)),
    ),
    rules=(
        Rule("decoder.embed_tokens", ("embed_tokens",)),
        Rule("decoder.embed_positions", ("embed_positions",)),
        Rule("decoder.final_layer_norm", ("norm",)),
    ),
)
