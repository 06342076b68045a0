"""The LLaMA decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU; named as in transformers."""

# Shape suffixes: B batch, S tokens, C cached + new tokens, D width, N heads, K key/value heads, H head dim, F hidden.

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.attention import Attend, dense_attention
from rebus.models.branches import BranchLayout, branch_attention
from rebus.models.cache import KVCache
from rebus.registry import register

# Mean diagonal of a layer's value-then-output map at the start: the share of what is attended to that is taken over.
_COPY_STRENGTH = 0.5


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of the decoder."""

    width: int = 128
    num_layers: int = 3
    num_heads: int = 4
    # Key/value heads, each shared by ``num_heads / num_kv_heads`` query heads.
    num_kv_heads: int = 4
    # Inner width of the feed-forward blocks.
    hidden_width: int = 344
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    # The output layer is the embedding table.
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"width={self.width} must be divisible by num_heads={self.num_heads}, "
                f"and that by num_kv_heads={self.num_kv_heads}"
            )
        if (self.width // self.num_heads) % 2:
            raise ValueError(f"head size {self.width // self.num_heads} must be even for rotary positions")

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads


class RMSNorm(nn.Module):
    """Scales to unit root mean square, then by a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[..., S, H]`` for ``positions`` ``[..., S]`` (RoFormer; the half-split layout of LLaMA)."""
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width
    angles = positions[..., None].float() * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BSNH: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Applies the rotary tables ``[B, S, 1, H]`` to ``[B, S, N, H]``."""
    cos, sin = tables
    first, second = x_BSNH.chunk(2, dim=-1)
    return x_BSNH * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """The projections of grouped-query attention; ``attend`` decides which token sees which."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        kv_width = config.num_kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BSD: Tensor, tables: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``."""
        q_BSNH = rotate(self.q_proj(x_BSD).unflatten(-1, (self.num_heads, -1)), tables)
        k_BSKH = rotate(self.k_proj(x_BSD).unflatten(-1, (self.num_kv_heads, -1)), tables)
        v_BSKH = self.v_proj(x_BSD).unflatten(-1, (self.num_kv_heads, -1))
        return self.o_proj(attend(q_BSNH, k_BSKH, v_BSKH).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden_width, bias=False)
        self.down_proj = nn.Linear(config.hidden_width, config.width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``."""
        return self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each on the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BSD: Tensor, tables: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``."""
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), tables, attend)
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))


@register("decoder", "llama", config=LlamaConfig, paper="mm1")
class Llama(nn.Module):
    """A LLaMA-style causal decoder over embeddings; the caller embeds, so that images can stand among words."""

    def __init__(self, config: LlamaConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.width, vocab_size, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        """GPT-2's scheme, and attention that from the first step looks for its like and copies what it finds.

        "Mimetic Initialization of Self-Attention Layers" (arXiv 2305.09828): with equal query and key weights a token
        attends to tokens like itself, and with output weights that undo the value weights it takes over what they hold.
        A word then finds the image tokens that show it, which a small model otherwise takes most of its training to
        discover.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                shrink = math.sqrt(2 * self.config.num_layers) if name.endswith("down_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)
        groups, head_width = self.config.num_heads // self.config.num_kv_heads, self.config.head_width
        for layer in self.layers:
            assert isinstance(layer, Layer)
            attention = layer.self_attn
            nn.init.normal_(attention.q_proj.weight, std=self.config.width**-0.5)
            nn.init.normal_(attention.v_proj.weight, std=(_COPY_STRENGTH / self.config.width) ** 0.5)
            with torch.no_grad():
                first_of_group = attention.q_proj.weight.unflatten(0, (-1, groups, head_width))[:, 0]
                attention.k_proj.weight.copy_(first_of_group.flatten(0, 1))
                shared = attention.v_proj.weight.unflatten(0, (-1, 1, head_width)).expand(-1, groups, -1, -1)
                attention.o_proj.weight.copy_(shared.flatten(0, 2).T / groups)

    def forward(
        self, embeds_BSD: Tensor, positions_BS: Tensor, mask_BSC: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Hidden states ``[B, S, D]`` of embeddings ``[B, S, D]`` at ``positions`` ``[B, S]``.

        ``mask`` (True: visible) covers cached and new tokens; without it attention is causal, which with a cache that
        already holds tokens is only defined for one new token.
        """
        if mask_BSC is None and cache is not None and cache.length and embeds_BSD.shape[1] > 1:
            raise ValueError(f"{embeds_BSD.shape[1]} new tokens after {cache.length} cached ones need a mask")
        mask_B1SC = None if mask_BSC is None else mask_BSC[:, None]

        def attend(layer: int, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor) -> Tensor:
            if cache is not None:
                k_BSKH, v_BSKH = cache.append(layer, k_BSKH, v_BSKH)
            return dense_attention(q_BSNH, k_BSKH, v_BSKH, mask_B1SC)

        hidden_BSD = self._layers(embeds_BSD, positions_BS, attend)
        if cache is not None:
            cache.advance(embeds_BSD.shape[1])
        return hidden_BSD

    def forward_packed(self, embeds_TD: Tensor, positions_T: Tensor, layout: BranchLayout) -> Tensor:
        """Hidden states ``[T, D]`` of rows without padding, laid out as ``layout`` says; ``forward`` row by row."""

        def attend(layer: int, q_1TNH: Tensor, k_1TKH: Tensor, v_1TKH: Tensor) -> Tensor:
            del layer
            return branch_attention(q_1TNH[0], k_1TKH[0], v_1TKH[0], layout)[None]

        return self._layers(embeds_TD[None], positions_T[None], attend)[0]

    def _layers(
        self, x_BSD: Tensor, positions_BS: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        cos_BSH, sin_BSH = rotary_tables(positions_BS, self.config.head_width, self.config.rope_theta)
        tables = (cos_BSH[:, :, None].to(x_BSD.dtype), sin_BSH[:, :, None].to(x_BSD.dtype))
        for index, layer in enumerate(self.layers):
            x_BSD = layer(x_BSD, tables, functools.partial(attend, index))
        return self.norm(x_BSD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits ``[..., V]`` of hidden states ``[..., D]``."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for ``batch_size`` rows of up to ``capacity`` tokens, in the weights' dtype and device."""
        weight = self.embed_tokens.weight
        return KVCache(
            num_layers=self.config.num_layers,
            shape=(batch_size, capacity, self.config.num_kv_heads, self.config.head_width),
            dtype=weight.dtype,
            device=weight.device,
        )
