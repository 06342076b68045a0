"""Every family against transformers, both directions: logits, gradients, greedy text, and what a round trip keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rebus.models.causal_lm import CausalLm, CausalLmConfig
from rebus.models.hf import read_folder, write_folder
from tests.libs.models.hf.peers import PEERS, PLAIN, VOCAB, assert_same_model, peer, redraw

# What the families whose layers are all experts are made of; the others have one width.
_EXPERTS = {
    "mixtral": {"num_experts": 3, "hidden_width": 24, "router": {"name": "top-k", "top_k": 2, "renormalize": True}},
    "olmoe": {"num_experts": 5, "hidden_width": 16, "router": {"name": "top-k", "top_k": 3, "renormalize": False}},
}
_TINY = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "hidden_width": 24}


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_gradients_match_after_import_and_after_export(name: str, tmp_path: Path) -> None:
    model_type = PEERS[name][0]
    theirs = peer(name)
    theirs.save_pretrained(tmp_path / "theirs")

    ours = read_folder(tmp_path / "theirs")
    assert_same_model(ours, theirs, model_type)

    family = write_folder(ours.decoder, tmp_path / "ours", max_shard_bytes=20_000)
    assert family.name == model_type
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(back) is type(theirs)
    expected = theirs.state_dict()
    assert back.state_dict().keys() == expected.keys()
    for key, tensor in back.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert_same_model(ours, back.eval(), model_type)

    again = read_folder(tmp_path / "ours")
    assert again.config == ours.config
    assert again.decoder.config == ours.decoder.config
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[key]), key


@pytest.mark.parametrize("name", PLAIN)
def test_a_decoder_of_ours_becomes_one_of_theirs(name: str, tmp_path: Path) -> None:
    inner = {"moe": _EXPERTS[name]} if name in _EXPERTS else {"hidden_width": 40}
    decoder = {"name": name, "width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, **inner}
    ours = CausalLm(CausalLmConfig(decoder=decoder, vocab_size=VOCAB)).eval()
    redraw(ours)
    write_folder(ours.decoder, tmp_path / "ours")
    assert_same_model(ours, AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval(), name)
    assert read_folder(tmp_path / "ours").decoder.config == ours.decoder.config


@torch.no_grad()
def greedy(model: CausalLm, ids: Tensor, count: int, *, cached: bool) -> list[int]:
    """The next ``count`` tokens of one row."""
    cache = model.new_cache(1, ids.shape[1] + count) if cached else None
    made: list[int] = []
    seen = ids
    for _ in range(count):
        logits = model(seen if cache is None or not cache.length else seen[:, -1:], cache)
        made.append(int(logits[0, -1].argmax()))
        seen = torch.cat([seen, torch.tensor([made[-1:]])], dim=1)
    return made


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_the_same(name: str, cached: bool, tmp_path: Path) -> None:
    theirs = peer(name)
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(VOCAB, (1, 7))
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, use_cache=cached
    )[0, 7:].tolist()
    assert greedy(read_folder(tmp_path), ids, 64, cached=cached) == expected
    assert len(set(expected)) > 5  # not one token over and over, which any model might say


@pytest.mark.parametrize("name", PLAIN)
def test_no_token_sees_a_later_one(name: str, tmp_path: Path) -> None:
    peer(name).save_pretrained(tmp_path)
    model = read_folder(tmp_path)
    ids = torch.randint(VOCAB, (1, 12))
    other = ids.clone()
    other[0, 8] = (ids[0, 8] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(ids), model(other)
    assert torch.equal(before[:, :8], after[:, :8])
    assert (before[:, 8:10] != after[:, 8:10]).any(-1).all()


def test_a_window_hides_what_lies_before_it() -> None:
    model = CausalLm(CausalLmConfig(decoder={**_TINY, "name": "mistral", "sliding_window": 4}, vocab_size=VOCAB))
    redraw(model)
    ids = torch.randint(VOCAB, (1, 12))
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % VOCAB
    with torch.no_grad():
        moved = (model(ids) != model(other)).any(-1)[0]
    # One layer: the token sees itself and three before it.
    assert moved.tolist() == [3 <= at < 7 for at in range(12)]
