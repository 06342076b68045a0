"""Metrics against hand-worked values and slow independent rewritings of their definitions."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import numpy as np
import pytest

from rebus import registry
from rebus.errors import InvalidArgumentError
from rebus.evaluation import metrics
from rebus.registry import NoSettings

NONE = NoSettings()


def test_every_metric_is_registered() -> None:
    names = {component.name for component in registry.components("metric")}
    assert names >= {"cider_d", "exact_match", "mme_accuracy", "mme_accuracy_plus", "pope_accuracy"}
    assert names >= {"recall_at_k", "reciprocal_rank"}


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Red.", "red", 1.0),
        ("  large   cube ", "Large cube", 1.0),
        ("\uff32\uff25\uff24", "red", 1.0),  # full-width letters: NFKC
        ("red cube", "red", 0.0),
        ("", "red", 0.0),
        ("\u201cred\u201d", "red", 0.0),  # only plain quotes are cut off
    ],
)
def test_exact_match(prediction: str, reference: str, expected: float) -> None:
    assert metrics.exact_match(NONE, [prediction], [["nothing", reference]]).tolist() == [expected]


MME_TABLE = {
    "yes": [
        "yes", "Yes", "YES", "yes.", "Yes.", " yes ", "yes, it is", "Yes! there is", "yes\n", "yess", "eyes", "yes no",
    ],
    "no": [
        "no", "No", "NO", "no.", "No.", " no ", "no, it is not", "No there is not", "not", "Not at all", "none",
        "nope", "nothing", "now", "north", "a no", "snow", "uno",
    ],
    "other": [
        "", " ", ".", "maybe", "the answer is yes", "the answer is no", "it is not", "there is", "1", "true", "false",
        "y", "n", "ye", "y e s", "n o", "there is no cube", "I think so", "\u662f", "oui",
    ],
}  # fmt: skip


@pytest.mark.paper("mme")
def test_mme_reads_fifty_answers() -> None:
    cases = [(text, label) for label, texts in MME_TABLE.items() for text in texts]
    assert len(cases) == 50
    assert [(text, metrics.parse_mme(text)) for text, _ in cases] == cases


@pytest.mark.paper("mme")
def test_mme_of_an_oracle_an_always_yes_and_a_mixed_answerer() -> None:
    images = ["a", "a", "b", "b"]
    truth = ["yes", "no", "no", "yes"]

    def score(answers: list[str]) -> tuple[float, float]:
        accuracy = metrics.mme_accuracy(NONE, answers, truth).mean()
        return float(accuracy), float(metrics.mme_accuracy_plus(NONE, answers, truth, images).mean())

    assert score(truth) == (1.0, 1.0)
    assert score(["yes"] * 4) == (0.5, 0.0)
    assert score(["Yes.", "no", "yes", "yes"]) == (0.75, 0.5)


@pytest.mark.paper("mme")
def test_mme_of_a_random_answerer_lies_near_its_expectation() -> None:
    rng, images = random.Random(0), 4000
    answers = [rng.choice(["yes", "no"]) for _ in range(2 * images)]
    names = [str(index // 2) for index in range(2 * images)]
    plus = metrics.mme_accuracy_plus(NONE, answers, ["yes", "no"] * images, names)
    assert abs(plus.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / images)


def test_yes_no_references_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="references: must be yes or no, found 'Yes'"):
        metrics.mme_accuracy(NONE, ["yes"], ["Yes"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No, there is not.", "no"),
        ("There is not a dog.", "no"),
        ("Yes. There is no doubt.", "yes"),
        ("Yes.", "yes"),
        ("no,", "no"),
        ("nothing here", "yes"),
        ("NO", "yes"),  # POPE's own rule knows No and no only
    ],
)
def test_pope_reads_the_first_sentence(text: str, expected: str) -> None:
    assert metrics.parse_pope(text) == expected


def test_pope_report_by_hand() -> None:
    report = metrics.pope_report(["yes", "yes", "yes", "no", "no"], ["yes", "no", "yes", "yes", "no"])
    assert report.accuracy == pytest.approx(3 / 5)
    assert report.precision == pytest.approx(2 / 3)
    assert report.recall == pytest.approx(2 / 3)
    assert report.f1 == pytest.approx(2 / 3)
    assert report.yes_ratio == pytest.approx(3 / 5)
    hits = metrics.pope_accuracy(NONE, ["yes", "yes", "no"], ["yes", "no", "no"])
    assert hits.tolist() == [1.0, 0.0, 1.0]


def test_pope_report_of_nothing_is_zero() -> None:
    report = metrics.pope_report(["no"], ["no"])
    assert (report.precision, report.recall, report.f1, report.yes_ratio) == (0.0, 0.0, 0.0, 0.0)


def test_cider_d_by_hand() -> None:
    """Two images; every n-gram below occurs in one of them only, so its weight is its count times log 2.

    Caption ``a b`` against ``a b``: cosines 1, 1, 0, 0 (no 3- or 4-grams) -> 10 * 2/4 = 5.
    Caption ``c`` against ``c d``: unigrams c: 1 / (1 * sqrt 2); the rest 0; one bigram fewer: exp(-1/72).
    """
    scores = metrics.cider_d(metrics.CiderDConfig(), ["a b", "c"], [["a b"], ["c d"]])
    np.testing.assert_allclose(scores, [5.0, 10 * (1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)], rtol=1e-12)


def test_cider_d_clips_repeated_words() -> None:
    """``a a a`` against ``a``: unigram min(3, 1) * 1 / (3 * 1) = 1/3; two bigrams more: exp(-4/72)."""
    scores = metrics.cider_d(metrics.CiderDConfig(), ["a a a", "b"], [["a"], ["b"]])
    assert scores[0] == pytest.approx(10 * (1 / 3) / 4 * math.exp(-4 / 72), rel=1e-12)


def test_cider_d_of_one_image_is_zero_and_of_none_empty() -> None:
    assert metrics.cider_d(metrics.CiderDConfig(), ["a b c d"], [["a b c d"]]).tolist() == [0.0]
    assert metrics.cider_d(metrics.CiderDConfig(), [], []).tolist() == []


def _slow_cider_d(predictions: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """The definition written out once more, over explicit vectors of all n-grams of the corpus, one n at a time."""

    def grams(words: list[str], n: int) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for start in range(len(words)):
            if start + n <= len(words):
                counts[" ".join(words[start : start + n])] += 1
        return counts

    total = [0.0] * len(predictions)
    for n in (1, 2, 3, 4):
        document_sets = [{g for text in texts for g in grams(text, n)} for texts in references]
        axis = sorted({g for p in predictions for g in grams(p, n)} | set().union(*document_sets))
        idf = np.array([math.log(len(references) / max(1, sum(g in d for d in document_sets))) for g in axis])

        def vector(words: list[str], n: int = n, axis: list[str] = axis, idf: np.ndarray = idf) -> np.ndarray:
            counts = grams(words, n)
            return np.array([counts.get(g, 0) for g in axis]) * idf

        for item, (words, texts) in enumerate(zip(predictions, references, strict=True)):
            for text in texts:
                caption, reference = vector(words), vector(text)
                norms = np.linalg.norm(caption) * np.linalg.norm(reference)
                delta = max(len(words) - 1, 0) - max(len(text) - 1, 0)
                cosine = np.minimum(caption, reference) @ reference / norms if norms else 0.0
                total[item] += 10 * math.exp(-(delta**2) / 72) * cosine / 4 / len(texts)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_cider_d_equals_a_slow_rewriting_on_a_corpus(seed: int) -> None:
    rng = random.Random(seed)
    words = ["red", "cube", "left", "of", "small", "metal", "sphere"]

    def sentence() -> list[str]:
        return [rng.choice(words) for _ in range(rng.randint(1, 12))]

    predictions = [sentence() for _ in range(12)]
    references = [[sentence() for _ in range(rng.randint(1, 3))] for _ in range(12)]
    fast = metrics.cider_d(
        metrics.CiderDConfig(), [" ".join(p) + "." for p in predictions], [[" ".join(r) for r in t] for t in references]
    )
    np.testing.assert_allclose(fast, _slow_cider_d(predictions, references), rtol=1e-9, atol=1e-12)


def test_ranks_by_hand_with_ties_against_the_model() -> None:
    similarities = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.1], [0.3, 0.6, 0.4]])
    ranks = metrics.relevant_ranks(similarities, [{0}, {1}, {0, 2}])
    assert ranks.tolist() == [1, 2, 2]
    assert metrics.recall_at_k(metrics.RecallConfig(k=1), ranks).tolist() == [1.0, 0.0, 0.0]
    assert metrics.recall_at_k(metrics.RecallConfig(k=2), ranks).tolist() == [1.0, 1.0, 1.0]
    assert metrics.reciprocal_rank(NONE, ranks).mean() == pytest.approx(2 / 3)


def test_constant_embeddings_rank_last() -> None:
    assert metrics.relevant_ranks(np.ones((2, 5)), [{0}, {4}]).tolist() == [5, 5]


def test_a_query_without_a_relevant_candidate_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"relevant\[1\]"):
        metrics.relevant_ranks(np.ones((2, 2)), [{0}, set()])


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="k=0"):
        registry.build("metric", {"name": "recall_at_k", "k": 0}, np.array([1]))
    with pytest.raises(InvalidArgumentError, match="did you mean 'exact_match'"):
        registry.get("metric", "exact-match")
