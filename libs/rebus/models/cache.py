"""Keys and values of tokens already decoded, in buffers allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from rebus.errors import ResourceExhaustedError


class KVCache:
    """One key and one value buffer a layer, each ``[batch, capacity, key/value heads, head width]``.

    Every layer appends the same new tokens, then the decoder advances ``length`` once. Rows of different length share a
    cache by left padding and a mask.
    """

    def __init__(
        self, *, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.capacity = shape[1]
        self.length = 0
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._positions = torch.zeros(shape[:2], dtype=torch.int64, device=device)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new tokens' keys and values; returns views of everything held for ``layer``."""
        end = self._end(keys.shape[1])
        self._keys[layer][:, self.length : end] = keys
        self._values[layer][:, self.length : end] = values
        return self._keys[layer][:, :end], self._values[layer][:, :end]

    def append_positions(self, positions: Tensor) -> Tensor:
        """Stores the new tokens' positions ``[batch, tokens]``; returns those of everything held."""
        end = self._end(positions.shape[1])
        self._positions[:, self.length : end] = positions
        return self._positions[:, :end]

    def _end(self, count: int) -> int:
        end = self.length + count
        if end > self.capacity:
            raise ResourceExhaustedError(f"the cache holds {self.capacity} tokens, {end} are needed")
        return end

    def advance(self, count: int) -> None:
        """Counts ``count`` tokens as held, once every layer has appended them."""
        self.length += count
