"""Sounds and videos, good and hostile, and the tables that name them."""

from __future__ import annotations

import io
import json
import os
import struct
import wave
from pathlib import Path

import av
import numpy as np

_RATE = 8000
_BOMB_SAMPLES = 30_000_000
_LARGE_SIDE = 60_000
_PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
_NAMES = ["../x", "/etc/passwd", "link", "pipe", ".", "none", "x" * 5000]


def write_sounds(folder: Path, good: int) -> tuple[int, int]:
    """A folder of sounds with a CSV table; how many rows are good and how many bad."""
    whole = sound(1.0)
    bad = {
        "empty.wav": b"",
        "zeros.wav": bytes(4096),
        "cut.wav": whole[: len(whole) // 2],
        "rate.wav": whole[:24] + struct.pack("<I", 0) + whole[28:],
        "channels.wav": whole[:22] + struct.pack("<H", 0xFFFF) + whole[24:],
        "playlist.wav": _PLAYLIST,
        "long.flac": _long_silence(seconds=120),
        "samples.m4a": mp4_announcing(_BOMB_SAMPLES),
        "fragment.m4a": mp4_announcing(_BOMB_SAMPLES, fragment=True),
        "noise.mp3": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + b"\xff" * 4000,
        "video.ogg": b"OggS" + bytes(4000),
    }
    files = {**{f"good{number}.wav": whole for number in range(good)}, **bad}
    _write_files(folder, files)
    rows = [f'"{name}",what is heard' for name in [*files, *_NAMES]]
    rows += ["nul\0.wav,x", "good0.wav,\0", "good0.wav", "good0.wav," + "x" * (5 << 20), "good0.wav,\udcff"]
    rows += ['good0.wav,"never closed']
    table = "\n".join(["audio,caption", *rows])
    (folder / "captions.csv").write_bytes(table.encode(errors="surrogateescape"))
    return good, len(rows) - good


def write_videos(folder: Path, good: int) -> tuple[int, int]:
    """A folder of videos with a JSONL table; how many rows are good and how many bad."""
    whole = _video()
    bad = {
        "empty.mp4": b"",
        "zeros.mp4": bytes(4096),
        "cut.mp4": whole[: len(whole) // 2],
        "samples.mp4": mp4_announcing(_BOMB_SAMPLES),
        "fragment.mp4": mp4_announcing(_BOMB_SAMPLES, fragment=True),
        "large.mp4": mp4_announcing(10, side=_LARGE_SIDE),
        "playlist.mp4": _PLAYLIST,
        "cut.avi": b"RIFF\xff\xff\xff\x7fAVI " + bytes(1000),
        "noise.webm": b"\x1aE\xdf\xa3" + b"\xff" * 4000,
        "sound.mp4": sound(0.1),
    }
    files = {**{f"good{number}.mp4": whole for number in range(good)}, **bad}
    _write_files(folder, files)
    lines = [json.dumps({"video": name, "caption": "what is seen"}) for name in [*files, *_NAMES, "nul\0.mp4"]]
    lines += ['{"video": "good0.mp4", "caption": ' + "[" * 100_000, '{"video": 7, "caption": "x"}', "[]", "\0"]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return good, len(lines) - good


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")


def sound(seconds: float) -> bytes:
    """A WAV file of noise."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes(np.random.default_rng(0).integers(-999, 999, round(seconds * _RATE), np.int16).tobytes())
    return buffer.getvalue()


def _long_silence(seconds: int) -> bytes:
    """A small file that decodes to much."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=_RATE, layout="mono")
        for at in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, _RATE), np.int16), format="s16", layout="mono")
            frame.rate, frame.pts = _RATE, at * _RATE
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def _video() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 200, 20):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def mp4_announcing(samples: int, *, fragment: bool = False, side: int = 64) -> bytes:
    """An MP4 file of a few hundred bytes that announces so many samples of a byte each, in its index or a fragment."""
    constant = 0 if fragment else samples
    tables = [
        _box(b"stsd", _words(0, 1), _entry(side)),
        _box(b"stts", _words(0, 1, constant, 1)),
        _box(b"stsc", _words(0, 1, 1, constant, 1)),
        _box(b"stsz", _words(0, 1, constant)),
        _box(b"stco", _words(0, 1, 40)),
    ]
    info = [
        _box(b"vmhd", _words(1), bytes(8)),
        _box(b"dinf", _box(b"dref", _words(0, 1), _box(b"url ", _words(1)))),
        _box(b"stbl", *tables),
    ]
    header = _box(b"mdhd", _words(0, 0, 0, 1000, 1000), bytes(4))
    media = _box(b"mdia", header, _box(b"hdlr", _words(0, 0), b"vide", bytes(13)), _box(b"minf", *info))
    track = _box(
        b"tkhd", _words(7, 0, 0, 1, 0, 1000), bytes(52), _words(side << 16 & 0xFFFF_FFFF, side << 16 & 0xFFFF_FFFF)
    )
    movie = [_box(b"mvhd", _words(0, 0, 0, 1000, 1000), bytes(76), _words(2)), _box(b"trak", track, media)]
    if fragment:
        movie.append(_box(b"mvex", _box(b"trex", _words(0, 1, 1, 1, 1, 0))))
    parts = [_box(b"ftyp", b"isom", _words(0), b"isom"), _box(b"moov", *movie)]
    if fragment:
        runs = [_box(b"tfhd", _words(0x20000, 1)), _box(b"trun", _words(1, samples, 8))]
        parts.append(_box(b"moof", _box(b"mfhd", _words(0, 1)), _box(b"traf", *runs)))
    return b"".join([*parts, _box(b"mdat", bytes(64))])


def _entry(side: int) -> bytes:
    sizes = struct.pack(">HH", side, side)
    rest = [_words(0x480000, 0x480000, 0), struct.pack(">H", 1), bytes(32), struct.pack(">Hh", 24, -1)]
    return _box(b"mp4v", bytes(6), struct.pack(">H", 1), bytes(16), sizes, *rest)


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def _words(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)
