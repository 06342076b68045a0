"""Encoders' weights in transformers' layouts: a module a family, each with ``from_hf`` and ``to_hf``.

``from_hf(config, state)`` takes a ``config.json`` as a mapping and its tensors, of the encoder alone or of a model that
holds it, and gives our config and state dict (``config_from_hf`` the config alone); ``to_hf`` gives the encoder back as
it is published.
"""

from rebus.models.encoders.hf import audio_spectrogram, clip, dinov2, idefics2, internvit, siglip, siglip2, whisper

__all__ = ["audio_spectrogram", "clip", "dinov2", "idefics2", "internvit", "siglip", "siglip2", "whisper"]
