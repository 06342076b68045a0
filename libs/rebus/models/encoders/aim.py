"""AIM's image encoder (arXiv 2401.08541): learns by predicting patch after patch, so it can attend causally."""

# Shape suffixes: N images, T patches, D width.

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus.models.attention import dense_attention
from rebus.models.encoders.positions import sincos_grid
from rebus.models.encoders.transformer import BlockConfig
from rebus.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class AimConfig(VisionTransformerConfig):
    """Sizes of the encoder; the defaults are those of AIM-0.6B. No positions are learned: they fit any size."""

    patch_size: int = 14
    width: int = 1536
    num_layers: int = 24
    hidden_width: int = 6144

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 4:
            raise ValueError(f"width={self.width} must be divisible by 4 for its positions")

    def block(self) -> BlockConfig:
        """Of each layer."""
        return dataclasses.replace(super().block(), qkv_bias="none", bias=False)


def prefix_causal_mask(num_tokens: int, prefix_lengths_N: Tensor) -> Tensor:
    """Who sees whom (True: visible), ``[N, 1, T, T]``: all see the prefix, and of the rest what is not after them.

    Raises ``ValueError`` for prefixes outside 0..T.
    """
    if ((prefix_lengths_N < 0) | (prefix_lengths_N > num_tokens)).any():
        raise ValueError(f"prefix_lengths={prefix_lengths_N.tolist()} must be within 0..{num_tokens}")
    places_T = torch.arange(num_tokens, device=prefix_lengths_N.device)
    causal_TT = places_T <= places_T[:, None]
    return causal_TT | (places_T < prefix_lengths_N[:, None, None, None])


@register("encoder", "aim", config=AimConfig)
class Aim(VisionTransformer):
    """AIM: normed patches, sine and cosine positions, blocks without biases; bidirectional when it serves.

    Pre-training attends by ``forward_causal`` and predicts each patch after the prefix from those before it; prefixes
    of random lengths (the paper's PrefixLM) make the network fit for the bidirectional use that follows.
    """

    def __init__(self, config: AimConfig) -> None:
        super().__init__(config)
        self.register_parameter("position", None)
        self.patch_norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward_causal(self, pixels: Tensor, prefix_lengths_N: Tensor) -> Tensor:
        """Features ``[N, T, D]``; tokens see the first ``prefix_lengths[n]`` of image n and those up to themselves.

        Within a prefix all see all; ``ValueError`` for one outside 0..T.
        """
        x_NTD = self.embed(pixels)
        mask = prefix_causal_mask(x_NTD.shape[1], prefix_lengths_N)
        return self._features(x_NTD, functools.partial(dense_attention, mask=mask))

    def _tokens(self, patches_NTD: Tensor, grid: tuple[int, int]) -> Tensor:
        return super()._tokens(self.patch_norm(patches_NTD), grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        return sincos_grid(grid, self.width).to(self.patch_norm.weight)
