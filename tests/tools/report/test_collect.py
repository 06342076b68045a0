"""The report of a real store, collected through real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rebus.client import Client
from rebus.errors import NotFoundError
from rebus.evaluation import job
from rebus.jobs.events import EventLog
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.evaluation_pb2 import Evaluation
from rebus.v1.training_pb2 import Run
from services.harness.embedded import hosted
from tests.parsed_page import Parsed
from tests.stored_evaluation import DATASET, fill, spec, start
from tools.report import collect, render

RUN = "runs/r1"


@pytest.fixture
def client(store: Store, tmp_path: Path, _own_cache: None) -> Iterator[Client]:
    """A client of servers over a store with a run, its model, its data and a finished evaluation."""
    run = Run(name=RUN, recipe="name: tiny", datasets={"scenes": DATASET}, step=40)
    run.metrics["tokens_per_second"] = 1234.0
    run.job.state = JobStatus.SUCCEEDED
    documents.create(store, run)
    EventLog(store, RUN).append(
        [
            ("metrics", {"step": 20, "stage": "warm-up", "loss": 2.0, "loss/lm": 1.5, "losses": [2.5, 1.5]}),
            ("metrics", {"step": 40, "stage": "tuning", "loss": 9.0}),
            ("metrics", {"step": 40, "stage": "tuning", "loss": 1.0}),
        ]
    )
    fill(store, tmp_path / "model", run=RUN)
    ctx = start(store, spec("scene-questions"), spec("scene-captions"))
    job.run(ctx)
    ctx.flush()
    documents.update(store, Evaluation, ctx.name, _succeed)
    with hosted(store.url, ["ingest", "training", "evaluation"]) as endpoint, Client(endpoint) as opened:
        yield opened


def _succeed(evaluation: Evaluation) -> None:
    evaluation.job.state = JobStatus.SUCCEEDED


def test_a_report_holds_what_the_store_holds(client: Client) -> None:
    found = collect(client, title="a report", evaluations=["evaluations/e1"], facts={"seed": "5"})

    run = found.runs[0]
    curves = {curve.name: list(curve.points) for curve in run.curves}
    assert curves == {"loss": [(20, 2.0), (40, 1.0)], "loss/lm": [(20, 1.5)]}
    assert [(stage.name, stage.end) for stage in run.stages] == [("warm-up", 20), ("tuning", 40)]
    assert run.facts["tokens per second"] == "1,234"

    grid = found.samples[0]
    assert (grid.title, len(grid.cards)) == (DATASET, 11)
    assert grid.facts["splits"] == "test 5, train 11"
    assert all(card.pictures and card.caption for card in grid.cards)

    panel = found.evaluations[0]
    assert {score.benchmark for score in panel.evaluation.scores} == {"scene-questions", "scene-captions"}
    answers = [answer for answers in panel.answers.values() for answer in answers]
    assert answers
    assert all(len(answer.pictures) == 1 for answer in answers)

    assert {node.kind for node in found.lineages[0].nodes} >= {"evaluation", "model_version", "run", "dataset_version"}
    text = Parsed(render(found)).text
    assert all(part in text for part in ("a report", RUN, DATASET, "scene-captions", "warm-up"))


def test_a_missing_evaluation_is_named(client: Client) -> None:
    with pytest.raises(NotFoundError, match="evaluations/none"):
        collect(client, title="t", evaluations=["evaluations/none"])
