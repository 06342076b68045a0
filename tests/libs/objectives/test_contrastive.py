"""Contrastive losses against loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.objectives.contrastive import Contrastive, ContrastiveConfig, Pairs, SigmoidContrastive
from rebus.registry import NoSettings

BATCH = 6
SCALE, BIAS = 7.0, -2.0


def pairs(images: Tensor, texts: Tensor, counted: Tensor | None = None) -> Pairs:
    counted = torch.ones(len(images), len(images), dtype=torch.bool) if counted is None else counted
    return Pairs(
        images=images,
        texts=texts,
        scale=torch.tensor(SCALE, requires_grad=True),
        bias=torch.tensor(BIAS),
        counted=counted,
    )


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(BATCH, 5, dtype=torch.float64), dim=-1) for _ in range(2))
    return images.requires_grad_(True), texts.requires_grad_(True)


def some_masked() -> Tensor:
    """Rows 0 and 3 are of one family."""
    counted = torch.ones(BATCH, BATCH, dtype=torch.bool)
    counted[0, 3] = counted[3, 0] = False
    return counted


def by_loop(images: Tensor, texts: Tensor, counted: Tensor, weight: Tensor | None = None) -> float:
    """Mean of both directions of ``-log(e^s_ii / (e^s_ii + sum_j w_ij e^s_ij))``, one pair at a time."""
    images, texts = images.detach(), texts.detach()
    total = 0.0
    for i in range(BATCH):
        for rows, columns, transposed in ((images, texts, False), (texts, images, True)):
            at = [math.exp(SCALE * float(rows[i] @ columns[j])) for j in range(BATCH)]
            mask = counted.T if transposed else counted
            weights = torch.ones(BATCH, BATCH) if weight is None else (weight.T if transposed else weight)
            below = sum(float(weights[i, j]) * at[j] for j in range(BATCH) if mask[i, j])
            total -= math.log(at[i] / below)
    return total / (2 * BATCH)


@pytest.mark.parametrize("counted", [torch.ones(BATCH, BATCH, dtype=torch.bool), some_masked()])
def test_infonce_equals_the_loop(vectors: tuple[Tensor, Tensor], counted: Tensor) -> None:
    loss = Contrastive(ContrastiveConfig()).over_pairs(pairs(*vectors, counted))
    assert loss.item() == pytest.approx(by_loop(*vectors, counted), rel=1e-9)


def test_a_masked_pair_has_no_gradient(vectors: tuple[Tensor, Tensor]) -> None:
    """Moving text 3 alone changes nothing for image 0's own row where the two are masked."""
    images, texts = vectors
    counted = torch.eye(BATCH, dtype=torch.bool)
    counted[0, 1] = counted[1, 0] = True
    Contrastive(ContrastiveConfig()).over_pairs(pairs(images, texts, counted)).backward()
    assert images.grad is not None
    assert images.grad[2:].abs().max() == 0  # alone with their own text, these rows have nothing to learn
    assert images.grad[:2].abs().min() > 0


@pytest.mark.paper("llave")
def test_hardness_weights_negatives_by_their_cosine(vectors: tuple[Tensor, Tensor]) -> None:
    """LLaVE: the explicit form with ``w_ij = exp(alpha cos_ij)``, ``w_ii = 1`` and no gradient through w."""
    images, texts = vectors
    alpha = 3.0
    loss = Contrastive(ContrastiveConfig(hardness=alpha)).over_pairs(pairs(images, texts, some_masked()))
    weight = (alpha * (images @ texts.T)).exp().detach().fill_diagonal_(1.0)
    assert loss.item() == pytest.approx(by_loop(images, texts, some_masked(), weight), rel=1e-9)

    kept = torch.where(some_masked(), weight, 0.0)
    exponents = (SCALE * images @ texts.T).exp()
    own = exponents.diagonal()
    explicit = -(own / (kept * exponents).sum(1)).log().mean() - (own / (kept * exponents).sum(0)).log().mean()
    for found, wanted in zip(
        torch.autograd.grad(loss, vectors), torch.autograd.grad(explicit / 2, vectors), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.paper("llave")
def test_without_hardness_it_is_infonce_and_order_does_not_matter(vectors: tuple[Tensor, Tensor]) -> None:
    plain, none = Contrastive(ContrastiveConfig()), Contrastive(ContrastiveConfig(hardness=0.0))
    hard = Contrastive(ContrastiveConfig(hardness=9.0))
    found, wanted = (torch.autograd.grad(loss.over_pairs(pairs(*vectors)), vectors) for loss in (none, plain))
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    shuffled = [side[order] for side in vectors]
    torch.testing.assert_close(hard.over_pairs(pairs(*shuffled)), hard.over_pairs(pairs(*vectors)))


def test_sigmoid_loss_equals_its_closed_form(vectors: tuple[Tensor, Tensor]) -> None:
    """SigLIP: the mean over images of the sum over texts of ``log(1 + exp(-z (t cos + b)))``."""
    counted = some_masked()
    images, texts = (side.detach() for side in vectors)
    total = 0.0
    for i in range(BATCH):
        for j in range(BATCH):
            z = 1.0 if i == j else -1.0
            logit = SCALE * float(images[i] @ texts[j]) + BIAS
            total += math.log1p(math.exp(-z * logit)) if counted[i, j] else 0.0
    loss = SigmoidContrastive(NoSettings()).over_pairs(pairs(images, texts, counted))
    assert loss.item() == pytest.approx(total / BATCH, rel=1e-9)
