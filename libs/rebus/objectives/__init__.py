"""Objectives: losses by name, each a small object over one shared forward pass."""

from rebus.objectives import contrastive, language_modeling, region_words

__all__ = ["contrastive", "language_modeling", "region_words"]
