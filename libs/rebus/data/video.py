"""Safe reading of untrusted video bytes: what a file holds, and its frames on demand, one in memory at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from rebus.data.containers import (
    VIDEO_CODECS,
    VIDEO_CONTAINERS,
    OpenContainer,
    check_codec,
    check_seconds,
    check_whole,
    open_container,
)
from rebus.errors import invalid


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """Bounds on one encoded video, checked on its header and again while it is read."""

    max_bytes: int = 512 << 20
    max_seconds: float = 7200.0
    max_frames: int = 500_000
    max_fps: float = 240.0
    # Of one frame.
    max_pixels: int = 4096 * 2304

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_seconds, self.max_frames, self.max_fps, self.max_pixels) <= 0:
            raise ValueError(f"limits must be positive, got {self}")


DEFAULT_VIDEO_LIMITS = VideoLimits()


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video holds; the sizes are those of the picture as it is shown, upright."""

    num_frames: int
    seconds: float
    width: int
    height: int

    @property
    def fps(self) -> float:
        """Frames a second, on average."""
        return self.num_frames / self.seconds


class Video:
    """An encoded video whose frames are read by their number, in order of presentation.

    Opening it reads the header and the list of frames, and decodes the first. Raises ``InvalidArgumentError`` naming
    ``field`` for an unknown container or codec, a broken file, or one beyond ``limits``.
    """

    def __init__(self, data: bytes, *, limits: VideoLimits = DEFAULT_VIDEO_LIMITS, field: str = "video") -> None:
        self._data, self._limits, self._field = data, limits, field
        with self._stream() as (container, stream):
            times, keys = _listed(container, stream, limits)
            # Presentation times in units of the stream, ascending; those of frames that can be decoded by themselves.
            self._times, self._keys = sorted(times), sorted(keys)
            seconds = _seconds(self._times, stream)
            check_seconds(seconds, limits.max_seconds, field)
            if len(times) > limits.max_fps * seconds:
                found = f"{len(times)} frames in {float(seconds):g} s"
                raise invalid(field, f"{found}, more than the limit of {limits.max_fps:g} a second")
            check_whole(len(times), stream.frames, "frames", field)
            if len(container.file.streams) == 1:  # else the header's length may be another stream's
                check_whole(seconds, container.seconds or 0.0, "s", field)
        height, width = next(self.frames([0])).shape[:2]
        self.info = VideoInfo(num_frames=len(self._times), seconds=float(seconds), width=width, height=height)

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Frames ``indices`` (ascending; repeats are fine) as uint8 ``[H, W, 3]`` RGB, each decoded when asked for.

        What lies between two of them is decoded only back to the keyframe before the second.
        """
        if list(indices) != sorted(indices) or (indices and not 0 <= indices[0] <= indices[-1] < len(self._times)):
            raise ValueError(f"expected ascending indices in 0..{len(self._times) - 1}, got {list(indices)}")
        with self._stream() as (container, stream):
            cursor = _Cursor(container.file, stream)
            for index in indices:
                time = self._times[index]
                key = bisect_right(self._keys, time) - 1
                frame = cursor.at(time, self._keys[key] if key >= 0 else None)
                if frame is None:
                    raise invalid(self._field, f"frame {index} of {len(self._times)} cannot be decoded")
                _check_pixels(frame.width, frame.height, self._limits, self._field)
                yield _upright(frame)

    def check(self) -> VideoInfo:
        """Decodes every frame, and refuses the video if many are missing; returns what it holds."""
        decoded = 0
        with self._stream() as (container, stream):
            for frame in container.file.decode(stream):
                decoded += 1
                _check_frames(decoded, self._limits, self._field)
                _check_pixels(frame.width, frame.height, self._limits, self._field)
        check_whole(decoded, len(self._times), "frames", self._field)
        return self.info

    @contextmanager
    def _stream(self) -> Iterator[tuple[OpenContainer, VideoStream]]:
        with _opened(self._data, self._limits, self._field) as container:
            yield container, _video_stream(container, self._limits)


class _Cursor:
    """Decodes forwards, and leaps to a keyframe where that saves work."""

    def __init__(self, file: InputContainer, stream: VideoStream) -> None:
        self._file, self._stream = file, stream
        self._frames = file.decode(stream)
        self._shown: VideoFrame | None = None
        self._next: VideoFrame | None = next(self._frames, None)

    def at(self, time: int, key: int | None) -> VideoFrame | None:
        """The last frame at or before ``time``, which must not lie before an earlier call's."""
        position = self._next if self._shown is None else self._shown
        if key is not None and position is not None and _time(position) < key:
            self._leap(key)
            if self._next is not None and _time(self._next) > time:
                # Containers index decoding times, so a leap may land behind the frame: go through from the start.
                self._leap(0)
        while self._next is not None and (self._shown is None or _time(self._next) <= time):
            self._shown, self._next = self._next, next(self._frames, None)
        return self._shown

    def _leap(self, time: int) -> None:
        self._file.seek(time, stream=self._stream)
        self._frames = self._file.decode(self._stream)
        self._shown, self._next = None, next(self._frames, None)


