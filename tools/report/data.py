"""What the report shows. Everything is data: filled by ``collect`` or by hand, drawn by ``render``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rebus.v1.evaluation_pb2 import Evaluation, Prediction
from rebus.v1.model_pb2 import Lineage


@dataclass(frozen=True, kw_only=True)
class SampleCard:
    """One sample: its pictures and its first texts."""

    # Encoded images (PNG, JPEG or WebP).
    pictures: Sequence[bytes]
    caption: str
    # Question and answer.
    questions: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class SampleGrid:
    """Some samples of one dataset version."""

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    cards: Sequence[SampleCard] = ()


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A series of values over training steps, steps ascending."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of a run: its name and the step at which it ended."""

    name: str
    end: float


@dataclass(frozen=True, kw_only=True)
class RunPanel:
    """One training run."""

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[Curve] = ()
    stages: Sequence[Stage] = ()


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One row found."""

    picture: bytes
    label: str
    # Cosine similarity.
    score: float
    # Whether it is what was looked for; ``None`` where that is not known.
    right: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """A query, a text or a picture, and what it found, best first."""

    hits: Sequence[Hit]
    text: str = ""
    picture: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class SearchPanel:
    """Searches of one index."""

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    searches: Sequence[Neighbours] = ()


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the model answered, with the pictures it was asked about."""

    prediction: Prediction
    # ``None`` where the metric has no right and wrong, only better and worse.
    right: bool | None
    pictures: Sequence[bytes] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluationPanel:
    """Scores of one evaluation, and answers by a title such as ``scene-questions · color``."""

    evaluation: Evaluation
    answers: Mapping[str, Sequence[Answered]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The whole report; empty parts are left out of the page."""

    title: str
    subtitle: str = ""
    # Shown at the top: what was run, on which code, how long it took.
    facts: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[SampleGrid] = ()
    runs: Sequence[RunPanel] = ()
    evaluations: Sequence[EvaluationPanel] = ()
    searches: Sequence[SearchPanel] = ()
    # The first node of each is what it is the lineage of.
    lineages: Sequence[Lineage] = ()
