"""The MLP connector of LLaVA-1.5: every image token is projected by itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """Sizes of the connector."""

    # Inner width; 0 takes the decoder's width.
    hidden_width: int = 0

    def __post_init__(self) -> None:
        if self.hidden_width < 0:
            raise ValueError(f"hidden_width={self.hidden_width} must not be negative")


@register("connector", "mlp", config=MlpConfig, paper="mm1")
class MlpConnector(nn.Module):
    """Linear, GELU, linear; one output token an image token."""

    def __init__(self, config: MlpConfig, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        hidden_width = config.hidden_width or width_out
        self.grid = grid
        self.num_tokens = grid[0] * grid[1]
        self.fc1 = nn.Linear(width_in, hidden_width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_width, width_out)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[N, T, width_in]`` to ``[N, T, width_out]``."""
        return self.fc2(self.act(self.fc1(features)))
