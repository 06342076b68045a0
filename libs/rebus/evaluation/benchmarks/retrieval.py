"""Finding the picture by its name and the name by its picture, among held-out families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.data.sample import Sample
from rebus.errors import CancelledError, invalid
from rebus.evaluation.benchmark import Context, Outcome
from rebus.evaluation.metrics import RecallConfig, normalise, recall_at_k, reciprocal_rank, relevant_ranks
from rebus.evaluation.scoring import Measured, score
from rebus.registry import NoSettings, register
from rebus.v1.evaluation_pb2 import Prediction, Score

NAME = "image-text-retrieval"
TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text_to_image", "image_to_text"
_CUTS = (1, 5)
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """What is searched for."""

    # The language of the names that are scored in both directions; every other one is scored from text to image.
    language: str = "en"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A picture and its names by language."""

    sample_id: str
    family: str
    image: bytes
    names: dict[str, str]


@register("benchmark", NAME, config=RetrievalConfig)
class ImageTextRetrieval:
    """Recall at 1 and 5 and the mean reciprocal rank, one candidate a family.

    A sample takes part if it is its family's canonical member (``metadata["canonical"]``, true where not given) and
    has a name in the language. Equal names make their pictures equally right. Chance is a random order.
    """

    version = "1"
    architectures = ("dual-encoder", "mllm-embedder")

    def __init__(self, config: RetrievalConfig) -> None:
        self.config = config

    def run(self, context: Context) -> Outcome:
        """Scores both directions in the language, then text to image in the others."""
        candidates = self._candidates(context)
        images = self._embed_images(context, [candidate.image for candidate in candidates])
        names = [candidate.names[self.config.language] for candidate in candidates]
        texts = context.models.embedder.embed_texts(names)
        same = _equal(names)
        similarities = texts @ images.T
        scores = _score_direction(TEXT_TO_IMAGE, similarities, same, candidates, context)
        scores += _score_direction(IMAGE_TO_TEXT, similarities.T, same, candidates, context)
        scores += self._other_languages(context, candidates, images)
        told = _predictions(TEXT_TO_IMAGE, similarities, same, candidates, names)
        told += _predictions(IMAGE_TO_TEXT, similarities.T, same, candidates, names)
        return Outcome(scores=scores, predictions=told)

    def _candidates(self, context: Context) -> list[Candidate]:
        found = [candidate for sample in context.samples() if (candidate := self._candidate(sample)) is not None]
        if len(found) < 2:
            name = context.rows.version.name
            raise invalid(
                "benchmarks", f"{name} has {len(found)} pictures named in {self.config.language!r} in {context.split!r}"
            )
        return found[: context.max_items or None]

    def _candidate(self, sample: Sample) -> Candidate | None:
        image = sample.first_image
        names = sample.metadata.get("names", {})
        if image is None or not sample.metadata.get("canonical", True) or not names.get(self.config.language):
            return None
        return Candidate(sample_id=sample.id, family=sample.family or sample.id, image=image, names=dict(names))

    def _embed_images(self, context: Context, images: Sequence[bytes]) -> NDArray[np.floating]:
        parts = []
        for start in range(0, len(images), _BATCH):
            if context.cancelled():
                raise CancelledError("the evaluation was cancelled")
            parts.append(context.models.embedder.embed_images(images[start : start + _BATCH]))
            done = min(start + _BATCH, len(images))
            context.progress(done / len(images), f"embedding pictures: {done} of {len(images)}")
        return np.concatenate(parts)

    def _other_languages(
        self, context: Context, candidates: Sequence[Candidate], images: NDArray[np.floating]
    ) -> list[Score]:
        """Text to image from the names in each other language, over the same pictures."""
        scores: list[Score] = []
        languages = {language for candidate in candidates for language in candidate.names}
        for language in sorted(languages - {self.config.language}):
            named = [at for at, candidate in enumerate(candidates) if candidate.names.get(language)]
            texts = context.models.embedder.embed_texts([candidates[at].names[language] for at in named])
            same = _equal([candidate.names.get(language, f"\0{at}") for at, candidate in enumerate(candidates)])
            relevant = [same[at] for at in named]
            asked = [candidates[at] for at in named]
            ranks = relevant_ranks(texts @ images.T, relevant)
            measured = _measure(1, ranks, relevant, len(candidates), asked, context)
            scores.append(score(NAME, f"{TEXT_TO_IMAGE}_{language}", "recall_at_1", measured, seed=context.seed))
        return scores


