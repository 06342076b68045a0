"""Models: parts by name, and the folders they are kept in."""

from rebus.models.io import load_model, save_model

__all__ = ["load_model", "save_model"]
