"""Embedding heads against loops over documents; packed documents against padded rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus import registry
from rebus.models.embedding_heads import pooling
from rebus.models.embedding_heads.latent_attention import LatentAttentionConfig, LatentAttentionHead
from rebus.models.embedding_heads.matryoshka import matryoshka
from rebus.models.embedding_heads.mean import MeanHead
from rebus.models.embedding_heads.multi_vector import max_sim, max_sim_packed

WIDTH = 8
LENGTHS = [3, 1, 5]
SPECS = [
    {"name": "last-token"},
    {"name": "mean"},
    {"name": "latent-attention", "num_latents": 4, "num_heads": 2},
    {"name": "multi-vector", "width": 6},
]


def head(spec: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    return registry.build("embedding-head", spec, width_in=WIDTH)


def documents(seed: int = 1, lengths: list[int] = LENGTHS, width: int = WIDTH) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(length, width) for length in lengths]


def padded(parts: list[Tensor], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of one length with padding that must not matter, on either side."""
    longest = max(map(len, parts))
    hidden = torch.full((len(parts), longest, parts[0].shape[1]), 7.0)
    mask = torch.zeros(len(parts), longest, dtype=torch.bool)
    for index, part in enumerate(parts):
        at = slice(longest - len(part), None) if left else slice(len(part))
        hidden[index, at], mask[index, at] = part, True
    return hidden, mask


def packed(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Documents one after another, with padding between and at the end."""
    padding = torch.full((1, parts[0].shape[1]), 7.0)
    hidden = torch.cat([parts[0], padding, *parts[1:], padding])
    lengths = [len(parts[0]), 1, *map(len, parts[1:]), 1]
    return hidden, torch.repeat_interleave(torch.tensor([0, -1, *range(1, len(parts)), -1]), torch.tensor(lengths))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["name"])
def test_packed_documents_equal_padded_rows_forward_and_gradient(spec: dict[str, object], left: bool) -> None:
    module, parts = head(spec), [part.requires_grad_() for part in documents()]
    rows, mask = padded(parts, left=left)
    flat, ids = packed(parts)
    want, got = module(rows, mask), module.forward_packed(flat, ids, len(parts))
    if want.dim() == 3:  # a vector a token
        assert not want[~mask].any()
        assert not got[ids < 0].any()
        want, got = want[mask], got[ids >= 0]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(len(got)))
    direction = torch.randn_like(want)
    weights = [*parts, *module.parameters()]
    left_gradients, right_gradients = (torch.autograd.grad((x * direction).sum(), weights) for x in (got, want))
    torch.testing.assert_close(left_gradients, right_gradients)


def test_last_token_and_mean_are_those_of_each_document() -> None:
    parts = documents()
    rows, mask = padded(parts)
    torch.testing.assert_close(head(SPECS[0])(rows, mask), torch.stack([F.normalize(p[-1], dim=0) for p in parts]))
    torch.testing.assert_close(head(SPECS[1])(rows, mask), torch.stack([F.normalize(p.mean(0), dim=0) for p in parts]))


def test_latent_attention_matches_the_formula_of_nv_embed() -> None:
    """softmax(Q K^T) V over the dictionary, with the norms, residuals and GEGLU of the published model."""
    torch.manual_seed(0)
    module = LatentAttentionHead(LatentAttentionConfig(num_latents=5, num_heads=1, head_width=6), width_in=WIDTH)
    (part,) = documents(lengths=[4])
    attention, latents = module.attention, F.layer_norm(module.latents, (WIDTH,))
    queries = F.layer_norm(part, (WIDTH,)) @ attention.q_proj.weight.T
    scores = queries @ (latents @ attention.k_proj.weight.T).T / 6**0.5
    x = part + scores.softmax(-1) @ (latents @ attention.v_proj.weight.T) @ attention.o_proj.weight.T
    inner = module.fc1(F.layer_norm(x, (WIDTH,)))
    x = x + module.fc2(inner[:, : 4 * WIDTH] * F.gelu(inner[:, 4 * WIDTH :]))
    got = module(part[None], torch.ones(1, 4, dtype=torch.bool))[0]
    torch.testing.assert_close(got, F.normalize(x.mean(0), dim=0))


def test_means_of_half_precision_are_summed_in_single() -> None:
    module = MeanHead(registry.NoSettings(), width_in=1)
    hidden = torch.ones(1, 4096, 1, dtype=torch.bfloat16)  # summed in bfloat16 it would stop at 256
    ids = torch.zeros(4096, dtype=torch.int64)
    assert pooling.mean(hidden, torch.ones(1, 4096, dtype=torch.bool)).item() == 1.0
    assert pooling.mean_packed(hidden[0], ids, 1).item() == 1.0
    assert module(hidden, torch.ones(1, 4096, dtype=torch.bool)).dtype == torch.bfloat16


@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda spec: spec["name"])
def test_documents_without_tokens_are_named(spec: dict[str, object]) -> None:
    module = head(spec)
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(ValueError, match=r"documents \[1\] have no tokens"):
        module(torch.zeros(2, 2, WIDTH), mask)
    with pytest.raises(ValueError, match=r"documents \[0, 2\] have no tokens"):
        module.forward_packed(torch.zeros(2, WIDTH), torch.tensor([1, 1]), 3)


def brute_force(queries: list[Tensor], texts: list[Tensor]) -> Tensor:
    """ColBERT's equation 3 in loops."""
    return torch.stack(
        [
            torch.stack(
                [sum((torch.stack([q @ d for d in text]).max() for q in query), torch.zeros(())) for text in texts]
            )
            for query in queries
        ]
    )


def test_max_sim_matches_brute_force_padded_and_packed() -> None:
    queries = [F.normalize(q, dim=-1).requires_grad_() for q in documents(2, [2, 4])]
    texts = [F.normalize(d, dim=-1).requires_grad_() for d in documents(3, [3, 1, 6])]
    want = brute_force(queries, texts)
    direction = torch.randn_like(want)
    expected = torch.autograd.grad((want * direction).sum(), [*queries, *texts])
    flat = (*packed(queries), *packed(texts))
    for got in (max_sim(*padded(queries), *padded(texts)), max_sim_packed(*flat, shape=(2, 3))):
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad((got * direction).sum(), [*queries, *texts]), expected)


