"""Captioned sound: a folder of audio files and a table (CSV, TSV or JSONL) of captions or transcripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rebus.data.audio import check_audio
from rebus.data.readers.captioned import CaptionedReader, TimedConfig, timed_segment
from rebus.data.readers.files import read_inside
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

    def load(self, name: str, values: dict[str, Any]) -> tuple[bytes, Segment, dict[str, Any]]:
        """The sound, which has decoded whole, with its length, rate and channels."""
        limits = self._config.limits.audio
        data = read_inside(self._root, name, max_bytes=limits.max_bytes)
        info = check_audio(data, limits=limits, field=name)
        return data, timed_segment("audio", self._config, values, info.seconds), asdict(info)
