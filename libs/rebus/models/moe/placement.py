"""Which layers of a transformer are mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn


def every_nth(num_layers: int, n: int) -> tuple[int, ...]:
    """Layers n - 1, 2n - 1, ... of ``num_layers``: MM1 has 64 experts in every 2nd or 32 in every 4th.

    The first layers stay dense, as in GShard and V-MoE. Raises ``ValueError`` for ``n`` below one.
    """
    if n < 1:
        raise ValueError(f"n={n} must be positive")
    return tuple(range(n - 1, num_layers, n))


def replace_mlps(layers: nn.ModuleList, at: Iterable[int], build: Callable[[nn.Module], nn.Module]) -> None:
    """Puts ``build(layer.mlp)`` in the place of the feed-forward block of each layer named by ``at``.

    Raises ``ValueError`` where there is no such layer.
    """
    for index in at:
        if not 0 <= index < len(layers):
            raise ValueError(f"layer {index} is outside 0..{len(layers) - 1}")
        layers[index].mlp = build(layers[index].get_submodule("mlp"))
