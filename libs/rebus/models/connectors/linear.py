"""The linear connector of LLaVA (arXiv 2304.08485): every image token is projected by itself."""

from __future__ import annotations

from torch import Tensor, nn

from rebus.registry import NoSettings, register


@register("connector", "linear")
class LinearConnector(nn.Module):
    """One linear layer; one output token an image token."""

    def __init__(self, config: NoSettings, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.num_tokens = grid[0] * grid[1]
        self.proj = nn.Linear(width_in, width_out)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[N, T, width_in]`` to ``[N, T, width_out]``."""
        return self.proj(features)
