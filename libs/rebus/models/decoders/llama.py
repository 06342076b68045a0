"""The LLaMA decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU; named as in transformers."""

# Shape suffixes: B batch, S tokens, C cached + new tokens, D width, N heads, K key/value heads, H head dim, F hidden.

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.attention import Attend, dense_attention
from rebus.models.branches import BranchLayout, branch_attention
from rebus.models.cache import KVCache
from rebus.registry import register

# Mean diagonal of a layer's value-then-output map at the start: the share of what is attended to that is taken over.
_COPY_STRENGTH = 0.5
# Scale of equal query and key weights: a token's score with itself is about 0.35 * this squared * sqrt(head width).
_LIKENESS = 1.5


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
    # Biases on the attention's four projections; they let heads look at places, whatever stands there.
    attention_bias: bool = False

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
        self.q_proj = nn.Linear(config.width, config.width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.width, config.width, bias=config.attention_bias)

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


def _init_attention(attention: Attention, config: LlamaConfig) -> None:
    """Heads that look for their like and copy what they find; with biases, also heads that look at places.

    "Mimetic Initialization of Self-Attention Layers" (arXiv 2305.09828): with equal query and key weights a token
    attends to tokens like itself, and with output weights that undo the value weights it takes over what they hold. A
    word then finds the image tokens that show it, which a small model otherwise takes most of its training to discover.
    """
    width, head_width = config.width, config.head_width
    groups = config.num_heads // config.num_kv_heads
    nn.init.normal_(attention.q_proj.weight, std=_LIKENESS / width**0.5)
    nn.init.normal_(attention.v_proj.weight, std=(_COPY_STRENGTH / width) ** 0.5)
    # Fast rotary pairs would scramble likeness within a few tokens.
    fast = torch.arange(head_width) % (head_width // 2) < head_width // 5
    attention.q_proj.weight.unflatten(0, (-1, head_width))[:, fast] *= 0.1
    first_of_group = attention.q_proj.weight.unflatten(0, (-1, groups, head_width))[:, 0]
    attention.k_proj.weight.copy_(first_of_group.flatten(0, 1))
    shared = attention.v_proj.weight.unflatten(0, (-1, 1, head_width)).expand(-1, groups, -1, -1)
    attention.o_proj.weight.copy_(shared.flatten(0, 2).T / groups)
    if config.attention_bias:
        _place_heads(attention, config)


def _place_heads(attention: Attention, config: LlamaConfig) -> None:
    """Points a head at the token before and one at the last few, so that phrases are read whole; the others look away.

    The others look for their like and would find themselves. At most half of the key/value heads look at places.
    """
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        nn.init.zeros_(projection.bias)
    groups = config.num_heads // config.num_kv_heads
    near = [_Place(0, 12.0, 1), _Place(2, 8.0, 1)][: config.num_kv_heads // 2]
    away = [_Place(0, -8.0, 0)] * (config.num_kv_heads - len(near))
    for head, place in enumerate(near + away):
        _bias_head(attention, config, head, place)
    attention.k_proj.weight[: len(near) * config.head_width] *= 0.2
    attention.q_proj.weight[: len(near) * groups * config.head_width] *= 0.2


class _Place(NamedTuple):
    """Where a head looks: ``strength`` times the mean of ``cos(f * (distance - peak))`` is added to its scores.

    f runs over the frequencies of four rotary pairs; the first pairs are the fastest and see nearest.
    """

    first_pair: int
    strength: float
    peak: int


def _bias_head(attention: Attention, config: LlamaConfig, head: int, place: _Place) -> None:
    width, groups = config.head_width, config.num_heads // config.num_kv_heads
    pairs = torch.arange(place.first_pair, min(place.first_pair + 4, width // 2))
    size = (abs(place.strength) * width**0.5 / len(pairs)) ** 0.5
    angle = place.peak * config.rope_theta ** (-2.0 * pairs / width)
    attention.k_proj.bias[head * width + pairs] = size
    for member in range(head * groups, (head + 1) * groups):
        signed = math.copysign(size, place.strength)
        attention.q_proj.bias[member * width + pairs] = signed * angle.cos()
        attention.q_proj.bias[member * width + width // 2 + pairs] = -signed * angle.sin()


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

    @torch.no_grad()
    def _init_weights(self) -> None:
        """GPT-2's scheme, but attention that works from the first step; see ``_init_attention``."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                shrink = math.sqrt(2 * self.config.num_layers) if name.endswith("down_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            _init_attention(layer.self_attn, self.config)

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

    def forward_packed(
        self,
        embeds_TD: Tensor,
        positions_T: Tensor,
        layout: BranchLayout,
        layer_inputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states ``[T, D]`` of rows without padding, laid out as ``layout`` says; ``forward`` row by row.

        What each layer reads ``[T, D]`` is appended to ``layer_inputs``.
        """

        def attend(layer: int, q_1TNH: Tensor, k_1TKH: Tensor, v_1TKH: Tensor) -> Tensor:
            del layer
            return branch_attention(q_1TNH[0], k_1TKH[0], v_1TKH[0], layout)[None]

        kept: list[Tensor] | None = None if layer_inputs is None else []
        hidden_1TD = self._layers(embeds_TD[None], positions_T[None], attend, kept)
        if layer_inputs is not None and kept is not None:
            layer_inputs += [x_1TD[0] for x_1TD in kept]
        return hidden_1TD[0]

    def attention_scores(
        self, layer: int, inputs_TD: Tensor, positions_T: Tensor, queries_Q: Tensor, keys_QC: Tensor
    ) -> Tensor:
        """Scores ``[Q, N, C]`` before the softmax that tokens ``queries`` give tokens ``keys`` in one layer."""
        block = self.layers[layer]
        assert isinstance(block, Layer)
        attention, x_TD = block.self_attn, block.input_layernorm(inputs_TD)
        q_QNH = self._rotated(attention.q_proj(x_TD[queries_Q]), positions_T[queries_Q])
        k_QCKH = self._rotated(attention.k_proj(x_TD[keys_QC]), positions_T[keys_QC])
        k_QCNH = k_QCKH.repeat_interleave(self.config.num_heads // self.config.num_kv_heads, dim=-2)
        return torch.einsum("qnh,qcnh->qnc", q_QNH, k_QCNH) * self.config.head_width**-0.5

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        """Projections ``[..., heads * H]`` at ``positions`` ``[...]`` as rotated heads ``[..., heads, H]``."""
        cos, sin = rotary_tables(positions, self.config.head_width, self.config.rope_theta)
        heads = x.unflatten(-1, (-1, self.config.head_width))
        return rotate(heads, (cos[..., None, :].to(x.dtype), sin[..., None, :].to(x.dtype)))

    def _layers(
        self,
        x_BSD: Tensor,
        positions_BS: Tensor,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        inputs: list[Tensor] | None = None,
    ) -> Tensor:
        cos_BSH, sin_BSH = rotary_tables(positions_BS, self.config.head_width, self.config.rope_theta)
        tables = (cos_BSH[:, :, None].to(x_BSD.dtype), sin_BSH[:, :, None].to(x_BSD.dtype))
        for index, layer in enumerate(self.layers):
            if inputs is not None:
                inputs.append(x_BSD)
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
