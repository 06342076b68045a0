"""Safe decoding of untrusted audio bytes into samples of one channel at one rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from rebus.data.containers import (
    AUDIO_CODECS,
    AUDIO_CONTAINERS,
    OpenContainer,
    check_codec,
    check_seconds,
    check_whole,
    open_container,
)
from rebus.errors import invalid


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """Bounds on one encoded audio file, checked on its header and again while it is decoded."""

    max_bytes: int = 128 << 20
    max_seconds: float = 3600.0
    max_channels: int = 8
    max_sample_rate: int = 192_000

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_seconds, self.max_channels, self.max_sample_rate) <= 0:
            raise ValueError(f"limits must be positive, got {self}")


DEFAULT_AUDIO_LIMITS = AudioLimits()


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """What an audio file holds, counted by decoding it."""

    seconds: float
    sample_rate: int
    channels: int


def check_audio(data: bytes, *, limits: AudioLimits = DEFAULT_AUDIO_LIMITS, field: str = "audio") -> AudioInfo:
    """Decodes the file whole, one frame in memory at a time, and says what it holds.

    Raises ``InvalidArgumentError`` naming ``field`` for an unknown container or codec, a broken or truncated file,
    or one beyond ``limits``.
    """
    with _opened(data, limits, field) as container:
        stream = _stream(container, limits)
        info = AudioInfo(
            seconds=sum(frame.samples for frame in _frames(container, stream, limits)) / stream.rate,
            sample_rate=stream.rate,
            channels=stream.channels,
        )
        if not info.seconds:
            raise invalid(field, "holds no sound")
        if container.name != "mp3":  # an MP3 tells no length, FFmpeg guesses it from the bit rate
            check_whole(info.seconds, container.seconds or 0.0, "s", field)
    return info


def decode_audio(
    data: bytes,
    *,
    sample_rate: int = 16_000,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    limits: AudioLimits = DEFAULT_AUDIO_LIMITS,
    field: str = "audio",
) -> NDArray[np.float32]:
    """The part between two moments as float32 ``[T]`` in -1..1: channels averaged, resampled to ``sample_rate`` (Hz).

    Decoding stops at ``end_seconds``; memory holds the part asked for and one frame. Errors as ``check_audio``, and
    ``InvalidArgumentError`` if the part is empty.
    """
    pieces: list[NDArray[np.float32]] = []
    with _opened(data, limits, field) as container:
        stream = _stream(container, limits)
        first = round(start_seconds * sample_rate)
        last = None if end_seconds is None else round(end_seconds * sample_rate)
        at = 0
        for piece in _resampled(_frames(container, stream, limits), sample_rate):
            pieces.append(piece[max(0, first - at) : None if last is None else max(0, last - at)])
            at += len(piece)
            if last is not None and at >= last:
                break
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not len(samples):
        until = "the end" if end_seconds is None else f"{end_seconds:g} s"
        raise invalid(field, f"has no sound from {start_seconds:g} s to {until}")
    return samples


def _opened(data: bytes, limits: AudioLimits, field: str) -> AbstractContextManager[OpenContainer]:
    return open_container(
        data,
        AUDIO_CONTAINERS,
        AUDIO_CODECS,
        max_bytes=limits.max_bytes,
        max_seconds=limits.max_seconds,
        field=field,
    )


def _stream(container: OpenContainer, limits: AudioLimits) -> AudioStream:
    """The first audio stream, its header within the limits."""
    stream = next(iter(container.file.streams.audio), None)
    if stream is None:
        raise invalid(container.field, "holds no audio")
    check_codec(stream, AUDIO_CODECS, container.field)
    _check_shape(stream.rate, stream.channels, limits, container.field)
    stream.codec_context.thread_type = "NONE"
    return stream


def _check_shape(rate: int, channels: int, limits: AudioLimits, field: str) -> None:
    if not 1 <= rate <= limits.max_sample_rate:
        raise invalid(field, f"{rate} samples a second, expected 1 to {limits.max_sample_rate}")
    if not 1 <= channels <= limits.max_channels:
        raise invalid(field, f"{channels} channels, expected 1 to {limits.max_channels}")


def _frames(container: OpenContainer, stream: AudioStream, limits: AudioLimits) -> Iterator[AudioFrame]:
    """Decoded frames; the header may have lied, so every one is checked."""
    seconds = 0.0
    for frame in container.file.decode(stream):
        _check_shape(frame.sample_rate, frame.layout.nb_channels, limits, container.field)
        seconds += frame.samples / frame.sample_rate
        check_seconds(seconds, limits.max_seconds, container.field)
        yield frame


def _resampled(frames: Iterator[AudioFrame], sample_rate: int) -> Iterator[NDArray[np.float32]]:
    """Pieces at the wanted rate, the mean of their channels; the resampler's delay is flushed at the end."""
    resampler = av.AudioResampler(format="fltp", rate=sample_rate)
    for frame in chain(frames, [None]):
        for piece in resampler.resample(frame):
            yield np.asarray(piece.to_ndarray(), np.float32).mean(axis=0)
