"""Log-mel spectrograms against transformers' Whisper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from rebus.data.preprocess.log_mel import LogMel, LogMelConfig
from tests.media_files import tone, wav


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("kind", ["tones", "noise", "silence"])
def test_equals_whisper(kind: str, num_mels: int) -> None:
    sounds = {
        "tones": tone(3.0, hertz=(440.0,))[0] + 0.3 * tone(3.0, hertz=(3_000.0,))[0],
        "noise": np.random.default_rng(0).normal(0, 0.2, 5 * 16_000).astype(np.float32),
        "silence": np.zeros(16_000, np.float32),
    }
    reference = WhisperFeatureExtractor(feature_size=num_mels, chunk_length=5)

    found = LogMel(LogMelConfig(num_mels=num_mels, chunk_seconds=5.0)).features(sounds[kind])

    padded = np.pad(sounds[kind], (0, 5 * 16_000 - len(sounds[kind])))[None]
    exact = reference._np_extract_fbank_features(padded, "cpu")[0].astype(np.float32)
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(exact))
    # What it runs where torch is there transforms in single precision, which shows where there is next to no sound.
    expected = reference(sounds[kind], sampling_rate=16_000, return_tensors="np")["input_features"][0]
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected), rtol=0, atol=5e-5)


def test_the_whole_window_is_whispers() -> None:
    found = LogMel(LogMelConfig())(wav(tone(1.0)))

    assert found.shape == (1, 80, 3000)


def test_long_sound_becomes_pieces_and_parts_are_cut() -> None:
    log_mel = LogMel(LogMelConfig(chunk_seconds=1.0))
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 40_000)).astype(np.float32)
    data = wav(sound)

    pieces = log_mel(data)

    assert pieces.shape == (3, 80, 100)
    written = (np.round(sound[0] * 32767) / 32768).astype(np.float32)
    np.testing.assert_array_equal(pieces[1], log_mel.features(written[16_000:32_000]))
    np.testing.assert_array_equal(log_mel(data, start_seconds=1.0, end_seconds=2.0)[0], pieces[1])


def test_wrong_settings_and_shapes_are_refused() -> None:
    for wrong in ({"n_fft": 401}, {"hop_length": 500}, {"num_mels": 201}, {"chunk_seconds": 0.01}, {"sample_rate": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LogMelConfig(**wrong)
    with pytest.raises(ValueError, match="expected 1 to 480000 samples"):
        LogMel(LogMelConfig()).features(np.zeros(0, np.float32))
