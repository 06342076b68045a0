"""GGUF, the files of llama.cpp: LLaMA models such as SmolLM2, their weights dequantised to float32.

Reading needs the package ``gguf``, which Rebus does not depend on: ``pip install 'rebus[gguf]'``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebus.errors import DataLossError, FailedPreconditionError, NotFoundError, ResourceExhaustedError, invalid
from rebus.models.causal_lm import CausalLm
from rebus.models.hf.convert import MAX_BYTES, build_model, require_empty
from rebus.models.hf.family import Rule
from rebus.models.hf.gguf_tokenizer import tokenizer_files
from rebus.models.hf.rotary_families import LLAMA
from rebus.models.io import save_model

# LLaMA under llama.cpp's names.
_FAMILY = dataclasses.replace(
    LLAMA,
    prefix="",
    layers="blk",
    layer_rules=(
        Rule("attn_norm", ("input_layernorm",)),
        Rule("attn_q", ("self_attn.q_proj",)),
        Rule("attn_k", ("self_attn.k_proj",)),
        Rule("attn_v", ("self_attn.v_proj",)),
        Rule("attn_output", ("self_attn.o_proj",)),
        Rule("ffn_norm", ("post_attention_layernorm",)),
        Rule("ffn_gate", ("mlp.gate_proj",)),
        Rule("ffn_up", ("mlp.up_proj",)),
        Rule("ffn_down", ("mlp.down_proj",)),
    ),
    rules=(Rule("token_embd", ("embed_tokens",)), Rule("output_norm", ("norm",))),
)
_KEYS = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
    "head_dim": "llama.rope.dimension_count",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_OUTPUT = {"output.weight": "lm_head.weight"}


def import_gguf(source: Path, target: Path, *, max_bytes: int = MAX_BYTES) -> CausalLm:
    """Makes the new model folder ``target`` of a GGUF file, its tokenizer and chat template with it.

    Raises what ``read_gguf`` raises, and ``AlreadyExistsError`` where ``target`` holds anything.
    """
    require_empty(target)
    file = _open(source, max_bytes=max_bytes)
    texts = tokenizer_files(file.metadata)
    model = _model(file)
    save_model(model, target)
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8")
    return model


def read_gguf(path: Path, *, max_bytes: int = MAX_BYTES) -> CausalLm:
    """The language model of a GGUF file: float32, in evaluation mode, on the CPU.

    Raises ``InvalidArgumentError`` for another architecture than LLaMA or a setting without a counterpart here,
    ``DataLossError`` for a damaged file or tensors that do not fit, ``ResourceExhaustedError`` for more than
    ``max_bytes``, and ``FailedPreconditionError`` without the package ``gguf``.
    """
    return _model(_open(path, max_bytes=max_bytes))


@dataclass(frozen=True)
class _File:
    """The metadata, and the tensors as the package describes them."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]
    dequantize: Any


def _open(path: Path, *, max_bytes: int) -> _File:
    if not path.is_file():
        raise NotFoundError(f"no file {path}")
    if (size := path.stat().st_size) > max_bytes:
        raise ResourceExhaustedError(f"{path.name} is {size} bytes, more than {max_bytes}")
    try:
        gguf = importlib.import_module("gguf")
    except ImportError:
        raise FailedPreconditionError("reading GGUF needs a package: pip install 'rebus[gguf]'") from None
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # of a damaged file the package raises whatever its parsing runs into
        raise DataLossError(f"{path.name}: not a readable GGUF file: {error}") from None
    return _File(metadata, tensors, gguf.quants.dequantize)


def _model(file: _File) -> CausalLm:
    values = _config(file)
    tensors = {_OUTPUT.get(name, name): tensor for name, tensor in file.tensors.items()}
    heads = {"attn_q": values["num_attention_heads"], "attn_k": values.get("num_key_value_heads")}

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        plain = torch.from_numpy(np.array(file.dequantize(tensor.data, tensor.tensor_type)))
        stem = name.split(".")[-2]
        return _unpermuted(plain, heads[stem] or heads["attn_q"]) if stem in heads else plain

    # A tensor's shape stands there with the innermost axis first; every type can be dequantised.
    shapes = {name: (tuple(int(n) for n in reversed(tensor.shape)), True) for name, tensor in tensors.items()}
    return build_model(_FAMILY, values, shapes, read)


def _config(file: _File) -> dict[str, Any]:
    """What a ``config.json`` would say."""
    metadata = file.metadata
    if (found := metadata.get("general.architecture")) != "llama":
        raise invalid("general.architecture", f"expected llama, found {found!r}")
    if (scaling := metadata.get("llama.rope.scaling.type", "none")) != "none":
        raise invalid("llama.rope.scaling.type", f"{scaling!r} is not read")
    values = {key: _short(metadata[name]) for key, name in _KEYS.items() if name in metadata}
    values["vocab_size"] = len(metadata.get("tokenizer.ggml.tokens", ()))
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    if "num_attention_heads" not in values:
        raise invalid(_KEYS["num_attention_heads"], "is required")
    return values


def _short(value: Any) -> Any:
    """Floats are kept in 32 bits: 1e-05 reads as 9.999999747378752e-06, which nobody meant."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _unpermuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in LLaMA's order: llama.cpp interleaves the two halves of each head."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(weight.shape)
