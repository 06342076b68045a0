"""Whisper's audio encoder (arXiv 2212.04356): two convolutions over a log-mel spectrogram, then blocks."""

# Shape suffixes: N pieces of sound, M mels, F frames, T tokens, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.encoders.layered import LayeredEncoder, layer_number
from rebus.models.encoders.positions import sinusoids
from rebus.models.encoders.transformer import Activation, BlockConfig, make_blocks
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class WhisperEncoderConfig:
    """Sizes of the encoder; the defaults are those of ``tiny``, and fit ``LogMelConfig``'s."""

    num_mels: int = 80
    # Columns of the spectrogram, one each 10 ms; a token covers two.
    num_frames: int = 3000
    width: int = 384
    num_layers: int = 4
    num_heads: int = 6
    hidden_width: int = 1536
    activation: Activation = "gelu"
    # Whose hidden states are the features: -1 the last layer's, normed.
    feature_layer: int = -1

    def __post_init__(self) -> None:
        self.block()
        if self.num_mels < 1 or self.num_frames < 2 or self.num_frames % 2:
            raise ValueError(f"num_mels={self.num_mels} must be positive and num_frames={self.num_frames} even")
        if self.width < 4 or self.width % 2:
            raise ValueError(f"width={self.width} must be even and at least 4 for its positions")
        layer_number(self.feature_layer, self.num_layers, field="feature_layer")

    def block(self) -> BlockConfig:
        """Of each layer."""
        return BlockConfig(
            width=self.width,
            num_heads=self.num_heads,
            hidden_width=self.hidden_width,
            norm_eps=1e-5,
            activation=self.activation,
            qkv_bias="no-key",
        )


@register("encoder", "whisper", config=WhisperEncoderConfig)
class WhisperEncoder(LayeredEncoder):
    """Whisper's encoder; weight for weight transformers' ``WhisperEncoder``. ``LogMel`` makes its input."""

    def __init__(self, config: WhisperEncoderConfig) -> None:
        super().__init__()
        self.width, self.grid = config.width, (1, config.num_frames // 2)
        self.input_shape = (config.num_mels, config.num_frames)
        self.feature_layer = config.feature_layer
        self.conv1 = nn.Conv1d(config.num_mels, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.register_buffer("position", sinusoids(config.num_frames // 2, config.width))
        self.blocks = make_blocks(config.block(), config.num_layers)
        self.norm = nn.LayerNorm(config.width)

    def embed(self, inputs: Tensor) -> Tensor:
        """What the first block reads ``[N, T, D]`` of log-mel spectrograms ``[N, M, F]``, F = 2 T.

        Raises ``ValueError`` for another size: shorter sound is padded with silence, as in training.
        """
        if inputs.shape[1:] != torch.Size(self.input_shape):
            raise ValueError(f"spectrograms are {list(inputs.shape[1:])}, expected {list(self.input_shape)}")
        x_NDF = F.gelu(self.conv1(inputs))
        x_NDT = F.gelu(self.conv2(x_NDF))
        return x_NDT.transpose(1, 2) + self.get_buffer("position")
