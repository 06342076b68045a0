"""What every router has: one linear map to the experts, in float32 whatever the rest computes in."""

# Shape suffixes: T tokens, E experts, D width.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.moe.routing import Routing

# The share of a linear layer's usual variance 1/D that a router starts with (Switch Transformers, section 2.4).
INIT_SCALE = 0.1


class Router(nn.Module):
    """Decides which experts see which tokens: ``forward`` maps ``[T, D]`` to a ``Routing``."""

    def __init__(self, *, width: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.weight = nn.Parameter(torch.randn(num_experts, width) * (INIT_SCALE / width) ** 0.5)

    def logits(self, x_TD: Tensor, weight_ED: Tensor | None = None) -> Tensor:
        """Logits ``[T, E]`` in float32, under autocast too: rounded logits change who is chosen (Switch, table 2)."""
        weight_ED = self.weight if weight_ED is None else weight_ED
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD.float(), weight_ED.float())

    @property
    def choices_per_token(self) -> float:
        """Experts that a token meets, on average and without a capacity."""
        raise NotImplementedError

    def forward(self, x_TD: Tensor) -> Routing:
        """Routes the tokens ``[T, D]``."""
        raise NotImplementedError


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raises ``ValueError`` where a token is to choose more experts than there are."""
    if top_k > num_experts:
        raise ValueError(f"top_k={top_k} is more than num_experts={num_experts}")


def noise_source(x_TD: Tensor, seed: int) -> torch.Generator:
    """A generator for the noise of this forward pass: of ``seed`` and of the tokens.

    So neither a run that is resumed nor a layer that is computed twice (activation checkpointing) needs the state of a
    generator to draw the same noise again.
    """
    digest = int(x_TD.detach().sum(dtype=torch.float64).view(torch.int64))
    return torch.Generator(device=x_TD.device).manual_seed((digest ^ seed) & (2**63 - 1))