def test_max_sim_ignores_the_order_of_tokens_and_learns_only_from_the_best() -> None:
    (query,), (text,) = documents(2, [3]), documents(3, [5])
    text.requires_grad_()
    score = max_sim(*padded([query]), *padded([text]))
    shuffled = max_sim(*padded([query[[2, 0, 1]]]), *padded([text[[4, 1, 0, 3, 2]]]))
    torch.testing.assert_close(score, shuffled)
    score.sum().backward()
    best = set((query @ text.detach().T).argmax(1).tolist())
    assert {at for at in range(5) if text.grad[at].any()} == best


def test_matryoshka_normalises_what_is_left() -> None:
    (vectors,) = documents(4, [3])
    first, second, whole = matryoshka(F.normalize(vectors, dim=-1), [1, 3, WIDTH])
    torch.testing.assert_close(first, vectors[:, :1].sign())
    torch.testing.assert_close(second, vectors[:, :3] / vectors[:, :3].square().sum(1, keepdim=True).sqrt())
    torch.testing.assert_close(whole, F.normalize(vectors, dim=-1))
    with pytest.raises(ValueError, match=r"widths \[0, 9\] are not within 1..8"):
        matryoshka(vectors, [0, 4, 9])


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="num_latents=0 >= 1"):
        LatentAttentionConfig(num_latents=0)
    with pytest.raises(ValueError, match="num_heads=3 must divide width=8"):
        head({"name": "latent-attention", "num_heads": 3})
