"""What the quickstart's models must reach on held-out data, and whether they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rebus.v1.evaluation_pb2 import Score

# (benchmark, group, metric)
Key = tuple[str, str, str]
MIN_GAIN = 0.35  # of the mean over question kinds, above the same model without the picture
MIN_TIMES_CHANCE = 20.0
MIN_CANDIDATES = 160
_QUESTIONS = "scene-questions"
_LEAST = {"existence": 0.90, "color": 0.90, "shape": 0.90, "size": 0.90, "comparison": 0.85, "count": 0.70}


@dataclass(frozen=True)
class Bar:
    """One bar: the score it reads, the value that counts, the least that passes."""

    name: str
    key: Key
    least: float
    value: Callable[[Score], float]


@dataclass(frozen=True)
class Reached:
    """A bar with what was reached; ``value`` is ``None`` where the score is missing."""

    bar: Bar
    value: float | None

    @property
    def passed(self) -> bool:
        return self.value is not None and self.value >= self.bar.least


def _gain(score: Score) -> float:
    return score.value - score.text_only if score.HasField("text_only") else float("-inf")


def _times_chance(score: Score) -> float:
    enough = score.num_items >= MIN_CANDIDATES and score.HasField("chance") and score.chance > 0
    return score.value / score.chance if enough else float("-inf")


BARS = (
    *(
        Bar(f"{kind} exact match", (_QUESTIONS, kind, "exact_match"), least, lambda score: score.value)
        for kind, least in _LEAST.items()
    ),
    Bar("mean over kinds, above text-only", (_QUESTIONS, "mean", "exact_match"), MIN_GAIN, _gain),
    Bar(
        f"text to image recall at 1, times chance (of {MIN_CANDIDATES} candidates or more)",
        ("image-text-retrieval", "text_to_image", "recall_at_1"),
        MIN_TIMES_CHANCE,
        _times_chance,
    ),
)


def judge(scores: Iterable[Score], bars: Iterable[Bar] = BARS) -> list[Reached]:
    """Every bar with what was reached."""
    found: Mapping[Key, Score] = {(s.benchmark, s.group, s.metric): s for s in scores}
    return [Reached(bar, bar.value(found[bar.key]) if bar.key in found else None) for bar in bars]
