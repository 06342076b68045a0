"""Renders pages from templates: everything a data set or a model says is escaped, every image is inlined."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from rebus.data.images import sniff_format
from rebus.evaluation.report.charts import baselines_of, legend, number, score_bars
from rebus.store.lineage import contaminated
from rebus.v1.evaluation_pb2 import Evaluation, Prediction, Score

# A picture that is none of the formats we read: shown as a broken image, never as markup.
_UNKNOWN_MIME = "application/octet-stream"


def environment() -> Environment:
    """A Jinja environment that escapes everything and refuses names that are not given."""
    env = Environment(
        loader=PackageLoader("rebus.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["data_uri"] = data_uri
    env.filters["number"] = number
    env.filters["contaminated"] = contaminated
    env.globals.update(score_bars=score_bars, legend=legend, baselines_of=baselines_of, by_benchmark=by_benchmark)
    env.globals.update(any_clean=any_clean)
    return env


def data_uri(image: bytes) -> str:
    """An encoded image as a ``data:`` URI."""
    kind = sniff_format(image)
    mime = f"image/{kind.lower()}" if kind else _UNKNOWN_MIME
    return f"data:{mime};base64,{base64.b64encode(image).decode()}"


def by_benchmark(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Scores by benchmark, in the order given."""
    grouped: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        grouped[score.benchmark].append(score)
    return dict(grouped)


def any_clean(scores: Sequence[Score]) -> bool:
    """Whether some score is also given over the items that the training data do not hold."""
    return any(score.HasField("clean") for score in scores)


def graded_groups(predictions: Sequence[Prediction]) -> set[tuple[str, str]]:
    """Benchmark and group of those predictions whose scores are not just 0 and 1, such as captions."""
    return {(p.benchmark, p.group) for p in predictions if p.score not in (0.0, 1.0)}


@dataclass(frozen=True)
class Example:
    """A prediction worth showing."""

    prediction: Prediction
    # ``None`` where the metric has no right and wrong, only better and worse.
    right: bool | None

    @property
    def title(self) -> str:
        """``scene-questions · color``."""
        parts = (self.prediction.benchmark, self.prediction.group.replace("_", " "))
        return " · ".join(part for part in parts if part)


def examples(predictions: Sequence[Prediction], *, each: int = 3) -> list[Example]:
    """Up to ``each`` right and ``each`` wrong answers of every group, the first ones in order.

    Of a group without right and wrong, the first ``2 * each``.
    """
    graded = graded_groups(predictions)
    taken: dict[tuple[str, str, bool | None], list[Example]] = {}
    for prediction in predictions:
        group = (prediction.benchmark, prediction.group)
        right = None if group in graded else prediction.score == 1.0
        kept = taken.setdefault((*group, right), [])
        if len(kept) < (2 * each if right is None else each):
            kept.append(Example(prediction, right))
    return [example for key in sorted(taken, key=lambda k: (k[0], k[1], not k[2])) for example in taken[key]]


def render_evaluation(
    evaluation: Evaluation, predictions: Sequence[Prediction], images: Mapping[str, Sequence[bytes]]
) -> str:
    """The page of one evaluation: charts, the score table, answers with those pictures that ``images`` has."""
    grouped: dict[str, list[tuple[Example, Sequence[bytes]]]] = defaultdict(list)
    for example in examples(predictions):
        grouped[example.title].append((example, images.get(example.prediction.sample_id, ())))
    facts = {
        "model version": evaluation.model_version,
        "model digest": evaluation.model_digest[:16],
        "code revision": evaluation.code_revision[:16],
        "seed": str(evaluation.seed),
        **{f"{name} version": version for name, version in sorted(evaluation.benchmark_versions.items())},
        **{f"{spec.benchmark} rows": f"{spec.dataset_version} · {spec.split}" for spec in evaluation.benchmarks},
        **({} if evaluation.contamination else {"contamination": "not looked up"}),
    }
    template = environment().get_template("evaluation.html.j2")
    return template.render(evaluation=evaluation, facts=facts, examples=dict(grouped))
