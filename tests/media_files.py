"""Audio and video files made in memory, so that tests know what is in them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import av
import numpy as np
from numpy.typing import NDArray

STEP = 8


def clip(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    frames: int = 30,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    **options: int | str,
) -> bytes:
    """A video whose frame ``i`` is grey of level ``STEP * i``, brighter in its upper left quarter; size is (w, h)."""
    out = io.BytesIO()
    width, height = size
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {key.replace("_", "-"): str(value) for key, value in options.items()}
        stream.codec_context.thread_count = 1
        for index in range(frames):
            pixels = np.full((height, width, 3), STEP * index % 200, np.uint8)
            pixels[: height // 2, : width // 2] += 50
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


def number_of(frame: NDArray[np.uint8]) -> int:
    """Which frame of a ``clip`` (of up to 25) this is, told by its grey level below the bright quarter."""
    return round(float(frame[frame.shape[0] // 2 + 4 :].mean()) / STEP)


def tone(seconds: float = 1.0, *, rate: int = 16_000, hertz: Sequence[float] = (440.0,)) -> NDArray[np.float32]:
    """Sines of amplitude 0.5, one a channel: float32 ``[channels, T]``."""
    times = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * h * times) for h in hertz]).astype(np.float32)


def wav(samples: NDArray[np.float32], rate: int = 16_000) -> bytes:
    """16-bit PCM in a WAV file, written byte by byte."""
    data = np.round(samples.T * 32767).astype("<i2").tobytes()
    channels = len(samples)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def encoded(samples: NDArray[np.float32], codec: str, container: str, rate: int = 16_000) -> bytes:
    """The samples in another format than WAV."""
    out = io.BytesIO()
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        if codec == "vorbis":
            stream.codec_context.options = {"strict": "experimental"}
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.rate, frame.pts = rate, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=size)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            file.mux(stream.encode(piece))
        file.mux(stream.encode())
    return out.getvalue()
