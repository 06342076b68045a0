"""Sound as log-mel spectrograms, as Whisper reads it (arXiv 2212.04356, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rebus.data.audio import DEFAULT_AUDIO_LIMITS, AudioLimits, decode_audio

# Slaney's mel scale: linear below 1000 Hz at 200/3 Hz a mel, then 27 mels to a factor of 6.4.
_LINEAR_HZ = 200.0 / 3
_BREAK_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27
_FLOOR = 1e-10
# Of the logarithm to base 10: what lies further below the loudest is cut.
_DYNAMIC_RANGE = 8.0


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Whisper's: 16 kHz, windows of 25 ms every 10 ms, 80 mels (128 from large-v3 on), pieces of 30 s."""

    sample_rate: int = 16_000
    # Both in samples.
    n_fft: int = 400
    hop_length: int = 160
    num_mels: int = 80
    # Length of a piece; shorter sound is padded with silence.
    chunk_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 1000 <= self.sample_rate <= 192_000:
            raise ValueError(f"sample_rate={self.sample_rate} is outside 1000..192000")
        if not 0 < self.hop_length <= self.n_fft <= 8192 or self.n_fft % 2:
            raise ValueError(f"need 0 < hop_length={self.hop_length} <= n_fft={self.n_fft} <= 8192, n_fft even")
        if not 1 <= self.num_mels <= self.n_fft // 2:
            raise ValueError(f"num_mels={self.num_mels} is outside 1..{self.n_fft // 2}")
        if not self.n_fft <= self.chunk_seconds * self.sample_rate <= 3600 * self.sample_rate:
            raise ValueError(f"chunk_seconds={self.chunk_seconds} must hold a window and at most an hour")

    @property
    def chunk_samples(self) -> int:
        """Samples of a piece."""
        return round(self.chunk_seconds * self.sample_rate)

    @property
    def num_frames(self) -> int:
        """Columns of a piece's spectrogram."""
        return self.chunk_samples // self.hop_length


class LogMel:
    """From encoded audio, or its samples, to log-mel pieces."""

    def __init__(self, config: LogMelConfig, *, limits: AudioLimits = DEFAULT_AUDIO_LIMITS) -> None:
        self.config, self.limits = config, limits

    def __call__(
        self, data: bytes, *, start_seconds: float = 0.0, end_seconds: float | None = None, field: str = "audio"
    ) -> NDArray[np.float32]:
        """The part between two moments as float32 ``[pieces, num_mels, num_frames]``; errors as ``decode_audio``."""
        samples = self._samples(data, start_seconds, end_seconds, field)
        size = self.config.chunk_samples
        return np.stack([self.features(samples[at : at + size]) for at in range(0, len(samples), size)])

    def num_pieces(
        self, data: bytes, *, start_seconds: float = 0.0, end_seconds: float | None = None, field: str = "audio"
    ) -> int:
        """How many pieces that part makes; the sound is decoded, since headers are often wrong about its length."""
        return -(-len(self._samples(data, start_seconds, end_seconds, field)) // self.config.chunk_samples)

    def _samples(self, data: bytes, start_seconds: float, end_seconds: float | None, field: str) -> NDArray[np.float32]:
        return decode_audio(
            data,
            sample_rate=self.config.sample_rate,
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            limits=self.limits,
            field=field,
        )

    def features(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """One piece of sound, float32 ``[T]`` of at most its length, to float32 ``[num_mels, num_frames]``."""
        config = self.config
        if samples.ndim != 1 or not 0 < len(samples) <= config.chunk_samples:
            raise ValueError(f"expected 1 to {config.chunk_samples} samples, got shape {list(samples.shape)}")
        piece = np.pad(samples, (0, config.chunk_samples - len(samples)))
        power = _power_spectrogram(piece, config.n_fft, config.hop_length)[: config.num_frames]
        mel = power @ _mel_filters(config.sample_rate, config.n_fft, config.num_mels)
        logs = np.log10(np.maximum(mel, _FLOOR)).T
        return ((np.maximum(logs, logs.max() - _DYNAMIC_RANGE) + 4.0) / 4.0).astype(np.float32)


def _power_spectrogram(samples: NDArray[np.float32], n_fft: int, hop: int) -> NDArray[np.float64]:
    """Squared magnitudes ``[frames, n_fft / 2 + 1]`` of windows centred on every ``hop``-th sample.

    The ends are mirrored and the window is Hann's periodic one, as in ``torch.stft``.
    """
    mirrored = np.pad(samples.astype(np.float64), n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, n_fft)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return np.abs(np.fft.rfft(frames * window, axis=1)) ** 2


@lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, n_fft: int, num_mels: int) -> NDArray[np.float64]:
    """``[n_fft / 2 + 1, num_mels]``: triangles, equally wide in mels up to half the rate, each of area one (in Hz)."""
    top = _hertz_to_mel(sample_rate / 2)
    corners = _mel_to_hertz(np.linspace(0.0, top, num_mels + 2))
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    return np.maximum(triangles, 0.0) * (2.0 / (high - low))


def _hertz_to_mel(hertz: float) -> float:
    if hertz < _BREAK_HZ:
        return hertz / _LINEAR_HZ
    return _BREAK_HZ / _LINEAR_HZ + float(np.log(hertz / _BREAK_HZ)) / _LOG_STEP


def _mel_to_hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = mels - _BREAK_HZ / _LINEAR_HZ
    return np.where(above < 0, mels * _LINEAR_HZ, _BREAK_HZ * np.exp(_LOG_STEP * above))
