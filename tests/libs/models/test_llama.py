"""Parity with transformers on tiny random configs: hidden states, logits, gradients, greedy decoding, the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from rebus.errors import ResourceExhaustedError
from rebus.models.decoders.llama import Layer, Llama, LlamaConfig, rotary_tables, rotate

VOCAB = 53
SHAPES = [
    LlamaConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=4, hidden_width=48),
    LlamaConfig(width=32, num_layers=3, num_heads=4, num_kv_heads=2, hidden_width=40, tie_embeddings=False),
    LlamaConfig(width=24, num_layers=1, num_heads=3, num_kv_heads=1, hidden_width=32, rope_theta=500.0),
    LlamaConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, hidden_width=48, attention_bias=True),
]


def pair(config: LlamaConfig) -> tuple[Llama, LlamaForCausalLM]:
    """Our decoder and transformers', with the same random weights (embeddings large, so that nothing is near 0)."""
    torch.manual_seed(0)
    ours = Llama(config, vocab_size=VOCAB)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs = LlamaForCausalLM(
        HfConfig(
            vocab_size=VOCAB,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.hidden_width,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            attention_bias=config.attention_bias,
            mlp_bias=False,
        )
    ).eval()
    state = {name: p for name, p in ours.state_dict().items() if name != "lm_head.weight"}
    theirs.model.load_state_dict(state)
    if ours.lm_head is not None:
        theirs.lm_head.load_state_dict(ours.lm_head.state_dict())
    return ours, theirs


def hidden(model: Llama, ids: Tensor) -> Tensor:
    return model(model.embed_tokens(ids), torch.arange(ids.shape[1]).expand_as(ids))


