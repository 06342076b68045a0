"""Reading of video: frames on demand equal the frames in a row, and every kind of bad file."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from rebus.data.video import Video, VideoInfo, VideoLimits
from rebus.errors import InvalidArgumentError
from tests.media_files import clip, encoded, number_of, tone

FORMATS = [
    ("libx264", "mp4", {"g": 8, "bf": 3}),  # keyframes in between, frames out of order
    ("libx264", "matroska", {"g": 2, "bf": 1}),
    ("libx264", "mp4", {"g": 8, "bf": 3, "x264_params": "open-gop=1"}),
    ("mpeg4", "avi", {"g": 6, "b": 2_000_000}),
    ("libvpx", "webm", {"auto_alt_ref": 1, "lag_in_frames": 10, "g": 9}),  # frames that are never shown
    ("libvpx-vp9", "webm", {"g": 9}),
]


@pytest.mark.parametrize(("codec", "container", "options"), FORMATS)
def test_frames_on_demand_equal_frames_in_a_row(codec: str, container: str, options: dict[str, int]) -> None:
    video = Video(clip(codec, container, frames=24, **options))
    whole = list(video.frames(range(24)))

    assert video.check() == video.info == VideoInfo(num_frames=24, seconds=2.4, width=64, height=48)
    assert [number_of(frame) for frame in whole] == list(range(24))
    rng = np.random.default_rng(0)
    for _ in range(12):
        wanted = sorted(rng.integers(0, 24, 4).tolist())
        for index, frame in zip(wanted, video.frames(wanted), strict=True):
            np.testing.assert_array_equal(frame, whole[index])


def test_pictures_keep_their_places_and_colours() -> None:
    (frame,) = Video(clip(frames=3, size=(96, 64), crf=0)).frames([2])

    assert (frame.dtype, frame.shape) == (np.uint8, (64, 96, 3))
    np.testing.assert_allclose(frame[:28, :44], 66, atol=2)  # limited-range YUV and back
    np.testing.assert_allclose(frame[36:], 16, atol=2)


@pytest.mark.parametrize(
    ("degrees", "turned"),
    [(90, lambda p: np.rot90(p, -1)), (180, lambda p: np.rot90(p, 2)), (270, np.rot90)],
)
def test_a_turned_camera_is_undone(degrees: int, turned: Callable[[np.ndarray], np.ndarray]) -> None:
    """The track's matrix (ISO/IEC 14496-12, 8.3.2) turns clockwise what was stored."""
    plain = clip(frames=2)
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    identity = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    matrix = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 0x40000000)
    at = plain.index(identity, plain.index(b"tkhd"))

    (stored,) = Video(plain).frames([0])
    video = Video(plain[:at] + matrix + plain[at + 36 :])
    (shown,) = video.frames([0])

    np.testing.assert_array_equal(shown, turned(stored))
    assert (video.info.height, video.info.width) == shown.shape[:2]


def test_wrong_indices_are_a_mistake_of_the_caller() -> None:
    video = Video(clip(frames=3))
    for wrong in ([2, 1], [-1], [3]):
        with pytest.raises(ValueError, match="ascending indices"):
            next(video.frames(wrong))


GOOD = clip()
WEBM = clip("libvpx", "webm")
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
# What a file that calls itself MP4 begins with.
FTYP = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 512, b"isom")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (HLS, "not a file of MP4, WebM or Matroska, AVI, Ogg"),
        (CONCAT, "not a file of MP4"),
        (FTYP + HLS, "corrupt or truncated MP4"),
        (FTYP + CONCAT, "corrupt or truncated MP4"),
        (GOOD[:-500], "corrupt or truncated MP4"),
        (WEBM[: len(WEBM) // 2], "truncated|corrupt"),
        (clip("mpeg4", "avi")[:-4000], "truncated"),
        (encoded(tone(1.0), "aac", "mp4"), "holds no video"),
        (clip("ffv1", "matroska"), "codec 'ffv1' is not read"),
        (clip(frames=31), "31 frames or more, more than the limit of 30"),
        (clip("libvpx", "webm", frames=31), "31 frames or more, more than the limit of 30"),
        (clip(frames=30, fps=5), "6.0 s or more, more than the limit of 5 s"),
        (clip(frames=10, fps=100), "10 frames in 0.1 s, more than the limit of 50 a second"),
        (clip(frames=2, size=(128, 64)), "128x64 pixels a frame, more than the limit of 8000 pixels"),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    limits = VideoLimits(max_seconds=5.0, max_frames=30, max_fps=50.0, max_pixels=8000)
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        Video(data, limits=limits, field="a.mp4").check()
    assert caught.value.violations[0].field == "a.mp4"


def test_a_size_that_the_header_hides_is_refused_while_decoding() -> None:
    """The track says 64x48; the pictures in it are larger."""
    large = clip("mpeg4", "mp4", frames=2, size=(640, 480))
    hidden = large.replace(struct.pack(">HH", 640, 480), struct.pack(">HH", 64, 48))
    assert hidden != large

    with pytest.raises(InvalidArgumentError):
        Video(hidden, limits=VideoLimits(max_pixels=64 * 48)).check()


def test_missing_frames_are_found_by_decoding() -> None:
    """All packets are listed, but the second half holds noise."""
    data = bytearray(clip("libx264", "mp4", g=1, frames=20, size=(64, 48)))
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    noise = np.random.default_rng(0).integers(0, 256, (end - start) // 2, np.uint8).tobytes()
    data[end - len(noise) : end] = noise

    with pytest.raises(InvalidArgumentError, match="truncated"):
        Video(bytes(data)).check()


def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(0)
    originals = [GOOD, WEBM, clip("mpeg4", "avi", frames=10)]
    for _ in range(60):
        data = bytearray(originals[rng.integers(len(originals))])
        for at in rng.integers(12, len(data), 12):
            data[at] = rng.integers(256)
        try:
            video = Video(bytes(data))
            video.check()
            list(video.frames([0, video.info.num_frames - 1]))
        except InvalidArgumentError:
            continue
