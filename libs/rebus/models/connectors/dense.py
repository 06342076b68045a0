"""Dense Connector (arXiv 2405.13800): what early layers of the encoder hold is shown beside the last one.

The order of parts is that of the authors' code: the last layer first.
"""

# Shape suffixes: N images, T image tokens, D width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.connectors.mlp import MlpConfig, MlpConnector
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class DenseConnectorConfig:
    """Which layers are shown, and how. Layers are numbered as ``ReadsLayers`` says."""

    # What follows the last layer's features: ``sti``, tokens of the others, averaged along the sequence (sparse token
    # integration); ``sci``, the others' channels (sparse channel); ``dci``, means of groups of them (dense channel).
    integration: Literal["sti", "sci", "dci"] = "dci"
    # The other layers, ascending.
    layers: list[int]
    # The layer that the model sees in any case; it may be one of ``layers`` too.
    last_layer: int
    # dci: consecutive groups of equal size that ``layers`` fall into.
    num_groups: int = 2
    # sti: neighbouring tokens that become one; what is left over at the end is dropped.
    pool_tokens: int = 8
    # Inner width of the MLP; 0 takes the decoder's width.
    hidden_width: int = 0

    def __post_init__(self) -> None:
        if not self.layers or self.layers != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"layers={self.layers} must be ascending numbers from 0 on, at least one")
        if self.last_layer < self.layers[-1]:
            raise ValueError(f"last_layer={self.last_layer} lies before layers={self.layers}")
        if self.num_groups < 1 or (self.integration == "dci" and len(self.layers) % self.num_groups):
            raise ValueError(f"num_groups={self.num_groups} does not divide the {len(self.layers)} layers")
        if self.pool_tokens < 1 or self.hidden_width < 0:
            raise ValueError(f"need pool_tokens={self.pool_tokens} >= 1 and hidden_width={self.hidden_width} >= 0")


@register("connector", "dense", config=DenseConnectorConfig, paper="dense-connector")
class DenseConnector(nn.Module):
    """LLaVA's MLP over features of several layers."""

    def __init__(self, config: DenseConnectorConfig, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self._config = config
        self.feature_layers = tuple(sorted({*config.layers, config.last_layer}))
        tokens = grid[0] * grid[1]
        extra = len(config.layers) * (tokens // config.pool_tokens) if config.integration == "sti" else 0
        if config.integration == "sti" and not extra:
            raise ValueError(
                f"pool_tokens={config.pool_tokens} exceeds the {tokens} tokens of the encoder's grid {grid}"
            )
        self.num_tokens = tokens + extra
        self.grid = None if extra else grid
        parts = {"sti": 1, "sci": 1 + len(config.layers), "dci": 1 + config.num_groups}[config.integration]
        self.mlp = MlpConnector(
            MlpConfig(hidden_width=config.hidden_width), width_in=parts * width_in, width_out=width_out, grid=grid
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps the features ``[N, T, width_in]`` of each of ``feature_layers`` to ``[N, num_tokens, width_out]``."""
        if len(features) != len(self.feature_layers):
            raise ValueError(f"got features of {len(features)} layers, expected those of {self.feature_layers}")
        by_layer = dict(zip(self.feature_layers, features, strict=True))
        last, others = by_layer[self._config.last_layer], [by_layer[layer] for layer in self._config.layers]
        return self.mlp(self._integrate(last, others))

    def _integrate(self, last: Tensor, others: list[Tensor]) -> Tensor:
        if self._config.integration == "sti":
            return torch.cat([last, *[_averaged(x, self._config.pool_tokens) for x in others]], dim=1)
        if self._config.integration == "sci":
            return torch.cat([last, *others], dim=-1)
        size = len(others) // self._config.num_groups
        groups = [others[start : start + size] for start in range(0, len(others), size)]
        return torch.cat([last, *[torch.stack(group).mean(0) for group in groups]], dim=-1)


def _averaged(x_NTD: Tensor, count: int) -> Tensor:
    """Means of ``count`` consecutive tokens each."""
    return F.avg_pool1d(x_NTD.transpose(1, 2), count).transpose(1, 2)