def _equal(names: Sequence[str]) -> list[set[int]]:
    """For each name, the positions that hold the same one."""
    places: dict[str, set[int]] = {}
    for at, name in enumerate(names):
        places.setdefault(normalise(name), set()).add(at)
    return [places[normalise(name)] for name in names]


def _score_direction(
    group: str,
    similarities: NDArray[np.floating],
    relevant: Sequence[set[int]],
    candidates: Sequence[Candidate],
    context: Context,
) -> list[Score]:
    ranks = relevant_ranks(similarities, relevant)
    recalls = {k: _measure(k, ranks, relevant, len(candidates), candidates, context) for k in _CUTS}
    scores = [score(NAME, group, f"recall_at_{k}", recalls[k], seed=context.seed) for k in _CUTS]
    reciprocal = Measured(
        values=reciprocal_rank(NoSettings(), ranks),
        chance=np.array([_chance_reciprocal(len(wanted), len(candidates)) for wanted in relevant]),
        clusters=[candidate.family for candidate in candidates],
        clean=context.clean([candidate.sample_id for candidate in candidates]),
    )
    return [*scores, score(NAME, group, "mean_reciprocal_rank", reciprocal, seed=context.seed)]


def _measure(
    k: int,
    ranks: NDArray[np.int64],
    relevant: Sequence[set[int]],
    num_candidates: int,
    asked: Sequence[Candidate],
    context: Context,
) -> Measured:
    """Recall of the queries that stand for the pictures ``asked``."""
    return Measured(
        values=recall_at_k(RecallConfig(k=k), ranks),
        chance=np.array([_chance_recall(k, len(wanted), num_candidates) for wanted in relevant]),
        clusters=[candidate.family for candidate in asked],
        clean=context.clean([candidate.sample_id for candidate in asked]),
    )


def _chance_recall(k: int, num_relevant: int, num_candidates: int) -> float:
    """Probability that a random order has a relevant candidate among its first ``k``."""
    missed = 1.0
    for place in range(min(k, num_candidates)):
        missed *= max(num_candidates - num_relevant - place, 0) / (num_candidates - place)
    return 1.0 - missed


def _chance_reciprocal(num_relevant: int, num_candidates: int) -> float:
    """Expected ``1 / rank`` of the first relevant candidate in a random order."""
    expected, missed = 0.0, 1.0
    for place in range(num_candidates - num_relevant + 1):
        hit = num_relevant / (num_candidates - place)
        expected += missed * hit / (place + 1)
        missed *= 1.0 - hit
    return expected


def _predictions(
    group: str,
    similarities: NDArray[np.floating],
    relevant: Sequence[set[int]],
    candidates: Sequence[Candidate],
    names: Sequence[str],
) -> list[Prediction]:
    """The name of what came first for each query; a picture's question is the picture itself."""
    best: list[int] = np.argmax(similarities, axis=1).tolist()
    return [
        Prediction(
            benchmark=NAME,
            group=group,
            sample_id=candidate.sample_id,
            question=names[at] if group == TEXT_TO_IMAGE else "",
            prediction=names[best[at]],
            references=sorted({names[wanted] for wanted in relevant[at]}),
            score=float(best[at] in relevant[at]),
        )
        for at, candidate in enumerate(candidates)
    ]
