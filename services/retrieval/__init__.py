"""Embeddings, indexes and search."""
