"""Opening untrusted audio and video files.

The container is taken from the magic bytes, never from a name or by probing, so a playlist (HLS, concat, DASH) is
never read as one. FFmpeg gets the bytes alone: it may open no other file or address, use no other container than the
one announced, and only the decoders named here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Stream

from rebus.data.mp4 import check_announced
from rebus.errors import InvalidArgumentError, invalid

# FFmpeg's name of the container -> what people call it.
AUDIO_CONTAINERS = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "ogg": "Ogg", "mov": "MP4"}
VIDEO_CONTAINERS = {"mov": "MP4", "matroska": "WebM or Matroska", "avi": "AVI", "ogg": "Ogg"}
# Decoders that may run; FFmpeg has some four hundred more, most of them old and seldom tested.
_PCM = tuple(f"pcm_{kind}" for kind in ("u8", "s16le", "s24le", "s32le", "f32le", "f64le", "s16be", "alaw", "mulaw"))
AUDIO_CODECS = frozenset(("flac", "mp3", "mp3float", "vorbis", "opus", "libopus", "aac", "alac", *_PCM))
VIDEO_CODECS = frozenset(("h264", "hevc", "vp8", "vp9", "libvpx-vp9", "libdav1d", "av1", "mpeg4", "theora"))
_MAX_STREAMS = 16
# Of what a header promises, the share that may be missing: lengths are rounded, and some frames are never shown.
_MISSING = 0.05
# A name no protocol has: an empty list would allow all of them.
_NOTHING = "none"


@dataclass(frozen=True, kw_only=True)
class OpenContainer:
    """A container that is open for reading, and the field that its errors name."""

    file: InputContainer
    name: str
    field: str

    @property
    def seconds(self) -> float | None:
        """Its length as the header tells it, if it does."""
        return None if self.file.duration is None else self.file.duration / av.time_base


def sniff_container(data: bytes) -> str | None:
    """FFmpeg's name of the container that the magic bytes announce, or None for any that is not read."""
    if data[:4] == b"RIFF":
        return {b"WAVE": "wav", b"AVI ": "avi"}.get(data[8:12])
    if data[4:8] == b"ftyp":
        return "mov"
    if data[:3] == b"ID3" or (data[:1] == b"\xff" and data[1:2] and data[1] & 0xE6 == 0xE2):  # MPEG audio, layer III
        return "mp3"
    signatures = {b"fLaC": "flac", b"OggS": "ogg", b"\x1aE\xdf\xa3": "matroska"}
    return signatures.get(data[:4])


@contextmanager
def open_container(
    data: bytes,
    known: dict[str, str],
    codecs: frozenset[str],
    *,
    max_bytes: int,
    max_seconds: float,
    max_pixels: int = 1,
    field: str,
) -> Iterator[OpenContainer]:
    """Opens a file of one of the ``known`` containers; decoders refuse pictures of more than ``max_pixels``.

    Raises ``InvalidArgumentError`` naming ``field`` for another kind of file, one that breaks here or inside the
    block, one beyond the bounds by its header, and one that wants to open another.
    """
    if len(data) > max_bytes:
        raise invalid(field, f"{len(data)} bytes, more than the limit of {max_bytes}")
    name = sniff_container(data)
    if name not in known:
        found = "empty file" if not data else f"starts with {data[:12].hex(' ')}"
        raise invalid(field, f"not a file of {', '.join(known.values())} ({found})")
    _check_riff(data, field)
    if name == "mov":
        check_announced(data, field)
    with _errors(field, known[name]), _opened(data, name, codecs, max_pixels, field) as file:
        container = OpenContainer(file=file, name=name, field=field)
        if len(file.streams) > _MAX_STREAMS:
            raise invalid(field, f"{len(file.streams)} streams, more than the limit of {_MAX_STREAMS}")
        check_seconds(container.seconds or 0.0, max_seconds, field)
        yield container


def check_seconds(seconds: float | Fraction, limit: float, field: str) -> None:
    """Refuses a length beyond ``limit``, whether a header tells it or decoding has come so far."""
    if seconds > limit:
        raise invalid(field, f"{float(seconds):.1f} s or more, more than the limit of {limit:g} s")


def check_whole(found: float | Fraction, promised: float, unit: str, field: str) -> None:
    """Refuses a file that ends well before its header says."""
    if found < (1 - _MISSING) * promised:
        raise invalid(field, f"truncated: {float(found):.4g} of {promised:.4g} {unit} can be read")


def check_codec(stream: Stream, codecs: frozenset[str], field: str) -> None:
    """Refuses a stream whose decoder is not among ``codecs``."""
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in codecs:
        raise invalid(field, f"codec {name!r} is not read; known: {', '.join(sorted(codecs))}")


def _check_riff(data: bytes, field: str) -> None:
    """WAV and AVI tell their size, which FFmpeg forgives; a writer that could not go back leaves 0 or all ones."""
    size = int.from_bytes(data[4:8], "little")
    if data[:4] == b"RIFF" and size not in (0, 0xFFFF_FFFF) and size + 8 > len(data):
        raise invalid(field, f"truncated: {len(data)} of {size + 8} bytes are there")


def _opened(data: bytes, name: str, codecs: frozenset[str], max_pixels: int, field: str) -> InputContainer:
    def refuse(url: str, flags: int, options: dict[str, str]) -> None:
        raise invalid(field, f"wants to open another file, {url[:80]!r}")

    file = av.open(
        io.BytesIO(data),
        "r",
        format=name,
        # Of the decoders: opening a file may already decode a picture, which can be large.
        options={"max_pixels": str(max_pixels)},
        container_options={
            "format_whitelist": name,
            "protocol_whitelist": _NOTHING,
            "codec_whitelist": ",".join(sorted(codecs)),
        },
        io_open=refuse,
        metadata_errors="replace",
    )
    return cast(InputContainer, file)


@contextmanager
def _errors(field: str, kind: str) -> Iterator[None]:
    try:
        yield
    except InvalidArgumentError:
        raise
    except (FFmpegError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise invalid(field, f"corrupt or truncated {kind} file: {reason}") from None
