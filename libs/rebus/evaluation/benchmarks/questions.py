"""Questions with short answers about one image (``scene-questions``) or about several (``scene-differences``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.errors import invalid
from rebus.evaluation.answering import Answers, ask
from rebus.evaluation.benchmark import Context, Outcome
from rebus.evaluation.benchmarks.pairs import score_pairs
from rebus.evaluation.items import CAPTION, Item, items_of, num_images, training_answers
from rebus.evaluation.metrics import exact_match, normalise
from rebus.evaluation.scoring import Measured, gain, score
from rebus.registry import NoSettings, register
from rebus.v1.evaluation_pb2 import Prediction, Score

METRIC, MEAN = "exact_match", "mean"


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """How questions are answered."""

    # Longest answer, in tokens.
    max_new_tokens: int = 8

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")


@register("benchmark", "scene-questions", config=QuestionsConfig, paper="mme")
class SceneQuestions:
    """Exact match by kind of question about one image, and MME's yes/no pairs about what the image holds."""

    version = "1"
    architectures = ("mllm",)

    def __init__(self, config: QuestionsConfig) -> None:
        self.config = config

    def run(self, context: Context) -> Outcome:
        """Scores every kind, their mean, and the pairs."""
        images = (1,)
        items = question_items(context, images)
        answers = ask(context, items, max_new_tokens=self.config.max_new_tokens)
        priors = training_answers(context.rows, images)
        outcome = score_questions("scene-questions", items, answers, priors, context)
        pairs = score_pairs("scene-questions", context, priors, max_new_tokens=self.config.max_new_tokens)
        return Outcome(scores=[*outcome.scores, *pairs.scores], predictions=[*outcome.predictions, *pairs.predictions])


@register("benchmark", "scene-differences", config=QuestionsConfig)
class SceneDifferences:
    """Exact match of questions that need several images at once: what changed, which holds more."""

    version = "1"
    architectures = ("mllm",)

    def __init__(self, config: QuestionsConfig) -> None:
        self.config = config

    def run(self, context: Context) -> Outcome:
        """Scores every kind and their mean."""
        images = range(2, 17)
        items = question_items(context, images)
        answers = ask(context, items, max_new_tokens=self.config.max_new_tokens)
        priors = training_answers(context.rows, images)
        return score_questions("scene-differences", items, answers, priors, context)


def question_items(context: Context, images: Sequence[int]) -> list[Item]:
    """The split's questions about so many images, up to ``max_items``, captions left out."""
    samples = (sample for sample in context.samples() if num_images(sample) in images)
    items = [item for sample in samples for item in items_of(sample) if item.group not in ("", CAPTION)]
    if not items:
        name = context.rows.version.name
        raise invalid("benchmarks", f"{name} has no questions about images in its {context.split!r} rows")
    return items[: context.max_items or None]


def score_questions(
    benchmark: str, items: Sequence[Item], answers: Answers, priors: Mapping[str, Counter[str]], context: Context
) -> Outcome:
    """Exact match of each group and of their unweighted mean, with what the images add to the mean."""
    measured = measure(items, answers, priors, clean=context.clean([item.sample_id for item in items]))
    seed = context.seed
    groups = [item.group for item in items]
    scores: list[Score] = []
    for group in sorted(set(groups)):
        mask = np.array([name == group for name in groups])
        scores.append(score(benchmark, group, METRIC, measured.where(mask), seed=seed))
    scores.append(score(benchmark, MEAN, METRIC, measured, seed=seed, groups=groups))
    scores.append(gain(benchmark, MEAN, METRIC, measured, seed=seed, groups=groups))
    return Outcome(scores=scores, predictions=predictions(benchmark, items, answers, measured.values))


def measure(
    items: Sequence[Item],
    answers: Answers,
    priors: Mapping[str, Counter[str]],
    *,
    clean: NDArray[np.bool_] | None = None,
) -> Measured:
    """Exact match of the model and of the baselines.

    Chance guesses uniformly among the answers of the item's group seen in training; majority always gives the
    commonest of them (the first in the alphabet of a tie).
    """
    references = [item.references for item in items]
    known = {group: {normalise(answer) for answer in counts} for group, counts in priors.items()}
    commonest = {group: min(counts, key=lambda a, c=counts: (-c[a], a)) for group, counts in priors.items()}
    chance = [
        len(known.get(item.group, set()) & {normalise(r) for r in item.references}) / len(known.get(item.group, "?"))
        for item in items
    ]
    return Measured(
        values=exact_match(NoSettings(), answers.seeing, references),
        chance=np.array(chance),
        majority=exact_match(NoSettings(), [commonest.get(item.group, "") for item in items], references),
        text_only=exact_match(NoSettings(), answers.blind, references),
        clusters=[item.family for item in items],
        clean=clean,
    )


def predictions(
    benchmark: str, items: Sequence[Item], answers: Answers, values: Sequence[float] | np.ndarray
) -> list[Prediction]:
    """One message an item."""
    return [
        Prediction(
            benchmark=benchmark,
            group=item.group,
            sample_id=item.sample_id,
            question=item.question,
            prediction=seeing,
            references=item.references,
            score=float(value),
            text_only_prediction=blind,
        )
        for item, seeing, blind, value in zip(items, answers.seeing, answers.blind, values, strict=True)
    ]
