"""The pre-norm transformer block that every encoder here is made of."""

# Shape suffixes: B batch, T tokens, D width, N heads, H head dim.

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.attention import Attend, dense_attention

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
QkvBias = Literal["all", "no-key", "none"]
Norm = Literal["layer", "rms"]

# InternVL's norms of queries and keys have this, whatever the others' is.
_QK_NORM_EPS = 1e-6

# Every token sees every token.
bidirectional: Attend = functools.partial(dense_attention, causal=False)


def quick_gelu(x: Tensor) -> Tensor:
    """The logistic approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def swiglu(x: Tensor) -> Tensor:
    """Maps ``[..., 2 F]`` to ``[..., F]``: the first half is the gate (arXiv 2002.05202)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "swiglu": swiglu,
}


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Sizes and variants of one block."""

    width: int
    num_heads: int
    # Inner width of the feed-forward part; of ``swiglu`` that of each half.
    hidden_width: int
    norm: Norm = "layer"
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    # Whether queries and keys go through an RMSNorm, all heads of a token together (InternViT-6B, arXiv 2312.14238).
    qk_norm: bool = False
    # Which of the attention's three input projections have biases; Whisper's keys have none.
    qkv_bias: QkvBias = "all"
    # Whether the other projections have biases.
    bias: bool = True
    # First value of the learned scales of both branches (LayerScale, arXiv 2103.17239); None leaves them out.
    layer_scale: float | None = None

    @property
    def fc1_width(self) -> int:
        """What the first feed-forward projection makes: the gate too, where there is one."""
        return 2 * self.hidden_width if self.activation == "swiglu" else self.hidden_width

    def __post_init__(self) -> None:
        if self.width < 1 or self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"width={self.width} must be a positive multiple of num_heads={self.num_heads}")
        if self.hidden_width < 1:
            raise ValueError(f"hidden_width={self.hidden_width} must be positive")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        if self.qkv_bias not in get_args(QkvBias):
            raise ValueError(f"qkv_bias={self.qkv_bias!r} is none of {', '.join(get_args(QkvBias))}")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm={self.norm!r} is none of {', '.join(get_args(Norm))}")


class KeylessBiasLinear(nn.Linear):
    """Projects to queries, keys and values with biases on queries and values only."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.qv_bias = nn.Parameter(torch.zeros(2 * width))

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., 3 D]``."""
        query, value = self.qv_bias.chunk(2)
        return F.linear(input, self.weight, torch.cat([query, torch.zeros_like(query), value]))


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward part, each on the residual stream."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self._activate = ACTIVATIONS[config.activation]
        self.norm1 = _norm(config)
        self.qkv_proj = _qkv_projection(width, config.qkv_bias)
        self.q_norm, self.k_norm = (_qk_norm(config) for _ in range(2))
        self.out_proj = nn.Linear(width, width, bias=config.bias)
        self.norm2 = _norm(config)
        self.fc1 = nn.Linear(width, config.fc1_width, bias=config.bias)
        self.fc2 = nn.Linear(config.hidden_width, width, bias=config.bias)
        self.scale1, self.scale2 = (_layer_scale(config) for _ in range(2))

    def forward(self, x_BTD: Tensor, attend: Attend = bidirectional) -> Tensor:
        """Maps ``[B, T, D]`` to ``[B, T, D]``; ``attend`` decides which token sees which."""
        q_BTD, k_BTD, v_BTD = self.qkv_proj(self.norm1(x_BTD)).chunk(3, dim=-1)
        parts = (self.q_norm(q_BTD), self.k_norm(k_BTD), v_BTD)
        q_BTNH, k_BTNH, v_BTNH = (part.unflatten(-1, (self.num_heads, -1)) for part in parts)
        x_BTD = x_BTD + _scaled(self.out_proj(attend(q_BTNH, k_BTNH, v_BTNH).flatten(2)), self.scale1)
        return x_BTD + _scaled(self.fc2(self._activate(self.fc1(self.norm2(x_BTD)))), self.scale2)


def make_blocks(config: BlockConfig, num_layers: int) -> nn.ModuleList:
    """``num_layers`` blocks of one kind."""
    return nn.ModuleList([EncoderBlock(config) for _ in range(num_layers)])


def _norm(config: BlockConfig) -> nn.Module:
    return (nn.LayerNorm if config.norm == "layer" else nn.RMSNorm)(config.width, eps=config.norm_eps)


def _qk_norm(config: BlockConfig) -> nn.Module:
    return nn.RMSNorm(config.width, eps=_QK_NORM_EPS) if config.qk_norm else nn.Identity()


def _qkv_projection(width: int, bias: QkvBias) -> nn.Linear:
    return KeylessBiasLinear(width) if bias == "no-key" else nn.Linear(width, 3 * width, bias=bias == "all")


def _layer_scale(config: BlockConfig) -> nn.Parameter | None:
    return None if config.layer_scale is None else nn.Parameter(torch.full((config.width,), config.layer_scale))


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale
