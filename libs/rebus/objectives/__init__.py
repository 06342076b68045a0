"""Objectives: losses by name, each a small object over one shared forward pass."""

from rebus.objectives import attention_grounding, contrastive, expert_balance, language_modeling, region_words

__all__ = ["attention_grounding", "contrastive", "expert_balance", "language_modeling", "region_words"]
