"""The dual encoder: images and texts as unit vectors of one space (CLIP, arXiv 2103.00020).

The image side is a frozen encoder and a trained head over its pooled features; the text side is trained whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus import registry
from rebus.data.preprocess import ImageProcessorConfig, model_processor
from rebus.models.feature_cache import pooled_width
from rebus.models.text_encoders.base import TextEncoder, TokenIds
from rebus.registry import Spec


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """The two sides and the space between them."""

    # Image encoder; frozen.
    vision_encoder: Spec = registry.component("encoder", "efficientnet-lite0")
    text_encoder: Spec = registry.component("text-encoder", "ngram-bag")
    # How images become the encoder's input; left out, it is what the encoder's published weights were trained on.
    preprocess: ImageProcessorConfig | None = None
    # SHA-256 of that processing as it was in training; filled by the model, and loading refuses another.
    preprocess_digest: str = ""
    # Dimensions of an embedding.
    width: int = 256
    # Inner width of the image head; 0 leaves it linear.
    image_hidden_width: int = 0
    # Share of the image features, and of the text features, left out in training.
    image_dropout: float = 0.2
    text_dropout: float = 0.2
    # Factor of the cosines before the loss: where learning starts, and its bound.
    initial_logit_scale: float = 1 / 0.07
    max_logit_scale: float = 100.0
    # Added to the cosines by the sigmoid loss: where learning starts.
    initial_logit_bias: float = -10.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.image_hidden_width < 0:
            raise ValueError(f"need width={self.width} >= 1 and image_hidden_width={self.image_hidden_width} >= 0")
        if not (0 <= self.image_dropout < 1 and 0 <= self.text_dropout < 1):
            raise ValueError(f"image_dropout={self.image_dropout}, text_dropout={self.text_dropout} must be in [0, 1)")
        if not 0 < self.initial_logit_scale <= self.max_logit_scale:
            raise ValueError(
                f"need 0 < initial_logit_scale={self.initial_logit_scale} <= max_logit_scale={self.max_logit_scale}"
            )


class DualEncoder(nn.Module):
    """Unit vectors ``[N, width]`` of images and of texts; their dot products are cosines."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.vision_encoder: nn.Module = registry.build(
            "encoder", config.vision_encoder, field="model.vision_encoder"
        ).requires_grad_(False)
        size: int = self.vision_encoder.image_size  # pyright: ignore[reportAssignmentType]
        self.processor = model_processor(
            _preprocess(config, self.vision_encoder, size), image_size=size, digest=config.preprocess_digest
        )
        self.config = dataclasses.replace(
            config, preprocess=self.processor.config, preprocess_digest=self.processor.digest
        )
        self.text_encoder: TextEncoder = registry.build("text-encoder", config.text_encoder, field="model.text_encoder")
        self.image_head = ImageHead(pooled_width(self.vision_encoder), config)
        self.text_head = nn.Sequential(
            nn.Dropout(config.text_dropout), nn.Linear(self.text_encoder.width, config.width)
        )
        self.calibration = Calibration(config)

    def embed_features(self, features: Tensor) -> Tensor:
        """Unit vectors ``[N, width]`` of the frozen encoder's pooled features ``[N, pooled_width]``."""
        return F.normalize(self.image_head(features), dim=-1)

    def embed_tokens(self, tokens: Sequence[TokenIds]) -> Tensor:
        """Unit vectors ``[N, width]`` of texts that ``text_encoder.tokenize`` prepared."""
        return F.normalize(self.text_head(self.text_encoder(tokens)), dim=-1)


def _preprocess(config: DualEncoderConfig, encoder: nn.Module, size: int) -> ImageProcessorConfig:
    """The config's processing, else the encoder's own, else the default at the encoder's size."""
    own: ImageProcessorConfig | None = getattr(encoder, "preprocess", None)
    return config.preprocess or own or ImageProcessorConfig(image_size=size)


class CalibrationConfig(Protocol):
    """See ``DualEncoderConfig``."""

    @property
    def initial_logit_scale(self) -> float: ...

    @property
    def max_logit_scale(self) -> float: ...

    @property
    def initial_logit_bias(self) -> float: ...


class Calibration(nn.Module):
    """How cosines become logits: a learned scale, kept as its logarithm, and the bias of the sigmoid loss."""

    def __init__(self, config: CalibrationConfig) -> None:
        super().__init__()
        self._max_log = math.log(config.max_logit_scale)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.initial_logit_scale)))
        self.logit_bias = nn.Parameter(torch.tensor(config.initial_logit_bias))

    def scale(self) -> Tensor:
        """Scalar factor of the cosines, at most ``max_logit_scale``."""
        return self.logit_scale.clamp(max=self._max_log).exp()


class ImageHead(nn.Module):
    """Standardised features through a linear layer, or two with a GELU between: the embedding head."""

    def __init__(self, width_in: int, config: DualEncoderConfig) -> None:
        super().__init__()
        # Of the training images, so that no feature outweighs the others by its unit.
        self.register_buffer("mean", torch.zeros(width_in))
        self.register_buffer("deviation", torch.ones(width_in))
        layers: list[nn.Module] = [nn.Dropout(config.image_dropout)]
        if config.image_hidden_width:
            layers += [nn.Linear(width_in, config.image_hidden_width), nn.GELU(), nn.Dropout(config.image_dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(config.image_hidden_width or width_in, config.width))

    def fit(self, features: Tensor) -> None:
        """Takes mean and deviation of the training images' features ``[N, width_in]``."""
        deviation, mean = torch.std_mean(features, dim=0, correction=0)
        self.mean: Tensor = mean
        # A feature that is always the same says nothing; dividing by almost 0 would make it shout.
        self.deviation: Tensor = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[N, width_in]`` to ``[N, width]``."""
        return self.layers((features - self.mean) / self.deviation)
