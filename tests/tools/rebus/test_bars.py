"""Which scores pass the quickstart's bars."""

from __future__ import annotations

from rebus.v1.evaluation_pb2 import Score
from tools.rebus.quickstart.bars import BARS, judge

LEAST = {"existence": 0.90, "color": 0.90, "shape": 0.90, "size": 0.90, "comparison": 0.85, "count": 0.70}


def scores(*, mean: float = 0.9, text_only: float = 0.5, recall: float = 0.2, candidates: int = 174) -> list[Score]:
    """Scores that just pass, as far as the arguments leave them."""
    questions = [
        Score(benchmark="scene-questions", group=kind, metric="exact_match", value=value)
        for kind, value in LEAST.items()
    ]
    average = Score(benchmark="scene-questions", group="mean", metric="exact_match", value=mean, text_only=text_only)
    found = Score(
        benchmark="image-text-retrieval",
        group="text_to_image",
        metric="recall_at_1",
        value=recall,
        chance=1 / candidates,
        num_items=candidates,
    )
    return [*questions, average, found]


def missed(given: list[Score]) -> list[tuple[str, str, str]]:
    return [reached.bar.key for reached in judge(given) if not reached.passed]


def test_scores_on_the_bars_pass() -> None:
    assert missed(scores()) == []
    assert missed(scores(recall=20 / 174 + 1e-9)) == []


def test_each_kind_has_its_own_bar() -> None:
    for at, kind in enumerate(LEAST):
        given = scores()
        given[at].value -= 0.001
        assert missed(given) == [("scene-questions", kind, "exact_match")]


def test_the_mean_is_read_against_the_text_only_baseline() -> None:
    assert missed(scores(mean=0.849, text_only=0.5)) == [("scene-questions", "mean", "exact_match")]
    assert missed(scores(mean=0.76, text_only=0.4)) == []


def test_recall_is_read_against_chance_over_enough_candidates() -> None:
    key = ("image-text-retrieval", "text_to_image", "recall_at_1")
    assert missed(scores(recall=19.9 / 174)) == [key]
    assert missed(scores(recall=0.9, candidates=159)) == [key]


def test_a_missing_score_or_baseline_is_a_miss() -> None:
    assert missed([]) == [bar.key for bar in BARS]
    given = scores()
    given[-2].ClearField("text_only")
    assert missed(given) == [given_key(given[-2])]


def given_key(score: Score) -> tuple[str, str, str]:
    return score.benchmark, score.group, score.metric
