"""Scores of model versions."""
