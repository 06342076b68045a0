"""Decoders: causal language models over embeddings."""

from rebus.models.decoders import gpt2, llama, mistral, mixtral, olmoe, qwen

__all__ = ["gpt2", "llama", "mistral", "mixtral", "olmoe", "qwen"]
