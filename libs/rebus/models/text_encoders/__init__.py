"""Text encoders: texts to vectors ``[B, width]``. Each tokenizes by its config alone: no other file is needed."""

from rebus.models.text_encoders import ngram_bag

__all__ = ["ngram_bag"]
