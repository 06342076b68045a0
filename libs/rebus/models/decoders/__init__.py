"""Decoders: causal language models over embeddings."""

from rebus.models.decoders import llama

__all__ = ["llama"]
