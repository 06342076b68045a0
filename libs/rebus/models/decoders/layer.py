"""One layer of a decoder: attention and a feed-forward block, each on the residual stream."""

# Shape suffixes: B batch, S tokens, D width, N heads, K key/value heads, H head dim.

from __future__ import annotations

from torch import Tensor, nn

from rebus.models.attention import Attend
from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.parts import RMSNorm, build_norm
from rebus.models.decoders.rotary import rotate

# Cosine and sine, ``[..., 1, H]`` each; None where queries and keys are not rotated.
Tables = tuple[Tensor, Tensor] | None


class Attention(nn.Module):
    """The projections of grouped-query attention; ``attend`` decides which token sees which."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_width, bias = config.head_width, config.attention_bias
        q_width, kv_width = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, q_width, bias=bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=bias)
        self.o_proj = nn.Linear(q_width, config.width, bias=bias and config.output_bias)
        self.norm_heads = config.qk_norm_over == "head"
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_width if self.norm_heads else q_width, config.norm_eps)
            self.k_norm = RMSNorm(config.head_width if self.norm_heads else kv_width, config.norm_eps)

    def forward(self, x_BSD: Tensor, tables: Tables, attend: Attend) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``."""
        q_BSNH, k_BSKH = self.queries(x_BSD, tables), self.keys(x_BSD, tables)
        v_BSKH = self.v_proj(x_BSD).unflatten(-1, (-1, self.head_width))
        return self.o_proj(attend(q_BSNH, k_BSKH, v_BSKH).flatten(2))

    def queries(self, x: Tensor, tables: Tables) -> Tensor:
        """Queries ``[..., N, H]`` of ``[..., D]``."""
        return self._heads(self.q_proj(x), self.q_norm, tables)

    def keys(self, x: Tensor, tables: Tables) -> Tensor:
        """Keys ``[..., K, H]`` of ``[..., D]``."""
        return self._heads(self.k_proj(x), self.k_norm, tables)

    def _heads(self, x: Tensor, norm: nn.Module | None, tables: Tables) -> Tensor:
        if norm is not None and not self.norm_heads:
            x = norm(x)
        heads = x.unflatten(-1, (-1, self.head_width))
        if norm is not None and self.norm_heads:
            heads = norm(heads)
        return heads if tables is None else rotate(heads, tables)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward.

    ``mlp`` is any module that maps ``[..., D]`` to ``[..., D]``: a dense block, or a mixture of experts in its place.
    """

    def __init__(self, config: DecoderConfig, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = build_norm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = build_norm(config)
        self.mlp = mlp

    def forward(self, x_BSD: Tensor, tables: Tables, attend: Attend) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``."""
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), tables, attend)
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))
