"""Objectives: losses by name, each a small object over one shared forward pass."""

from rebus.objectives import language_modeling, region_words

__all__ = ["language_modeling", "region_words"]
