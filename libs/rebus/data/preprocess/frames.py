"""Which frames of a video are looked at (kind ``frame-sampler``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rebus.errors import invalid
from rebus.registry import register

MAX_FRAMES = 4096
# How well each of some frames (by their number) fits what is asked, e.g. a dual encoder's cosine with the question.
Relevance = Callable[[Sequence[int]], Sequence[float]]


class FrameSampler(Protocol):
    """Built as ``sampler(config)``; gives ascending, distinct numbers of frames of a video of ``num_frames``."""

    def __call__(self, num_frames: int, fps: float, relevance: Relevance | None = None) -> list[int]: ...


@dataclass(frozen=True, kw_only=True)
class UniformConfig:
    """How many."""

    num_frames: int = 24

    def __post_init__(self) -> None:
        _check_count("num_frames", self.num_frames)


@register("frame-sampler", "uniform", config=UniformConfig)
class UniformSampler:
    """The middle frames of equal parts; all frames of a video that has no more."""

    def __init__(self, config: UniformConfig) -> None:
        self._count = config.num_frames

    def __call__(self, num_frames: int, fps: float, relevance: Relevance | None = None) -> list[int]:
        """``floor((k + 0.5) T / n)`` for ``k < n``."""
        return uniform(num_frames, self._count)


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """How many a second."""

    # Frames a second of the video.
    fps: float = 1.0
    # Of a longer video, as many are taken uniformly.
    max_frames: int = 64

    def __post_init__(self) -> None:
        _check_count("max_frames", self.max_frames)
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps={self.fps} is outside 0..240")


@register("frame-sampler", "fps", config=RateConfig)
class RateSampler:
    """Frames at a fixed rate from the first on, within a bound."""

    def __init__(self, config: RateConfig) -> None:
        self._config = config

    def __call__(self, num_frames: int, fps: float, relevance: Relevance | None = None) -> list[int]:
        """The frames shown at ``0, 1 / fps, 2 / fps, ...`` seconds."""
        step = max(1.0, fps / self._config.fps)
        # A little is added because (fps / rate) * k may fall just short of a whole number.
        numbers = [int(at + 1e-9) for at in np.arange(0, num_frames - 1e-9, step)]
        return numbers if len(numbers) <= self._config.max_frames else uniform(num_frames, self._config.max_frames)


@dataclass(frozen=True, kw_only=True)
class KeyframesConfig:
    """How many, out of how many candidates, and when a stretch of video is split."""

    num_frames: int = 32
    # Candidates are taken at this rate, and uniformly where they would be more than ``max_candidates``.
    fps: float = 1.0
    max_candidates: int = 1024
    # A stretch is split unless its best scores exceed its mean score by this.
    threshold: float = 0.2
    # Times a stretch may be split.
    max_depth: int = 5

    def __post_init__(self) -> None:
        _check_count("num_frames", self.num_frames)
        _check_count("max_candidates", self.max_candidates)
        if self.max_candidates < self.num_frames:
            raise ValueError(f"max_candidates={self.max_candidates} is less than num_frames={self.num_frames}")
        if not 0 <= self.max_depth <= 16:
            raise ValueError(f"max_depth={self.max_depth} is outside 0..16")


@register("frame-sampler", "aks", config=KeyframesConfig, paper="aks")
class KeyframeSampler:
    """Adaptive keyframes: those that fit the question best, spread over the video where no stretch stands out."""

    def __init__(self, config: KeyframesConfig) -> None:
        self._config = config
        self._candidates = RateSampler(RateConfig(fps=config.fps, max_frames=config.max_candidates))

    def __call__(self, num_frames: int, fps: float, relevance: Relevance | None = None) -> list[int]:
        """The candidates that ``adaptive_keyframes`` picks by their scores; ``relevance`` must be given."""
        if relevance is None:
            raise invalid("frames", "adaptive keyframes need a question to score the frames by")
        config = self._config
        candidates = self._candidates(num_frames, fps)
        if len(candidates) < config.num_frames:  # a short video: scored as densely as there are frames to pick
            candidates = uniform(num_frames, config.num_frames)
        scores = np.asarray(relevance(candidates), np.float64)
        picked = adaptive_keyframes(scores, config.num_frames, config.threshold, config.max_depth)
        return [candidates[index] for index in picked]


def uniform(total: int, count: int) -> list[int]:
    """The middles of ``count`` equal parts of ``range(total)``; all of it where it holds no more."""
    count = min(total, count)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


def adaptive_keyframes(scores: NDArray[np.float64], count: int, threshold: float, max_depth: int) -> list[int]:
    """Indices of ``min(count, len(scores))`` scores, ascending (AKS, arXiv 2502.21271, section 3.3).

    A stretch gives its best where they exceed its mean by ``threshold`` or it was split ``max_depth`` times; else each
    half gives half, the first one more of an odd number.
    """
    return sorted(_judged(scores, 0, min(count, len(scores)), threshold, max_depth))


def _judged(scores: NDArray[np.float64], start: int, count: int, threshold: float, depth: int) -> list[int]:
    if count == 0:
        return []
    best = np.argsort(-scores, kind="stable")[:count]  # of equal scores the earlier
    if depth == 0 or count == 1 or scores[best].mean() - scores.mean() >= threshold:
        return [start + int(index) for index in best]
    # Rounding both up keeps at least as many scores in a half as it must give.
    half, first = -(-len(scores) // 2), -(-count // 2)
    return [
        *_judged(scores[:half], start, first, threshold, depth - 1),
        *_judged(scores[half:], start + half, count - first, threshold, depth - 1),
    ]


def _check_count(name: str, count: int) -> None:
    if not 1 <= count <= MAX_FRAMES:
        raise ValueError(f"{name}={count} is outside 1..{MAX_FRAMES}")
