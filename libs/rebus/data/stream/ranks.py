"""Who works on which pack."""

from __future__ import annotations

from collections.abc import Sequence

from rebus.data.stream.packing import Size


def deal(sizes: Sequence[Size], world: int) -> list[list[int]]:
    """Indices of a step's packs for each of ``world`` ranks, ascending: like numbers of packs, tokens and images.

    In each round every rank takes one of the largest packs left, the one with least so far the largest. The packs and
    their order do not depend on ``world``, only who works on them does; numbers of packs differ by at most one.
    """
    tokens = max(sum(size.tokens for size in sizes), 1)
    images = max(sum(size.images for size in sizes), 1)
    costs = [size.tokens / tokens + size.images / images for size in sizes]
    order = sorted(range(len(sizes)), key=lambda index: (-costs[index], index))
    loads = [0.0] * world
    dealt: list[list[int]] = [[] for _ in range(world)]
    for start in range(0, len(order), world):
        ranks = sorted(range(world), key=lambda rank: (loads[rank], rank))
        for rank, index in zip(ranks, order[start : start + world], strict=False):
            dealt[rank].append(index)
            loads[rank] += costs[index]
    return [sorted(indices) for indices in dealt]
