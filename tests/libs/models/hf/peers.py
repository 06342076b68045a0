"""Tiny random language models of transformers, one or more a family, and how to compare ours with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rebus.models.causal_lm import CausalLm
from rebus.models.decoders.transformer import Decoder
from rebus.models.hf.convert import FAMILIES, decoder_slots

VOCAB = 61
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {**_SIZES, "rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}}


# Name -> (model_type, what differs from the family's defaults).
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_SIZES, "rms_norm_eps": 1e-5}),
    "llama-variants": (
        "llama",
        {
            **_SIZES,
            "head_dim": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama-linear": ("llama", _rope("linear", factor=4.0)),
    "llama-dynamic": ("llama", _rope("dynamic", factor=2.0) | {"max_position_embeddings": 8}),
    "llama-yarn": ("llama", _rope("yarn", factor=4.0, original_max_position_embeddings=24)),
    "llama-yarn-set": (
        "llama",
        _rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=24,
            mscale=0.7,
            mscale_all_dim=1.3,
            beta_fast=4.0,
            beta_slow=0.5,
            truncate=False,
        ),
    ),
    "llama3": (
        "llama",
        _rope("llama3", factor=8.0, original_max_position_embeddings=12, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "mistral": ("mistral", {**_SIZES, "sliding_window": 6}),
    "mistral-no-window": ("mistral", {**_SIZES, "sliding_window": None, "head_dim": 12}),
    "qwen2": ("qwen2", {**_SIZES, "tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        {**_SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3": ("qwen3", {**_SIZES, "head_dim": 16}),
    "gpt2": ("gpt2", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "gpt2-variants": (
        "gpt2",
        {
            "vocab_size": VOCAB,
            "n_embd": 24,
            "n_layer": 1,
            "n_head": 3,
            "n_positions": 96,
            "n_inner": 20,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
    ),
    "opt": (
        "opt",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "ffn_dim": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 96,
        },
    ),
    "mixtral": ("mixtral", {**_SIZES, "num_local_experts": 4}),
    "mixtral-variants": (
        "mixtral",
        {**_SIZES, "num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": 12, "sliding_window": 6},
    ),
    "olmoe": ("olmoe", {**_SIZES, "num_experts": 6, "num_experts_per_tok": 3}),
    "olmoe-variants": (
        "olmoe",
        {
            **_SIZES,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}
# One a family.
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "opt", "mixtral", "olmoe")


def peer(name: str, **changes: Any) -> Any:
    """A peer in evaluation mode; every weight, norms and biases too, is drawn, so that none is 0 or 1 by its nature."""
    model_type, values = PEERS[name]
    specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = CONFIG_MAPPING[model_type](**{**values, **specials, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    redraw(model)
    return model


@torch.no_grad()
def redraw(model: nn.Module, scale: float = 0.25) -> None:
    """Draws every weight anew: large enough that tokens differ, norms around 1."""
    for name, parameter in model.named_parameters():
        center = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        parameter.copy_(center + scale * torch.randn_like(parameter))


def gradients_like_theirs(ours: CausalLm, model_type: str) -> dict[str, Tensor]:
    """Our gradients under their names and in their layouts."""
    grads = {name: p.grad for name, p in ours.decoder.named_parameters() if p.grad is not None}
    return decoder_gradients(ours.decoder, grads, model_type, prefix=FAMILIES[model_type].prefix)


def decoder_gradients(decoder: Decoder, grads: dict[str, Tensor], family: str, *, prefix: str) -> dict[str, Tensor]:
    """Gradients of the decoder's parameters as a model of theirs names and lays them out, below ``prefix``."""
    if decoder.config.moe is not None:
        found = grads  # in memory transformers stacks experts as we do, and takes them apart for files alone
    else:
        own = FAMILIES[family].prefix
        slots = decoder_slots(FAMILIES[family], decoder)
        found = {slot.theirs.removeprefix(own): slot.join(grads) for slot in slots}
    return {name if name.startswith("lm_head.") else f"{prefix}{name}": grad for name, grad in found.items()}


def assert_same_model(ours: CausalLm, theirs: Any, model_type: str, *, length: int = 21) -> None:
    """Logits, and the gradient of every parameter, agree."""
    torch.manual_seed(1)
    ids = torch.randint(VOCAB, (2, length))
    weights = torch.randn(2, length, VOCAB)
    ours_logits, theirs_logits = ours(ids), theirs(input_ids=ids).logits
    torch.testing.assert_close(ours_logits, theirs_logits)

    ours.zero_grad()
    theirs.zero_grad()
    for logits in (ours_logits, theirs_logits):
        (logits.log_softmax(-1) * weights).mean().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    found = gradients_like_theirs(ours, model_type)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda m, name=name: f"{name}: {m}")
