"""Which of an encoder's layers a connector reads."""

from __future__ import annotations

from torch import Tensor, nn

from rebus.errors import invalid
from rebus.models.connectors.base import ReadsLayers
from rebus.models.encoders.base import GivesLayers


def read_features(encoder: nn.Module, connector: nn.Module, inputs: Tensor) -> Tensor | list[Tensor]:
    """Features ``[N, T, width]`` of the encoder's last layer, or of each layer that the connector reads."""
    if isinstance(connector, ReadsLayers):
        assert isinstance(encoder, GivesLayers)
        return encoder.forward_layers(inputs, connector.feature_layers)
    return encoder(inputs)


def check_layers(encoder: nn.Module, connector: nn.Module, *, names: tuple[str, str], field: str) -> None:
    """Raises ``InvalidArgumentError`` naming ``field`` unless the encoder gives all layers that the connector reads.

    ``names`` are those of the two components.
    """
    if not isinstance(connector, ReadsLayers):
        return
    wanted = f"{names[1]!r} reads layers {list(connector.feature_layers)}"
    if not isinstance(encoder, GivesLayers):
        raise invalid(field, f"{wanted}, but encoder {names[0]!r} gives only its last")
    if max(connector.feature_layers) > encoder.num_layers:
        raise invalid(field, f"{wanted}, but encoder {names[0]!r} has {encoder.num_layers}")
