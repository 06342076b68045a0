"""Rendered scenes with a known scene graph: exact ground truth for questions of every kind."""

from rebus.data.scenes.generate import CAPTIONED, INTERLEAVED, TEXT, ScenesConfig, generate_samples

__all__ = ["CAPTIONED", "INTERLEAVED", "TEXT", "ScenesConfig", "generate_samples"]