@pytest.mark.parametrize("config", SHAPES)
def test_logits_and_gradients_match_transformers(config: LlamaConfig) -> None:
    ours, theirs = pair(config)
    ids = torch.randint(VOCAB, (2, 9))

    ours_logits = ours.logits(hidden(ours, ids))
    theirs_logits = theirs(input_ids=ids).logits
    torch.testing.assert_close(ours_logits, theirs_logits)

    ours_logits.square().mean().backward()
    theirs_logits.square().mean().backward()
    expected = {name.removeprefix("model."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("config", SHAPES)
def test_greedy_decoding_with_the_cache_matches_transformers(config: LlamaConfig) -> None:
    ours, theirs = pair(config)
    ids = torch.randint(VOCAB, (1, 5))
    seen = torch.ones_like(ids)
    expected = theirs.generate(  # pyright: ignore[reportAttributeAccessIssue]
        ids, attention_mask=seen, max_new_tokens=8, do_sample=False, eos_token_id=None
    )[0, 5:]

    with torch.no_grad():
        cache = ours.new_cache(1, 12)
        state = ours(ours.embed_tokens(ids), torch.arange(5)[None], cache=cache)
        made = [int(ours.logits(state[:, -1]).argmax())]
        while len(made) < 8:
            embeds = ours.embed_tokens(torch.tensor([[made[-1]]]))
            state = ours(embeds, torch.tensor([[cache.length]]), cache=cache)
            made.append(int(ours.logits(state[:, -1]).argmax()))

    assert made == expected.tolist()


def test_decoding_in_pieces_equals_decoding_at_once() -> None:
    ours, _ = pair(SHAPES[1])
    ids = torch.randint(VOCAB, (2, 10))
    whole = hidden(ours, ids)

    cache = ours.new_cache(2, 10)
    pieces = []
    for start, stop in ((0, 4), (4, 9), (9, 10)):
        positions = torch.arange(start, stop).expand(2, -1)
        mask = (torch.arange(stop) <= torch.arange(start, stop)[:, None]).expand(2, -1, -1)
        pieces.append(ours(ours.embed_tokens(ids[:, start:stop]), positions, mask, cache))

    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_left_padding_under_a_mask_changes_nothing() -> None:
    ours, _ = pair(SHAPES[0])
    ids = torch.randint(VOCAB, (1, 6))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    positions = (torch.arange(9) - 3).clamp_min(0)[None]
    order = torch.arange(9)
    mask = ((order <= order[:, None]) & (order >= 3) | torch.eye(9, dtype=torch.bool))[None]

    out = ours(ours.embed_tokens(padded), positions, mask)

    torch.testing.assert_close(out[:, 3:], hidden(ours, ids))


def test_a_full_cache_and_a_missing_mask_are_errors() -> None:
    ours, _ = pair(SHAPES[0])
    cache = ours.new_cache(1, 4)
    embeds = ours.embed_tokens(torch.zeros(1, 3, dtype=torch.long))
    ours(embeds, torch.arange(3)[None], cache=cache)
    with pytest.raises(ValueError, match="need a mask"):
        ours(embeds[:, :2], torch.arange(2)[None], cache=cache)
    with pytest.raises(ResourceExhaustedError, match="holds 4 tokens, 6 are needed"):
        ours(embeds, torch.arange(3)[None], torch.ones(1, 3, 6, dtype=torch.bool), cache)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_attention_starts_by_looking_for_its_like_and_copying_it(num_kv_heads: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(width=64, num_heads=4, num_kv_heads=num_kv_heads)
    layer = Llama(config, vocab_size=VOCAB).layers[0]
    assert isinstance(layer, Layer)
    x = F.rms_norm(torch.randn(VOCAB, 64), (64,))
    groups = 4 // num_kv_heads
    q = layer.self_attn.q_proj(x).unflatten(-1, (4, 16)).transpose(0, 1)[::groups]
    k = layer.self_attn.k_proj(x).unflatten(-1, (num_kv_heads, 16)).transpose(0, 1)
    # Under equal positions a token's score is highest with itself, summed over the heads.
    assert ((q @ k.mT).sum(0).argmax(-1) == torch.arange(VOCAB)).float().mean() > 0.95

    value = layer.self_attn.v_proj(x).unflatten(-1, (num_kv_heads, 1, 16)).expand(-1, -1, groups, -1).flatten(1)
    copied = layer.self_attn.o_proj(value)
    assert F.cosine_similarity(copied, x).mean() > 0.4


def start_scores(config: LlamaConfig, x: Tensor) -> Tensor:
    """Attention ``[N, S, S]`` of the first layer over its fresh weights."""
    layer = Llama(config, vocab_size=VOCAB).layers[0]
    assert isinstance(layer, Layer)
    tables = tuple(t[:, None] for t in rotary_tables(torch.arange(len(x)), config.head_width, config.rope_theta))
    q, k = (
        rotate(projection(x).unflatten(-1, (-1, config.head_width)), (tables[0], tables[1])).transpose(0, 1)
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    k = k.repeat_interleave(config.num_heads // config.num_kv_heads, dim=0)
    scores = q @ k.mT * config.head_width**-0.5
    return scores.masked_fill(torch.ones(len(x), len(x)).triu(1) > 0, -1e9).softmax(-1)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_with_biases_heads_start_at_places_and_away_from_themselves(num_kv_heads: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(width=128, num_heads=4, num_kv_heads=num_kv_heads, attention_bias=True)
    seen = start_scores(config, F.rms_norm(torch.randn(40, 128), (128,)))[:, 10:]
    before = torch.stack([seen[:, at, at + 9] for at in range(30)], dim=1).mean(1)
    itself = torch.stack([seen[:, at, at + 10] for at in range(30)], dim=1).mean(1)
    recent = torch.stack([seen[:, at, at + 4 : at + 11].sum(-1) for at in range(30)], dim=1).mean(1)
    groups = 4 // num_kv_heads
    assert (before[:groups] > 0.5).all()
    assert (itself[-groups:] < 0.1).all()
    if num_kv_heads == 4:
        assert recent[1] > 0.8
        assert before[1] < 0.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"width": 30}, "width=30"), ({"num_kv_heads": 3}, "num_kv_heads=3"), ({"width": 12, "num_heads": 4}, "even")],
)
def test_bad_sizes_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LlamaConfig(**settings)
