"""Connectors: image features ``[N, T, width_in]`` to decoder embeddings ``[N, num_tokens, width_out]``."""

from rebus.models.connectors import average_pool, mlp

__all__ = ["average_pool", "mlp"]
