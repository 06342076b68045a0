"""What a router decided: pairs of a token and an expert, each with a weight, and the scores behind them."""

# Shape suffixes: T tokens, E experts, K choices a token, A pairs of a token and an expert, D width.

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Routing:
    """The decision for one forward pass, pairs in order of their tokens; what losses and statistics read.

    ``logits``, ``scores``, ``weights`` and ``load`` are part of the graph.
    """

    # [T, E]: before the softmax or sigmoid, without noise.
    logits_TE: Tensor
    # [T, E]: how much each token wants each expert; every row sums to one.
    scores_TE: Tensor
    # int64 [A], ascending: the token of each pair.
    tokens_A: Tensor
    # int64 [A]: its expert.
    experts_A: Tensor
    # int64 [A]: whether the expert is the token's first choice (0), second (1), ...
    ranks_A: Tensor
    # [A]: what the expert's output is multiplied with.
    weights_A: Tensor
    # [T, E]: chance that fresh noise would choose the expert; from noisy routers in training.
    load_TE: Tensor | None = None
    # bool [A]: which pairs fitted the experts' capacity; None: there was no limit.
    kept_A: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.logits_TE.shape[0]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.logits_TE.shape[1]

    def counts(self) -> Tensor:
        """Pairs an expert was chosen for, int64 ``[E]``; whether they fitted its capacity or not."""
        return torch.bincount(self.experts_A, minlength=self.num_experts)

    def choices(self) -> Tensor:
        """Which experts each token chose, bool ``[T, E]``."""
        chosen_TE = torch.zeros(self.logits_TE.shape, dtype=torch.bool, device=self.experts_A.device)
        chosen_TE[self.tokens_A, self.experts_A] = True
        return chosen_TE

    def kept(self) -> Routing:
        """The same with only the pairs that fitted."""
        if self.kept_A is None:
            return self
        at = torch.nonzero(self.kept_A)[:, 0]
        return dataclasses.replace(
            self,
            tokens_A=self.tokens_A[at],
            experts_A=self.experts_A[at],
            ranks_A=self.ranks_A[at],
            weights_A=self.weights_A[at],
            kept_A=None,
        )

    def detach(self) -> Routing:
        """The same outside the graph, for statistics kept longer than a step."""
        return dataclasses.replace(
            self,
            logits_TE=self.logits_TE.detach(),
            scores_TE=self.scores_TE.detach(),
            weights_A=self.weights_A.detach(),
            load_TE=None if self.load_TE is None else self.load_TE.detach(),
        )


def token_choice(logits_TE: Tensor, scores_TE: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Routing:
    """The routing in which every token chose K experts, best first."""
    num_tokens, num_choices = experts_TK.shape
    device = experts_TK.device
    return Routing(
        logits_TE=logits_TE,
        scores_TE=scores_TE,
        tokens_A=torch.arange(num_tokens, device=device).repeat_interleave(num_choices),
        experts_A=experts_TK.flatten(),
        ranks_A=torch.arange(num_choices, device=device).repeat(num_tokens),
        weights_A=weights_TK.flatten(),
    )
