"""What a decoder may be made of: the settings that tell the families of language models apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rebus.models.decoders.rotary import RopeScaling
from rebus.models.moe.layer import MoeConfig
from rebus.models.moe.placement import every_nth


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A pre-norm causal decoder; the defaults are LLaMA's at a small size."""

    width: int = 128
    num_layers: int = 3
    num_heads: int = 4
    # Key/value heads, each shared by ``num_heads / num_kv_heads`` query heads.
    num_kv_heads: int = 4
    # Width of one head; 0 takes ``width / num_heads``.
    head_dim: int = 0
    # Inner width of the dense feed-forward blocks.
    hidden_width: int = 344
    # How tokens know their place: queries and keys are rotated, or a learned vector is added to the embeddings.
    positions: Literal["rotary", "learned"] = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    # Context in tokens: a bound for learned positions, for rotary ones only what the model was made for.
    max_positions: int = 2048
    # Rows of the table of learned positions before that of position 0 (OPT has 2).
    position_offset: int = 0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    # The output layer is the embedding table.
    tie_embeddings: bool = True
    # Biases on the attention's projections; they let heads look at places, whatever stands there.
    attention_bias: bool = False
    # Where ``attention_bias`` is on: whether the output projection has one too (Qwen2's has not).
    output_bias: bool = True
    # Queries and keys are normalised before they are rotated.
    qk_norm: bool = False
    # What is normalised as one: each head (Qwen3), or all heads of a token together (OLMoE).
    qk_norm_over: Literal["head", "token"] = "head"
    activation: Literal["silu", "gelu", "gelu-tanh", "relu"] = "silu"
    # Feed-forward blocks multiply the activation by a second projection (SwiGLU where the activation is silu).
    gated: bool = True
    mlp_bias: bool = False
    # A token sees this many of the last positions, itself included; 0 lets it see all.
    sliding_window: int = 0
    # Index of the first layer with the window; those below see all.
    window_from_layer: int = 0
    # What stands in the place of the dense block in layers ``moe_every - 1``, ``2 * moe_every - 1``, ...: a mixture of
    # experts; none without it.
    moe: MoeConfig | None = None
    moe_every: int = 1

    def __post_init__(self) -> None:
        self._check_heads()
        self._check_positions()
        self._check_experts()
        if min(self.sliding_window, self.window_from_layer) < 0:
            raise ValueError(
                f"sliding_window={self.sliding_window} and window_from_layer={self.window_from_layer} "
                "must not be negative"
            )

    def _check_heads(self) -> None:
        sizes = ("width", "num_layers", "num_heads", "num_kv_heads", "hidden_width", "max_positions")
        bad = [f"{name}={getattr(self, name)}" for name in sizes if getattr(self, name) < 1]
        if bad or self.head_dim < 0:
            raise ValueError(f"{', '.join(bad) or f'head_dim={self.head_dim}'} must be positive")
        if (not self.head_dim and self.width % self.num_heads) or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"width={self.width} must be divisible by num_heads={self.num_heads}, "
                f"and that by num_kv_heads={self.num_kv_heads}"
            )

    def _check_positions(self) -> None:
        if not (self.rope_theta > 1 and self.norm_eps >= 0):
            raise ValueError(f"need rope_theta={self.rope_theta} > 1 and norm_eps={self.norm_eps} >= 0")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"head size {self.head_width} must be even for rotary positions")
        if self.positions == "learned" and self.rope_scaling is not None:
            raise ValueError(f"rope_scaling={self.rope_scaling} has no meaning with learned positions")
        if self.position_offset and (self.positions != "learned" or self.position_offset < 0):
            raise ValueError(f"position_offset={self.position_offset} is for learned positions, and not negative")
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "dynamic" and self.head_width < 4:
            raise ValueError(f"head size {self.head_width} must be at least 4 for dynamic rope_scaling")

    def _check_experts(self) -> None:
        if self.moe is None and self.moe_every != 1:
            raise ValueError(f"moe_every={self.moe_every} has no meaning without moe")
        if not 1 <= self.moe_every <= self.num_layers:
            raise ValueError(f"moe_every={self.moe_every} must be within 1 and num_layers={self.num_layers}")

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.width // self.num_heads

    def window_of(self, layer: int) -> int:
        """Positions that a token of ``layer`` sees; 0 for all."""
        return self.sliding_window if layer >= self.window_from_layer else 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers whose feed-forward block is a mixture of experts."""
        return () if self.moe is None else every_nth(self.num_layers, self.moe_every)
