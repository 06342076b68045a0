"""The Audio Spectrogram Transformer (AST, arXiv 2104.01778): overlapping patches of a spectrogram, as of an image."""

# Shape suffixes: N pieces of sound, M mels, F frames, P prefix tokens, T tokens, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus.models.encoders.layered import LayeredEncoder, layer_number
from rebus.models.encoders.transformer import Activation, BlockConfig, make_blocks
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class AudioSpectrogramConfig:
    """Sizes of the encoder; the defaults are those of the published AudioSet models."""

    num_mels: int = 128
    # Columns of the spectrogram, one each 10 ms.
    num_frames: int = 1024
    # Side of a square patch, and how far the next one is along mels and frames.
    patch_size: int = 16
    mel_stride: int = 10
    frame_stride: int = 10
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    hidden_width: int = 3072
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    # Whether queries, keys and values have biases.
    qkv_bias: bool = True
    # Whose hidden states are the features: -1 the last layer's, normed.
    feature_layer: int = -1

    def __post_init__(self) -> None:
        self.block()
        if not 1 <= self.patch_size <= min(self.num_mels, self.num_frames):
            raise ValueError(
                f"patch_size={self.patch_size} must be positive and at most num_mels={self.num_mels} "
                f"and num_frames={self.num_frames}"
            )
        if self.mel_stride < 1 or self.frame_stride < 1:
            raise ValueError(f"mel_stride={self.mel_stride} and frame_stride={self.frame_stride} must be positive")
        layer_number(self.feature_layer, self.num_layers, field="feature_layer")

    def block(self) -> BlockConfig:
        """Of each layer."""
        return BlockConfig(
            width=self.width,
            num_heads=self.num_heads,
            hidden_width=self.hidden_width,
            norm_eps=self.norm_eps,
            activation=self.activation,
            qkv_bias="all" if self.qkv_bias else "none",
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along mels and along frames."""
        rows = (self.num_mels - self.patch_size) // self.mel_stride + 1
        return rows, (self.num_frames - self.patch_size) // self.frame_stride + 1


@register("encoder", "ast", config=AudioSpectrogramConfig)
class AudioSpectrogramTransformer(LayeredEncoder):
    """AST; weight for weight transformers' ``ASTModel``, which reads the spectrogram transposed."""

    # A class token and one for distillation.
    num_prefix_tokens = 2

    def __init__(self, config: AudioSpectrogramConfig) -> None:
        super().__init__()
        self.width, self.grid = config.width, config.grid
        self.input_shape = (config.num_mels, config.num_frames)
        self.feature_layer = config.feature_layer
        self.patch_embed = nn.Conv2d(
            1, config.width, config.patch_size, stride=(config.mel_stride, config.frame_stride)
        )
        self.class_token = nn.Parameter(torch.randn(config.width) * 0.02)
        self.distillation_token = nn.Parameter(torch.randn(config.width) * 0.02)
        self.position = nn.Parameter(torch.randn(self.num_prefix_tokens + self.num_tokens, config.width) * 0.02)
        self.blocks = make_blocks(config.block(), config.num_layers)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def embed(self, inputs: Tensor) -> Tensor:
        """What the first block reads ``[N, P + T, D]`` of spectrograms ``[N, M, F]``; ``ValueError`` for other sizes.

        The published models read log-mel filter banks of Kaldi's kind, normed over AudioSet, not Whisper's.
        """
        if inputs.shape[1:] != torch.Size(self.input_shape):
            raise ValueError(f"spectrograms are {list(inputs.shape[1:])}, expected {list(self.input_shape)}")
        patches_NTD = self.patch_embed(inputs[:, None]).flatten(2).transpose(1, 2)
        prefix_PD = torch.stack([self.class_token, self.distillation_token])
        return torch.cat([prefix_PD.expand(len(inputs), -1, -1), patches_NTD], dim=1) + self.position

    def pool(self, spectrograms: Tensor) -> Tensor:
        """One vector ``[N, D]`` a piece: the mean of the class and the distillation token."""
        return self.forward_tokens(spectrograms)[:, : self.num_prefix_tokens].mean(1)
