"""Decoding of audio: sounds that are known, and every kind of bad file."""

from __future__ import annotations

import numpy as np
import pytest

from rebus.data.audio import AudioLimits, check_audio, decode_audio
from rebus.errors import InvalidArgumentError
from tests.media_files import clip, encoded, tone, wav


def test_wav_samples_come_back_as_written() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (1, 5000)).astype(np.float32)

    found = decode_audio(wav(samples))

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.round(samples[0] * 32767) / 32768, atol=1e-7)


def test_channels_are_averaged() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (2, 3000)).astype(np.float32)

    np.testing.assert_allclose(decode_audio(wav(samples)), samples.mean(0), atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    found = decode_audio(wav(tone(1.0, rate=rate), rate))

    assert found.shape == (16_000,)
    inner = slice(500, -500)  # filters ring at the ends
    np.testing.assert_allclose(found[inner], tone(1.0)[0][inner], atol=2e-3)


def test_a_part_equals_the_whole_cut() -> None:
    data = wav(tone(1.0, rate=22_050, hertz=(300.0, 500.0)), 22_050)
    whole = decode_audio(data)

    np.testing.assert_array_equal(decode_audio(data, start_seconds=0.25, end_seconds=0.5), whole[4000:8000])
    np.testing.assert_array_equal(decode_audio(data, start_seconds=0.25), whole[4000:])
    with pytest.raises(InvalidArgumentError, match="no sound from 2 s to the end"):
        decode_audio(data, start_seconds=2.0)


@pytest.mark.parametrize(
    ("codec", "container", "rate"),
    [
        ("flac", "flac", 44_100),
        ("libmp3lame", "mp3", 44_100),
        ("libopus", "ogg", 48_000),
        ("vorbis", "ogg", 44_100),
        ("aac", "mp4", 44_100),
    ],
)
def test_every_container_is_read(codec: str, container: str, rate: int) -> None:
    data = encoded(tone(1.0, rate=rate, hertz=(440.0, 440.0)), codec, container, rate)

    info = check_audio(data)
    spectrum = np.abs(np.fft.rfft(decode_audio(data)[4000:12_000]))

    assert (info.sample_rate, info.channels) == (rate, 2)
    assert info.seconds == pytest.approx(1.0, abs=0.1)  # these codecs work in frames of up to 50 ms
    assert spectrum.argmax() == 440 // 2  # bins of 2 Hz


def lying(data: bytes, offset: int, value: int, size: int = 4) -> bytes:
    return data[:offset] + value.to_bytes(size, "little") + data[offset + size :]


GOOD = wav(tone(1.0))
FLAC = encoded(tone(1.0), "flac", "flac")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n", "not a file of WAV, FLAC"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not a file of WAV, FLAC"),
        (GOOD[:-400], "truncated: 31644 of 32044 bytes"),
        (FLAC[: len(FLAC) // 2], "corrupt or truncated FLAC|truncated"),
        (GOOD[:44], "truncated"),
        (lying(GOOD, 4, 36)[:44], "no sound|corrupt"),
        (lying(GOOD, 24, 400_000), "400000 samples a second, expected 1 to 192000"),
        (lying(GOOD, 22, 9, 2), "9 channels, expected 1 to 8"),
        (lying(GOOD, 20, 0x55, 2), "corrupt|holds no"),  # says MP3, holds PCM
        (lying(GOOD, 20, 2, 2), "codec 'adpcm_ms' is not read"),
        (clip(), "holds no audio"),
        (wav(tone(6.0)), "6.0 s or more, more than the limit of 5 s"),
        (b"RIFF" + b"\xff" * 200, "not a file of"),
        (b"ID3" + bytes(300), "corrupt or truncated MP3|holds no"),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        check_audio(data, limits=AudioLimits(max_seconds=5.0), field="a.wav")
    assert caught.value.violations[0].field == "a.wav"


def test_a_header_without_a_length_does_not_escape_the_bound() -> None:
    data = wav(tone(3.0))
    endless = lying(lying(data, 4, 0xFFFF_FFFF), 40, 0xFFFF_FFFF)  # as a writer into a pipe leaves it

    assert check_audio(endless).seconds == 3.0
    with pytest.raises(InvalidArgumentError, match="more than the limit of 2 s"):
        check_audio(endless, limits=AudioLimits(max_seconds=2.0))
    with pytest.raises(InvalidArgumentError, match=f"{len(data)} bytes, more than the limit of 1000"):
        check_audio(data, limits=AudioLimits(max_bytes=1000))


def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(0)
    originals = [GOOD, FLAC, encoded(tone(0.5), "libmp3lame", "mp3"), encoded(tone(0.5), "libopus", "ogg", 16_000)]
    for _ in range(40):
        data = bytearray(originals[rng.integers(len(originals))])
        for at in rng.integers(8, len(data), 12):
            data[at] = rng.integers(256)
        try:
            check_audio(bytes(data))
        except InvalidArgumentError:
            continue
