"""Folders of Hugging Face models: what is refused and how it is named, shards, older files, tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from rebus import registry
from rebus.errors import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    RebusError,
    ResourceExhaustedError,
)
from rebus.models import load_model
from rebus.models.hf import export_folder, import_folder, read_folder, write_folder
from rebus.models.hf.files import INDEX_FILE, WEIGHTS_FILE
from tests.libs.models.hf.peers import VOCAB, peer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name in ("llama", "llama-variants", "gpt2", "opt", "qwen2", "mixtral", "olmoe"):
        folders[name] = tmp_path_factory.mktemp(name)
        peer(name).save_pretrained(folders[name])
    return folders


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(saved[name], tmp_path / name))

    return copied


def set_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llama", {"model_type": "lama"}, "config.json.model_type: unknown 'lama'; known: llama"),
        ("llama", {"model_type": None}, "config.json.model_type"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"hidden_act": "mish"}, "config.json.hidden_act: unknown activation 'mish'"),
        ("llama", {"hidden_size": "wide"}, "config.json.hidden_size"),
        ("llama", {"num_attention_heads": 0}, "num_heads=0"),
        ("llama", {"hidden_size": 10**30}, "config.json.hidden_size: 10{30} is not within"),
        ("llama", {"vocab_size": -1}, "config.json.vocab_size: -1 is not within"),
        ("llama", {"vocab_size": 0}, "vocab_size"),
        ("llama", {"rms_norm_eps": float("nan")}, "norm_eps=nan"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta=-1.0"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": float("nan")}}, "factor=nan"),
        ("llama", {"num_attention_heads": 5}, "num_heads=5"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_parameters.kind"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "long_factor": [1.0]}}, "rope_parameters.long_factor"),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, "config.json.layer_types"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("opt", {"do_layer_norm_before": False}, "config.json.do_layer_norm_before: False is not supported"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim: 16 is not hidden_size=32"),
        ("opt", {"enable_bias": False}, "enable_bias"),
        ("olmoe", {"clip_qkv": 8.0}, "config.json.clip_qkv: 8.0 is not supported"),
        ("olmoe", {"num_experts_per_tok": 7}, "config.json.num_experts_per_tok: 7 is not within 1 and .* 6"),
        ("mixtral", {"num_experts_per_tok": 0}, "config.json.num_experts_per_tok: 0 is not within"),
        ("mixtral", {"num_local_experts": 0}, "config.json.num_experts_per_tok: 2 is not within"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act: is 'gelu'"),
    ],
)
def test_settings_without_a_counterpart_are_named(
    folder: Callable[[str], Path], name: str, changes: dict[str, Any], named: str
) -> None:
    path = folder(name)
    set_config(path, **changes)
    with pytest.raises(InvalidArgumentError, match=named):
        read_folder(path)


def lose(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(1)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.zeros(31)


def quantise(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lose, "lacks model.layers.1.mlp.up_proj.weight"),
        (add, "unknown model.layers.2.mlp.up_proj.weight"),
        (reshape, r"model.norm.weight is \[31\], expected \[32\]"),
        (quantise, "model.norm.weight holds no floating-point numbers"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Callable[[str], Path], change: Callable[[dict[str, Tensor]], None], named: str
) -> None:
    path = folder("llama")
    change_weights(path, change)
    with pytest.raises(DataLossError, match=named):
        read_folder(path)


def lose_expert(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]


def add_expert(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.block_sparse_moe.experts.4.w1.weight"] = torch.zeros(40, 32)


def turn_expert(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    tensors[name] = tensors[name].T.contiguous()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lose_expert, "lacks model.layers.1.block_sparse_moe.experts.2.w3.weight"),
        (add_expert, "unknown model.layers.0.block_sparse_moe.experts.4.w1.weight"),
        (turn_expert, r"experts.1.w2.weight is \[40, 32\], expected \[32, 40\]"),
    ],
)
def test_experts_that_do_not_fit_are_named(
    folder: Callable[[str], Path], change: Callable[[dict[str, Tensor]], None], named: str
) -> None:
    path = folder("mixtral")
    change_weights(path, change)
    with pytest.raises(DataLossError, match=named):
        read_folder(path)


def test_a_claim_of_endless_layers_or_widths_costs_nothing(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    set_config(path, num_hidden_layers=10**8)
    with pytest.raises(DataLossError, match="claims 100000000 layers"):
        read_folder(path)
    set_config(path, num_hidden_layers=2, vocab_size=10**8)
    with pytest.raises(DataLossError, match=r"embed_tokens.weight is \[61, 32\], expected \[100000000, 32\]"):
        read_folder(path)
    path = folder("olmoe")
    set_config(path, num_experts=10**8)
    with pytest.raises(DataLossError, match="claims 2 layers of 100000000 experts"):
        read_folder(path)


def test_pickles_are_not_read_and_sizes_are_bounded(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    with pytest.raises(ResourceExhaustedError, match="more than 1000"):
        read_folder(path, max_bytes=1000)
    torch.save(load_file(path / WEIGHTS_FILE), path / "pytorch_model.bin")
    (path / WEIGHTS_FILE).unlink()
    with pytest.raises(NotFoundError, match="other formats are not read"):
        read_folder(path)


def test_damaged_files_are_named(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    (path / WEIGHTS_FILE).write_bytes((path / WEIGHTS_FILE).read_bytes()[:500])
    with pytest.raises(DataLossError, match="model.safetensors: unreadable"):
        read_folder(path)
    (path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InvalidArgumentError, match="config.json: not valid JSON"):
        read_folder(path)
    (path / "config.json").unlink()
    with pytest.raises(NotFoundError, match="no config.json"):
        read_folder(path)


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    change(index["weight_map"])
    (folder / INDEX_FILE).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda files: files.update(x="../evil.safetensors"), InvalidArgumentError, "'../evil.safetensors'"),
        (lambda files: files.update(x="pytorch_model.bin"), InvalidArgumentError, "'pytorch_model.bin'"),
        (lambda files: files.update(x="gone.safetensors"), DataLossError, "lists gone.safetensors"),
        (lambda files: files.pop("model.norm.weight"), DataLossError, "other tensors than the shards hold"),
        (lambda files: files.clear(), InvalidArgumentError, "weight_map"),
    ],
)
def test_an_index_that_is_wrong_is_refused(
    saved: dict[str, Path],
    tmp_path: Path,
    change: Callable[[dict[str, str]], object],
    error: type[RebusError],
    named: str,
) -> None:
    write_folder(read_folder(saved["llama"]).decoder, tmp_path / "shards", max_shard_bytes=8_000)
    edit_index(tmp_path / "shards", change)
    with pytest.raises(error, match=named):
        read_folder(tmp_path / "shards")


def test_shards_are_bounded_and_listed(saved: dict[str, Path], tmp_path: Path) -> None:
    model = read_folder(saved["llama"])
    write_folder(model.decoder, tmp_path / "shards", max_shard_bytes=9_000)
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 3
    for shard in shards:
        assert sum(tensor.nbytes for tensor in load_file(shard).values()) <= 9_000
    index = json.loads((tmp_path / "shards" / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    for name, tensor in read_folder(tmp_path / "shards").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_older_files_mean_the_same(folder: Callable[[str], Path]) -> None:
    """The bare model's names and attention's buffers of published GPT-2; the rotary keys of transformers 4."""
    path = folder("gpt2")
    expected = read_folder(path).state_dict()

    def age(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    change_weights(path, age)
    for name, tensor in read_folder(path).state_dict().items():
        assert torch.equal(tensor, expected[name]), name

    path = folder("llama")
    scaling = {"type": "linear", "factor": 2.0}
    set_config(path, rope_parameters=None, rope_theta=123.0, rope_scaling=scaling)
    config = read_folder(path).decoder.config
    assert config.rope_theta == 123.0
    assert config.rope_scaling is not None
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 2.0)


def test_half_precision_is_widened(folder: Callable[[str], Path]) -> None:
    path = folder("llama")

    def halve(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.bfloat16()

    change_weights(path, halve)
    model = read_folder(path)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(model.decoder.norm.weight, load_file(path / WEIGHTS_FILE)["model.norm.weight"].float())


def test_a_repeated_output_layer_must_be_the_table(folder: Callable[[str], Path]) -> None:
    path = folder("llama-variants")

    def repeat(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_weights(path, repeat)
    assert read_folder(path).decoder.lm_head is None
    change_weights(path, lambda tensors: tensors["lm_head.weight"].mul_(2))
    with pytest.raises(DataLossError, match="lm_head.weight is not model.embed_tokens.weight"):
        read_folder(path)


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        ({"name": "llama", "norm": "layer"}, "llama in transformers has no word for norm='layer'"),
        ({"name": "llama", "sliding_window": 4}, "sliding_window=4"),
        ({"name": "mistral", "attention_bias": True}, "attention_bias=True"),
        ({"name": "qwen2", "qk_norm": True}, "qk_norm=True"),
        ({"name": "gpt2", "num_kv_heads": 2}, "num_kv_heads=2"),
        ({"name": "opt", "norm_eps": 1e-3}, "norm_eps=0.001"),
        ({"name": "llama", "moe": {}}, "no word for moe=MoeConfig"),
        ({"name": "mixtral", "moe": None}, "decoder.moe: is not set"),
        ({"name": "mixtral", "moe_every": 3}, "moe_every=3"),
        ({"name": "mixtral", "moe": {"num_shared_experts": 1}}, "num_shared_experts=1"),
        ({"name": "mixtral", "moe": {"router": {"name": "sigmoid"}}}, "moe.router.name: is 'sigmoid'"),
        ({"name": "mixtral", "moe": {"router": {"name": "top-k", "renormalize": False}}}, "renormalize': False"),
        ({"name": "olmoe", "qk_norm_over": "head"}, "qk_norm_over='head'"),
    ],
)
def test_what_a_family_cannot_say_is_not_exported(decoder: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        write_folder(registry.build("decoder", decoder, vocab_size=VOCAB), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def small_tokenizer(folder: Path) -> None:
    backend = BackendTokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<eos>"])
    backend.save(str(folder / "tokenizer.json"))


def test_import_and_export_carry_the_tokenizer_and_the_chat_template(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = folder("llama")
    small_tokenizer(path)
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"})
    )
    (path / "chat_template.jinja").write_text(template)

    made = import_folder(path, tmp_path / "rebus")
    loaded = load_model(tmp_path / "rebus")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name])
    assert export_folder(tmp_path / "rebus", tmp_path / "back") == "LlamaForCausalLM"
    readme = (tmp_path / "back" / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert f"| **all** |  | {sum(p.numel() for p in made.parameters()):,} " in readme
    assert "registry" not in readme

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer("b a")["input_ids"] == [2, 1]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "[user] a"
    with pytest.raises(AlreadyExistsError, match="holds something"):
        export_folder(tmp_path / "rebus", tmp_path / "back")


def test_special_ids_survive(folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = folder("llama")
    set_config(path, bos_token_id=3, eos_token_id=[4, 5], pad_token_id=0)
    import_folder(path, tmp_path / "rebus")
    export_folder(tmp_path / "rebus", tmp_path / "back")
    config = AutoConfig.from_pretrained(tmp_path / "back")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (3, [4, 5], 0)


def test_a_tokenizer_of_ours_opens_in_transformers(folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = folder("llama")
    small_tokenizer(path)
    import_folder(path, tmp_path / "rebus")
    export_folder(tmp_path / "rebus", tmp_path / "back")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer("b a")["input_ids"] == [2, 1]
    assert tokenizer.eos_token == "<eos>"


@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_experts_are_published_one_by_one_as_transformers_publishes_them(
    saved: dict[str, Path], name: str, tmp_path: Path
) -> None:
    expected = load_file(saved[name] / WEIGHTS_FILE)
    write_folder(read_folder(saved[name]).decoder, tmp_path / "new")
    found = load_file(tmp_path / "new" / WEIGHTS_FILE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_settings_that_bear_on_no_number_are_no_reason_to_refuse(tmp_path: Path) -> None:
    """The kernel, the width of dense blocks where there are none, and a router's defaults left unsaid."""
    moe = {"kernel": "segments", "num_experts": 2, "router": {"name": "top-k"}}
    spec = {"name": "mixtral", "num_layers": 1, "hidden_width": 99, "moe": moe}
    ours = registry.build("decoder", spec, vocab_size=VOCAB)
    write_folder(ours, tmp_path / "new")
    again = read_folder(tmp_path / "new").decoder
    assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_mixtral_without_a_theta_has_its_own(folder: Callable[[str], Path]) -> None:
    path = folder("mixtral")
    set_config(path, rope_parameters=None)
    theirs = AutoConfig.from_pretrained(path).rope_parameters["rope_theta"]
    assert read_folder(path).decoder.config.rope_theta == theirs == 1_000_000.0
