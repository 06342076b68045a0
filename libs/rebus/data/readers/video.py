"""Captioned video: a folder of video files and a table (CSV, TSV or JSONL) that captions them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rebus.data.readers.captioned import CaptionedReader, TimedConfig, timed_segment
from rebus.data.readers.files import read_inside
from rebus.data.sample import Segment
from rebus.data.video import Video
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class VideoConfig(TimedConfig):
    """Captioned video."""

    video_column: str = "video"

    @property
    def media_column(self) -> str:
        """The column that holds the files' paths."""
        return self.video_column


@register("reader", "video", config=VideoConfig)
class VideoReader(CaptionedReader[VideoConfig]):
    """Captioned video: a folder and a CSV, TSV or JSONL table of video paths and captions."""

    def load(self, name: str, values: dict[str, Any]) -> tuple[bytes, Segment, dict[str, Any]]:
        """The video, every frame of which has decoded, with its length and size."""
        limits = self._config.limits.video
        data = read_inside(self._root, name, max_bytes=limits.max_bytes)
        info = Video(data, limits=limits, field=name).check()
        return data, timed_segment("video", self._config, values, info.seconds), asdict(info)
