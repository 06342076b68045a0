"""The causal decoder that every family is a configuration of; weights are named as transformers names LLaMA's."""

# Shape suffixes: B batch, S tokens, C cached + new tokens, T flat tokens, D width, N heads, K key/value heads,
# H head dim, V vocabulary.

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.attention import dense_attention
from rebus.models.branches import BranchLayout
from rebus.models.cache import KVCache
from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.layer import Layer, Tables
from rebus.models.decoders.parts import build_feed_forward, build_norm
from rebus.models.decoders.rotary import rotary_tables
from rebus.models.decoders.start import init_weights
from rebus.models.packed_attention import packed_attention

# Layer, queries [B, S, N, H], keys and values [B, S, K, H] -> [B, S, N, H].
LayerAttend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Decoder(nn.Module):
    """A causal decoder over embeddings; the caller embeds, so that images can stand among words.

    ``mlp`` makes the feed-forward block of a layer from its index; without it they are what the config says.
    """

    def __init__(
        self, config: DecoderConfig, *, vocab_size: int, mlp: Callable[[int], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(vocab_size, config.width)
        self.embed_positions = (
            nn.Embedding(config.position_offset + config.max_positions, config.width)
            if config.positions == "learned"
            else None
        )
        make = mlp or functools.partial(build_feed_forward, config)
        self.layers = nn.ModuleList([Layer(config, make(index)) for index in range(config.num_layers)])
        self.norm = build_norm(config)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.width, vocab_size, bias=False)
        if not self.embed_tokens.weight.is_meta:  # a model without memory only tells its weights' names and shapes
            init_weights(self, config)

    def forward(
        self, embeds_BSD: Tensor, positions_BS: Tensor, mask_BSC: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Hidden states ``[B, S, D]`` of embeddings ``[B, S, D]`` at ``positions`` ``[B, S]``.

        ``mask`` (True: visible) covers cached and new tokens; without it attention is causal, which with a cache that
        already holds tokens is only defined for one new token. A sliding window narrows what either shows.
        """
        if mask_BSC is None and cache is not None and cache.length and embeds_BSD.shape[1] > 1:
            raise ValueError(f"{embeds_BSD.shape[1]} new tokens after {cache.length} cached ones need a mask")
        mask_B1SC = None if mask_BSC is None else mask_BSC[:, None]
        windowed_B1SC = self._windowed(mask_B1SC, positions_BS, cache)

        def attend(layer: int, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor) -> Tensor:
            if cache is not None:
                k_BSKH, v_BSKH = cache.append(layer, k_BSKH, v_BSKH)
            mask = windowed_B1SC if self.config.window_of(layer) else mask_B1SC
            return dense_attention(q_BSNH, k_BSKH, v_BSKH, mask)

        hidden_BSD = self._layers(embeds_BSD, positions_BS, attend)
        if cache is not None:
            cache.advance(embeds_BSD.shape[1])
        return hidden_BSD

    def _windowed(self, mask_B1SC: Tensor | None, positions_BS: Tensor, cache: KVCache | None) -> Tensor | None:
        """The mask of layers with a sliding window, which counts positions: those of padding do not use it up."""
        window = self.config.sliding_window
        if not window:
            return mask_B1SC
        positions_BC = positions_BS if cache is None else cache.append_positions(positions_BS)
        if positions_BC.shape[1] <= window:
            return mask_B1SC
        seen_B1SC = (positions_BS[:, :, None] - positions_BC[:, None] < window)[:, None]
        if mask_B1SC is not None:
            return seen_B1SC & mask_B1SC
        # One new token sees all that is cached; more than one come without a cache, and are causal.
        return seen_B1SC if positions_BS.shape[1] == 1 else seen_B1SC.tril()

    def forward_packed(
        self,
        embeds_TD: Tensor,
        positions_T: Tensor,
        layout: BranchLayout,
        layer_inputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states ``[T, D]`` of rows without padding, laid out as ``layout`` says; ``forward`` row by row.

        What each layer reads ``[T, D]`` is appended to ``layer_inputs``. Raises ``ValueError`` for dynamic rotary
        scaling, under which a row would depend on the lengths of its neighbours.
        """
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.kind == "dynamic":
            raise ValueError("rope_scaling kind='dynamic' depends on a text's length; packed rows have many")
        by_window = {
            window: packed_attention(layout, positions_T, window)
            for window in {self.config.window_of(layer) for layer in range(self.config.num_layers)}
        }

        def attend(layer: int, q_1TNH: Tensor, k_1TKH: Tensor, v_1TKH: Tensor) -> Tensor:
            return by_window[self.config.window_of(layer)](q_1TNH[0], k_1TKH[0], v_1TKH[0])[None]

        kept: list[Tensor] | None = None if layer_inputs is None else []
        hidden_1TD = self._layers(embeds_TD[None], positions_T[None], attend, kept)
        if layer_inputs is not None and kept is not None:
            layer_inputs += [x_1TD[0] for x_1TD in kept]
        return hidden_1TD[0]

    def attention_scores(
        self, layer: int, inputs_TD: Tensor, positions_T: Tensor, queries_Q: Tensor, keys_QC: Tensor
    ) -> Tensor:
        """Scores ``[Q, N, C]`` before the softmax that tokens ``queries`` give tokens ``keys`` in one layer.

        Whether the one may see the other is for the caller to know.
        """
        block = self.layers[layer]
        assert isinstance(block, Layer)
        attention, x_TD = block.self_attn, block.input_layernorm(inputs_TD)
        q_QNH = attention.queries(x_TD[queries_Q], self._tables(positions_T[queries_Q], x_TD.dtype))
        k_QCKH = attention.keys(x_TD[keys_QC], self._tables(positions_T[keys_QC], x_TD.dtype))
        k_QCNH = k_QCKH.repeat_interleave(self.config.num_heads // self.config.num_kv_heads, dim=-2)
        return torch.einsum("qnh,qcnh->qnc", q_QNH, k_QCNH) * self.config.head_width**-0.5

    def _tables(self, positions: Tensor, dtype: torch.dtype) -> Tables:
        """Rotary tables ``[..., 1, H]`` of ``positions`` ``[...]``; None where positions are learned."""
        if self.config.positions != "rotary":
            return None
        cos, sin = rotary_tables(positions, self.config.head_width, self.config.rope_theta, self.config.rope_scaling)
        return cos[..., None, :].to(dtype), sin[..., None, :].to(dtype)

    def _placed(self, embeds_BSD: Tensor, positions_BS: Tensor) -> Tensor:
        """Embeddings with their learned positions, if those are learned."""
        if self.embed_positions is None:
            return embeds_BSD
        if (last := int(positions_BS.max())) >= self.config.max_positions:
            raise ValueError(f"position {last} is beyond the {self.config.max_positions} that the decoder has learned")
        return embeds_BSD + self.embed_positions(positions_BS + self.config.position_offset)

    def _layers(
        self, x_BSD: Tensor, positions_BS: Tensor, attend: LayerAttend, inputs: list[Tensor] | None = None
    ) -> Tensor:
        x_BSD = self._placed(x_BSD, positions_BS)
        tables = self._tables(positions_BS, x_BSD.dtype)
        for index, layer in enumerate(self.layers):
            if inputs is not None:
                inputs.append(x_BSD)
            x_BSD = layer(x_BSD, tables, functools.partial(attend, index))
        return self.norm(x_BSD)

    @property
    def head_weight(self) -> Tensor:
        """The output layer's weight ``[V, D]``, which may be the embedding table."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits ``[..., V]`` of hidden states ``[..., D]``."""
        return F.linear(hidden, self.head_weight)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for ``batch_size`` rows of up to ``capacity`` tokens, in the weights' dtype and device."""
        weight = self.embed_tokens.weight
        return KVCache(
            num_layers=self.config.num_layers,
            shape=(batch_size, capacity, self.config.num_kv_heads, self.config.head_width),
            dtype=weight.dtype,
            device=weight.device,
        )
