"""Exporters write samples in formats that others read, and that the reader of the same name reads back."""

from rebus.data.exporters import llava, parquet, webdataset
from rebus.data.exporters.base import Exporter, export

__all__ = ["Exporter", "export", "llava", "parquet", "webdataset"]
