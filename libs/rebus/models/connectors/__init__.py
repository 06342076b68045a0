"""Connectors: image features ``[N, T, width_in]`` to decoder embeddings ``[N, num_tokens, width_out]``."""

from rebus.models.connectors import (
    attention_pool,
    average_pool,
    c_abstractor,
    dense,
    linear,
    mlp,
    perceiver_resampler,
    pixel_shuffle,
    q_former,
    tiled_mlp,
)

__all__ = [
    "attention_pool",
    "average_pool",
    "c_abstractor",
    "dense",
    "linear",
    "mlp",
    "perceiver_resampler",
    "pixel_shuffle",
    "q_former",
    "tiled_mlp",
]
