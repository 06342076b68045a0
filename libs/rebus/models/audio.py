"""What lets a multimodal model hear: an audio encoder and a connector of its own, each named by its recipe."""

# Shape suffixes: P pieces of sound, M mels, F frames, T tokens, D width.

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from rebus import registry
from rebus.data.preprocess.log_mel import LogMelConfig
from rebus.errors import invalid
from rebus.models.connectors.layers import check_layers, read_features
from rebus.registry import Spec


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """The two parts, by component name and settings."""

    encoder: Spec = registry.component("encoder", "whisper")
    # Of a piece of 30 s Whisper gives 1500 features, more than a row has room for.
    connector: Spec = registry.component("connector", "attention-pool")


class AudioPart(nn.Module):
    """Pieces of sound become decoder embeddings, ``num_tokens`` each (cf. Qwen-Audio, arXiv 2311.07919)."""

    def __init__(self, config: AudioConfig, *, log_mel: LogMelConfig, width_out: int, field: str) -> None:
        super().__init__()
        self.encoder: nn.Module = registry.build("encoder", config.encoder, field=f"{field}.encoder")
        # [M, F]: what ``LogMel`` gives; encoders of pixels name no such shape.
        self.input_shape = (log_mel.num_mels, log_mel.num_frames)
        reads = cast(tuple[int, int] | None, getattr(self.encoder, "input_shape", None))
        if reads != self.input_shape:
            found = "no sound" if reads is None else f"{reads[0]} mels and {reads[1]} frames"
            raise invalid(f"{field}.encoder", f"reads {found}, the preprocessing gives {self.input_shape}")
        self.connector: nn.Module = registry.build(
            "connector",
            config.connector,
            field=f"{field}.connector",
            width_in=self.encoder.width,
            width_out=width_out,
            grid=self.encoder.grid,
        )
        names = (config.encoder["name"], config.connector["name"])
        check_layers(self.encoder, self.connector, names=names, field=f"{field}.connector")
        self.num_tokens = cast(int, self.connector.num_tokens)

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Embeddings ``[P, num_tokens, D]`` of log-mel pieces ``[P, M, F]``."""
        return self.connector(read_features(self.encoder, self.connector, spectrograms))
