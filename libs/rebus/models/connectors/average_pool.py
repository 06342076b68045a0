"""MM1's average-pooling connector: image tokens are averaged over the cells of a coarser grid, then projected."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.connectors.base import check_side, to_map, to_tokens
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class AveragePoolConfig:
    """Sizes of the connector."""

    # Side of the square grid of output tokens.
    grid_side: int = 4

    def __post_init__(self) -> None:
        if self.grid_side < 1:
            raise ValueError(f"grid_side={self.grid_side} must be at least 1")


@register("connector", "average-pool", config=AveragePoolConfig, paper="mm1")
class AveragePoolConnector(nn.Module):
    """Adaptive average pooling and one linear projection."""

    def __init__(self, config: AveragePoolConfig, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        check_side(config.grid_side, grid)
        self._grid_in = grid
        self.grid = (config.grid_side, config.grid_side)
        self.num_tokens = config.grid_side**2
        self.proj = nn.Linear(width_in, width_out)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[N, T, width_in]`` to ``[N, grid_side ** 2, width_out]``."""
        pooled = F.adaptive_avg_pool2d(to_map(features, self._grid_in), self.grid)
        return self.proj(to_tokens(pooled))
