"""Videos by an image encoder: every frame by itself, then told apart by when it was shown."""

# Shape suffixes: N videos, F frames, T tokens a frame, D width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from rebus import registry
from rebus.models.connectors.base import GivesLayers
from rebus.models.encoders.positions import sinusoids
from rebus.registry import Spec, register


@dataclass(frozen=True, kw_only=True)
class VideoEncoderConfig:
    """The image encoder and the positions of its frames."""

    image: Spec = registry.component("encoder", "vit")
    # At most so many frames a video.
    num_frames: int = 8
    # ``learned`` starts at zero, so that a video begins as its frames' features.
    positions: Literal["learned", "sinusoidal"] = "learned"

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames={self.num_frames} must be positive")


@register("encoder", "video", config=VideoEncoderConfig)
class VideoEncoder(nn.Module):
    """An image encoder over the frames of a video, with temporal positions (ViViT's factorised form, 2103.15691)."""

    def __init__(self, config: VideoEncoderConfig) -> None:
        super().__init__()
        self.image: nn.Module = registry.build("encoder", config.image, field="encoder.image")
        self.image_size, self.width = cast(int, self.image.image_size), cast(int, self.image.width)
        rows, columns = cast(tuple[int, int], self.image.grid)
        self.num_frames = config.num_frames
        if isinstance(self.image, GivesLayers):  # a video gives layers where its frames do
            self.num_layers = self.image.num_layers
        # Frames lie one below the other.
        self.grid: tuple[int, int] = (config.num_frames * rows, columns)
        if config.positions == "learned":
            self.position = nn.Parameter(torch.zeros(config.num_frames, self.width))
        else:
            self.register_buffer("position", sinusoids(config.num_frames, self.width))

    @property
    def num_tokens(self) -> int:
        """Features a video of ``num_frames``."""
        return self.grid[0] * self.grid[1]

    def forward(self, frames: Tensor) -> Tensor:
        """Features ``[N, F * T, D]``, frame after frame, of videos ``[N, F, 3, H, W]``.

        Raises ``ValueError`` for more than ``num_frames``.
        """
        return self._in_time(self.image(self._flat(frames)), frames)

    def forward_layers(self, inputs: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Hidden states ``[N, F * T, D]`` of the image encoder's ``layers``; see ``connectors.base.GivesLayers``."""
        image = cast(GivesLayers, self.image)
        return [self._in_time(x, inputs) for x in image.forward_layers(self._flat(inputs), layers)]

    def _flat(self, frames: Tensor) -> Tensor:
        if not 1 <= frames.shape[1] <= self.num_frames:
            raise ValueError(f"a video of {frames.shape[1]} frames, expected 1 to num_frames={self.num_frames}")
        return frames.flatten(0, 1)

    def _in_time(self, x: Tensor, frames: Tensor) -> Tensor:
        x_NFTD = x.unflatten(0, frames.shape[:2])
        return (x_NFTD + self.position[: frames.shape[1], None]).flatten(1, 2)
