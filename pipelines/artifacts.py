"""Typed artifacts: a step's result is the resource itself as JSON, so the next step reads it without asking anyone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from rebus.v1.evaluation_pb2 import Prediction, Score

if TYPE_CHECKING:
    from kfp import dsl

M = TypeVar("M", bound=Message)
MAX_LABELS = 32
_COLUMNS = ("benchmark", "group", "metric", "value", "95 % interval", "chance", "majority", "text only", "items")


def write(artifact: dsl.Artifact, resource: Message) -> None:
    """Stores a resource in an artifact; its name and digest show in the artifact's page."""
    fields = {"name", "digest"} & set(resource.DESCRIPTOR.fields_by_name)
    artifact.metadata.update({field: getattr(resource, field) for field in sorted(fields)})
    Path(artifact.path).write_text(json_format.MessageToJson(resource), encoding="utf-8")


def read(artifact: dsl.Artifact, cls: type[M]) -> M:
    """The resource that an earlier step stored."""
    return json_format.Parse(Path(artifact.path).read_text(encoding="utf-8"), cls())


def score_key(score: Score) -> str:
    """``benchmark/group/metric``, or ``benchmark/metric`` for the score of a whole benchmark."""
    return "/".join(part for part in (score.benchmark, score.group, score.metric) if part)


def score_table(title: str, scores: Iterable[Score]) -> str:
    """A self-contained HTML page: each score beside its interval and the baselines it must be read against."""
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    rows = "\n".join(f"<tr>{_cells(score)}</tr>" for score in scores)
    style = (
        "body{font:14px system-ui,sans-serif}table{border-collapse:collapse}"
        "td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:left}"
        "td:nth-child(n+4){text-align:right;font-variant-numeric:tabular-nums}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
        f"<h1>{escape(title)}</h1><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></html>"
    )


def _cells(score: Score) -> str:
    def baseline(field: str) -> str:
        return f"{getattr(score, field):.3f}" if score.HasField(field) else "-"

    texts = [score.benchmark, score.group or "all", score.metric]
    numbers = [f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}"]
    numbers += [*map(baseline, ("chance", "majority", "text_only")), str(score.num_items)]
    return "".join(f"<td>{escape(text)}</td>" for text in texts + numbers)


def confusion(predictions: Iterable[Prediction]) -> tuple[list[str], list[list[int]]]:
    """``(labels, matrix)``: ``matrix[i][j]`` counts items whose reference is label i and whose answer is label j.

    The labels are the references; any other answer counts under ``other``. No more than ``MAX_LABELS`` references
    have a column of their own, the commonest ones.
    """
    pairs = Counter((item.references[0], item.prediction) for item in predictions if item.references)
    frequency: Counter[Any] = Counter()
    for (reference, _), count in pairs.items():
        frequency[reference] += count
    labels = [*sorted(label for label, _ in frequency.most_common(MAX_LABELS)), "other"]
    at = {label: index for index, label in enumerate(labels)}
    matrix = [[0] * len(labels) for _ in labels]
    for (reference, prediction), count in pairs.items():
        matrix[at.get(reference, len(at) - 1)][at.get(prediction, len(at) - 1)] += count
    return labels, matrix
