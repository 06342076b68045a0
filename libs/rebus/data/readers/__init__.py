"""Readers turn a source into samples; see ``base.Reader`` and the README for how to add one."""

from rebus.data.readers import (
    audio,
    emoji,
    html,
    huggingface,
    image_folder,
    llava,
    mmc4,
    obelics,
    parquet,
    scenes,
    text,
    video,
    vlmevalkit,
    webdataset,
)
from rebus.data.readers.base import Location, Quarantined, Reader, ReaderLimits, SourceSettings

__all__ = [
    "Location",
    "Quarantined",
    "Reader",
    "ReaderLimits",
    "SourceSettings",
    "audio",
    "emoji",
    "html",
    "huggingface",
    "image_folder",
    "llava",
    "mmc4",
    "obelics",
    "parquet",
    "scenes",
    "text",
    "video",
    "vlmevalkit",
    "webdataset",
]
