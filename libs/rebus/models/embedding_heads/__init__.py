"""Embedding heads: a decoder's hidden states to unit vectors, one a document or one a token."""

from rebus.models.embedding_heads import last_token, latent_attention, mean, multi_vector

__all__ = ["last_token", "latent_attention", "mean", "multi_vector"]
