"""Captioned video: a folder of video files and a table (CSV, TSV or JSONL) that captions them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rebus.data.readers.base import Location
from rebus.data.readers.captioned import CaptionedReader, TimedConfig, timed_segment
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

    def __init__(self, config: VideoConfig, location: Location) -> None:
        super().__init__(config, location)
        self.max_bytes = config.limits.video.max_bytes

    def segment(self, data: bytes, path: str, values: dict[str, Any]) -> tuple[Segment, dict[str, Any]]:
        """The video, every frame of which has decoded, with its length and size."""
        info = Video(data, limits=self._config.limits.video, field=path).check()
        return timed_segment("video", self._config, values, info.seconds), asdict(info)
