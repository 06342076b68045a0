"""Steps without images or sound under data parallelism: every process must run every encoder and connector.

DDP and FSDP let processes wait for each other once for each group of weights. A process whose batch holds no image
would leave the encoder out, and the others would wait for it for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rebus.models.connectors.base import JoinsTiles

if TYPE_CHECKING:
    from rebus.models.audio import AudioPart
    from rebus.models.mllm import Mllm


def is_data_parallel() -> bool:
    """Whether other processes train with this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def no_sound(audio: AudioPart) -> Tensor:
    """A scalar 0 for the loss, whose gradient is 0 for every weight of the audio part; silence runs through it."""
    weight = next(audio.parameters())
    silence = torch.zeros(1, *audio.input_shape, device=weight.device, dtype=weight.dtype)
    with _as_in_evaluation(audio):
        return (audio(silence) * 0.0).sum()


def no_images(model: Mllm) -> Tensor:
    """A scalar 0 for the loss, whose gradient is 0 for every weight of the encoder and the connector.

    A blank image runs through both as in evaluation: no dropout is drawn and no running mean moves.
    """
    with _as_in_evaluation(model.vision_encoder, model.connector):
        return (_blank_features(model) * 0.0).sum()


def _blank_features(model: Mllm) -> Tensor:
    weight = next(model.vision_encoder.parameters())
    side = model.vision_encoder.image_size
    blank = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
    if not isinstance(model.connector, JoinsTiles):
        return model.encode_images(blank)
    rows, columns = model.connector.tiles((side, side), side=side)
    return model.encode_tiles([blank.expand(1 + rows * columns, -1, -1, -1)], [(side, side)])


@contextmanager
def _as_in_evaluation(*parts: nn.Module) -> Iterator[None]:
    """Each module goes back to the mode that it was in: some may be frozen in evaluation."""
    training = [module for part in parts for module in part.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
