"""Embeddings and nearest-neighbour search: see this package's README."""

from rebus.retrieval.embedder import Embedder
from rebus.retrieval.search import Hit, SearchIndex

__all__ = ["Embedder", "Hit", "SearchIndex"]
