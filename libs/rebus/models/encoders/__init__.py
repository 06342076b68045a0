"""Encoders: pixels ``[N, 3, H, W]`` (or sound, or videos) to features ``[N, T, width]`` on a ``grid`` of tokens."""

from rebus.models.encoders import (
    aim,
    audio_spectrogram,
    clip,
    conv_vit,
    dinov2,
    efficientnet,
    internvit,
    siglip,
    video,
    vit,
    whisper,
)

__all__ = [
    "aim",
    "audio_spectrogram",
    "clip",
    "conv_vit",
    "dinov2",
    "efficientnet",
    "internvit",
    "siglip",
    "video",
    "vit",
    "whisper",
]
