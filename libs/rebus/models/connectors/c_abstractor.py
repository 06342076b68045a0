"""The C-Abstractor of Honeybee (arXiv 2312.06742): convolutions around average pooling, so that places stay places."""

# Shape suffixes: N images, T image tokens, D width, H rows, W columns.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.connectors.base import check_side, to_map, to_tokens
from rebus.registry import register

# Share of a block's input channels that its squeeze-and-excitation passes through.
_SQUEEZE = 0.25


@dataclass(frozen=True, kw_only=True)
class CAbstractorConfig:
    """Sizes of the connector."""

    # Side of the square grid of output tokens.
    grid_side: int = 4
    # Channels of the convolutions; 0 takes the encoder's width.
    hidden_width: int = 0
    # Residual blocks before the pooling, and again after it; 0 leaves the pooling alone.
    num_blocks: int = 3
    # Linear layers that follow, a SiLU between any two.
    mlp_depth: int = 2

    def __post_init__(self) -> None:
        if self.grid_side < 1 or self.mlp_depth < 1:
            raise ValueError(f"grid_side={self.grid_side} and mlp_depth={self.mlp_depth} must be at least 1")
        if self.hidden_width < 0 or self.num_blocks < 0:
            raise ValueError(f"hidden_width={self.hidden_width}, num_blocks={self.num_blocks} must not be negative")


@register("connector", "c-abstractor", config=CAbstractorConfig, paper="mm1")
class CAbstractor(nn.Module):
    """Residual blocks, adaptive average pooling, residual blocks, then an MLP."""

    def __init__(self, config: CAbstractorConfig, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        check_side(config.grid_side, grid)
        self._grid_in = grid
        self.grid = (config.grid_side, config.grid_side)
        self.num_tokens = config.grid_side**2
        width = (config.hidden_width or width_in) if config.num_blocks else width_in
        # Convolutions see what lies near, not where they are.
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width_in) * 0.02)
        self.before = nn.Sequential(*[ResidualBlock(width if i else width_in, width) for i in range(config.num_blocks)])
        self.after = nn.Sequential(*[ResidualBlock(width, width) for _ in range(config.num_blocks)])
        layers: list[nn.Module] = [nn.Linear(width, width_out)]
        for _ in range(config.mlp_depth - 1):
            layers += [nn.SiLU(), nn.Linear(width_out, width_out)]
        self.readout = nn.Sequential(*layers)

    def forward(self, features_NTD: Tensor) -> Tensor:
        """Maps ``[N, T, width_in]`` to ``[N, grid_side ** 2, width_out]``."""
        x_NDHW = self.before(to_map(features_NTD, self._grid_in) + to_map(self.position[None], self._grid_in))
        x_NDHW = self.after(F.adaptive_avg_pool2d(x_NDHW, self.grid))
        return self.readout(to_tokens(x_NDHW))


class ResidualBlock(nn.Module):
    """RegNet's bottleneck as Honeybee uses it: 1x1, depthwise 3x3, squeeze-and-excitation, 1x1, SiLU after the sum."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 1, bias=False)
        self.norm1 = ChannelNorm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, groups=width_out, bias=False)
        self.norm2 = ChannelNorm(width_out)
        self.excite = SqueezeExcite(width_out, max(round(width_in * _SQUEEZE), 1))
        self.conv3 = nn.Conv2d(width_out, width_out, 1, bias=False)
        self.norm3 = ChannelNorm(width_out)
        self.shortcut = (
            nn.Identity()
            if width_in == width_out
            else nn.Sequential(nn.Conv2d(width_in, width_out, 1, bias=False), ChannelNorm(width_out))
        )
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, width_in, H, W]`` to ``[N, width_out, H, W]``."""
        y = self.act(self.norm1(self.conv1(x)))
        y = self.excite(self.act(self.norm2(self.conv2(y))))
        return self.act(self.norm3(self.conv3(y)) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """Scales channels by what their means over the map say (arXiv 1709.01507)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, squeezed)
        self.fc2 = nn.Linear(squeezed, width)

    def forward(self, x_NDHW: Tensor) -> Tensor:
        """Maps ``[N, D, H, W]`` to ``[N, D, H, W]``."""
        scale_ND = self.fc2(F.silu(self.fc1(x_NDHW.mean((2, 3))))).sigmoid()
        return x_NDHW * scale_ND[:, :, None, None]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of a map ``[N, D, H, W]``."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[N, D, H, W]`` to ``[N, D, H, W]``."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
