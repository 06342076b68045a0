"""Captioned sound: a folder of audio files and a table (CSV, TSV or JSONL) of captions or transcripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rebus.data.audio import check_audio
from rebus.data.readers.base import Location
from rebus.data.readers.captioned import CaptionedReader, TimedConfig, timed_segment
from rebus.data.sample import Segment
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class AudioConfig(TimedConfig):
    """Captioned or transcribed sound."""

    audio_column: str = "audio"
    task: str = "transcript"

    @property
    def media_column(self) -> str:
        """The column that holds the files' paths."""
        return self.audio_column


@register("reader", "audio", config=AudioConfig)
class AudioReader(CaptionedReader[AudioConfig]):
    """Captioned sound: a folder and a CSV, TSV or JSONL table of audio paths and captions or transcripts."""

    def __init__(self, config: AudioConfig, location: Location) -> None:
        super().__init__(config, location)
        self.max_bytes = config.limits.audio.max_bytes

    def segment(self, data: bytes, path: str, values: dict[str, Any]) -> tuple[Segment, dict[str, Any]]:
        """The sound, which has decoded whole, with its length, rate and channels."""
        info = check_audio(data, limits=self._config.limits.audio, field=path)
        return timed_segment("audio", self._config, values, info.seconds), asdict(info)
