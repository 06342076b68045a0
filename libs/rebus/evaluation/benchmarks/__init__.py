"""Benchmarks by name."""

from rebus.evaluation.benchmarks import captions, questions, retrieval

__all__ = ["captions", "questions", "retrieval"]
