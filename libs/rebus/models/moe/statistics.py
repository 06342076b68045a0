"""How experts are used, as in OLMoE's analysis (arXiv 2409.02060, section 5).

All read choices bool ``[T, E]`` (``Routing.choices()``; batches are concatenated), True where a token chose an expert.
"""

# Shape suffixes: T tokens, E experts, N domains, V vocabulary.

from __future__ import annotations

import math

import torch
from torch import Tensor


def expert_load(choices_TE: Tensor) -> Tensor:
    """Each expert's share of all choices, ``[E]``; 1/E where balanced."""
    counts_E = choices_TE.sum(dim=0)
    return counts_E / counts_E.sum()


def co_activation(choices_TE: Tensor) -> Tensor:
    """Of the tokens that chose expert i, the share that also chose j, ``[E, E]`` (section 5.2); ones on the diagonal.

    The row of an expert nobody chose is zero.
    """
    chosen_TE = choices_TE.float()
    together_EE = chosen_TE.T @ chosen_TE
    return together_EE / together_EE.diagonal().clamp(min=1)[:, None]


def domain_specialization(choices_TE: Tensor, domains_T: Tensor, num_domains: int) -> Tensor:
    """Of a domain's tokens, the share that chose each expert, ``[N, E]`` (section 5.3); k/E where there is none.

    ``domains`` int64 ``[T]`` says where each token comes from.
    """
    return _share_by_group(choices_TE, domains_T, num_domains)


def vocabulary_specialization(choices_TE: Tensor, token_ids_T: Tensor, vocab_size: int) -> Tensor:
    """Of a token id's appearances, the share that chose each expert, ``[V, E]`` (section 5.4).

    ``token_ids`` int64 ``[T]``: what the routed tokens were as input, or as output for the paper's other table.
    """
    return _share_by_group(choices_TE, token_ids_T, vocab_size)


def _share_by_group(choices_TE: Tensor, groups_T: Tensor, num_groups: int) -> Tensor:
    """Zero rows for groups without tokens."""
    sums = torch.zeros(num_groups, choices_TE.shape[1], device=choices_TE.device)
    sums.index_add_(0, groups_T, choices_TE.float())
    return sums / torch.bincount(groups_T, minlength=num_groups).clamp(min=1)[:, None]


def router_saturation(choices_TE: Tensor, final_TE: Tensor) -> Tensor:
    """Share of a token's final choices already made at an earlier checkpoint, mean over tokens (section 5.1).

    Both are of the same tokens. One where the router no longer changes, k/E where it knew nothing.
    """
    return ((choices_TE & final_TE).sum(dim=1) / final_TE.sum(dim=1)).mean()


def gate_entropy(scores_TE: Tensor) -> Tensor:
    """Mean entropy of the scores over that of an even router: 1 where even, 0 where certain."""
    return torch.special.entr(scores_TE).sum(dim=1).mean() / math.log(scores_TE.shape[1])


def unused_share(choices_TE: Tensor) -> Tensor:
    """Share of experts that no token chose."""
    return (~choices_TE.any(dim=0)).float().mean()