def _opened(data: bytes, limits: VideoLimits, field: str) -> AbstractContextManager[OpenContainer]:
    return open_container(
        data,
        VIDEO_CONTAINERS,
        VIDEO_CODECS,
        max_bytes=limits.max_bytes,
        max_seconds=limits.max_seconds,
        max_pixels=limits.max_pixels,
        field=field,
    )


def _video_stream(container: OpenContainer, limits: VideoLimits) -> VideoStream:
    """The first video stream, its header within the limits."""
    field = container.field
    stream = next(iter(container.file.streams.video), None)
    if stream is None:
        raise invalid(field, "holds no video")
    check_codec(stream, VIDEO_CODECS, field)
    context = stream.codec_context
    _check_pixels(context.width, context.height, limits, field)
    _check_frames(stream.frames, limits, field)
    context.options = {"max_pixels": str(limits.max_pixels)}  # a size that changes on the way fails before its memory
    context.thread_type = "NONE"
    return stream


def _listed(container: OpenContainer, stream: VideoStream, limits: VideoLimits) -> tuple[list[int], list[int]]:
    """Presentation times of all frames and of the keyframes, without decoding one."""
    times: list[int] = []
    keys: list[int] = []
    for packet in container.file.demux(stream):
        if not packet.size:
            continue
        if packet.pts is None:
            raise invalid(container.field, f"frame {len(times)} has no time")
        times.append(packet.pts)
        _check_frames(len(times), limits, container.field)
        if packet.is_keyframe:
            keys.append(packet.pts)
    if not times:
        raise invalid(container.field, "holds no frames")
    return times, keys


def _seconds(times: Sequence[int], stream: VideoStream) -> Fraction:
    """From the first frame to the end of the last, which lasts as long as the others do on average."""
    if stream.time_base is None:
        raise ValueError("the stream has no time base")
    span = (times[-1] - times[0]) * stream.time_base
    if len(times) > 1:
        return span * Fraction(len(times), len(times) - 1)
    return Fraction(1) / stream.average_rate if stream.average_rate else Fraction(1)


def _check_pixels(width: int, height: int, limits: VideoLimits, field: str) -> None:
    if width * height > limits.max_pixels:
        raise invalid(field, f"{width}x{height} pixels a frame, more than the limit of {limits.max_pixels} pixels")


def _check_frames(count: int, limits: VideoLimits, field: str) -> None:
    if count > limits.max_frames:
        raise invalid(field, f"{count} frames or more, more than the limit of {limits.max_frames}")


def _time(frame: VideoFrame) -> int:
    if frame.pts is None:
        raise ValueError("a frame has no time")
    return frame.pts


def _upright(frame: VideoFrame) -> NDArray[np.uint8]:
    """RGB pixels, turned by the angle (degrees, counter-clockwise) that the container asks for."""
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
