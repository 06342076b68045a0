"""What transformer encoders share: embedded tokens through blocks, and which of their hidden states are features."""

# Shape suffixes: N inputs, P prefix tokens, T tokens on the grid, D width.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from rebus.models.attention import Attend
from rebus.models.encoders.transformer import bidirectional


def layer_number(layer: int, num_layers: int, *, field: str = "layer") -> int:
    """A layer counted from either end as a number from 0 (what the first block reads) to ``num_layers``.

    So -1 is what the last block returns and -2, what the one before it returns, LLaVA's choice: the numbering of
    transformers' ``hidden_states``. Raises ``ValueError`` naming ``field`` beyond the ends.
    """
    number = layer + num_layers + 1 if layer < 0 else layer
    if not 0 <= number <= num_layers:
        raise ValueError(f"{field}={layer} is outside {-num_layers - 1}..{num_layers} for num_layers={num_layers}")
    return number


class LayeredEncoder(nn.Module, ABC):
    """Inputs embedded as tokens, then blocks, then a norm; features are the tokens on the grid, row by row.

    It is a ``connectors.base.GivesLayers``.
    """

    # Width of a token, and the tokens' rows and columns.
    width: int
    grid: tuple[int, int]
    blocks: nn.ModuleList
    norm: nn.Module
    # Tokens before those on the grid: class tokens, registers.
    num_prefix_tokens: int = 0
    # Whose hidden states ``forward`` returns; those of the last layer go through ``norm`` if ``feature_norm``.
    feature_layer: int = -1
    feature_norm: bool = True

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """What the first block reads ``[N, P + T, D]``."""

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def num_tokens(self) -> int:
        """Features an input."""
        return self.grid[0] * self.grid[1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[N, T, D]`` of the layer ``feature_layer``."""
        return self.on_grid(self._features(self.embed(inputs)))

    def forward_tokens(self, inputs: Tensor) -> Tensor:
        """The last layer's tokens ``[N, P + T, D]`` after the norm, class tokens and registers first."""
        return self.norm(self.hidden_states(self.embed(inputs), [self.num_layers])[0])

    def forward_layers(self, inputs: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See ``connectors.base.GivesLayers``; no block beyond the deepest of ``layers`` runs."""
        return [self.on_grid(x) for x in self.hidden_states(self.embed(inputs), layers)]

    def hidden_states(self, x: Tensor, layers: Sequence[int], attend: Attend = bidirectional) -> list[Tensor]:
        """Hidden states ``[N, P + T, D]`` of each of ``layers`` for embedded tokens ``[N, P + T, D]``."""
        wanted = [layer_number(layer, self.num_layers) for layer in layers]
        found = {0: x}
        for number in range(1, max(wanted, default=0) + 1):
            x = self.blocks[number - 1](x, attend)
            if number in wanted:
                found[number] = x
        return [found[number] for number in wanted]

    def on_grid(self, x: Tensor) -> Tensor:
        """Tokens ``[N, P + T, D]`` without those before the grid."""
        return x[:, self.num_prefix_tokens :]

    def _features(self, x: Tensor, attend: Attend = bidirectional) -> Tensor:
        """What ``forward`` returns, all tokens ``[N, P + T, D]``, for embedded ones."""
        layer = layer_number(self.feature_layer, self.num_layers)
        x = self.hidden_states(x, [layer], attend)[0]
        return self.norm(x) if layer == self.num_layers and self.feature_norm else x
