"""Routers: tokens ``[T, D]`` to a ``Routing``, which expert sees which."""

from rebus.models.moe.routers import expert_choice, noisy_top_k, sigmoid, switch, top_k

__all__ = ["expert_choice", "noisy_top_k", "sigmoid", "switch", "top_k"]
