"""What the pipelines' components do: ask a service for a result, wait for it, hand it on.

Every request carries an id that is a digest of the step's inputs, contents included. A step that runs again, in a
retry or in a later pipeline run, is therefore answered with the result that is already there; a result that was
deleted since, or whose job failed, is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message

from pipelines.artifacts import score_key
from pipelines.recipe_files import read_recipe
from rebus import tracing
from rebus.client import Client
from rebus.config import digest
from rebus.errors import NotFoundError, RebusError, invalid
from rebus.job_states import RESUMABLE
from rebus.v1 import dataset_pb2, evaluation_pb2, model_pb2, retrieval_pb2, training_pb2
from rebus.v1.common_pb2 import JobEvent

CHAMPION = "champion"
M = TypeVar("M", bound=Message)
Plain = Mapping[str, Any]


@contextmanager
def step(name: str) -> Iterator[tuple[Client, Callable[[JobEvent], None]]]:
    """A client (of ``REBUS_ENDPOINT``) and a progress printer; ends the process with one line on a known error."""
    try:
        with tracing.process("rebus-pipelines", f"pipeline step {name}", root=True), Client() as client:
            yield client, _printer(name)
    except RebusError as error:
        raise SystemExit(f"[{name}] error: {error.reason}: {' '.join(str(error).split())}") from None


def _printer(name: str) -> Callable[[JobEvent], None]:
    def on_event(event: JobEvent) -> None:
        if event.kind == "progress":
            values = json_format.MessageToDict(event.values)
            print(f"[{name}] {100 * values['progress']:.0f}% {values['message']}".rstrip(), flush=True)

    return on_event


def make(
    client: Client,
    create: Callable[[str], M],
    inputs: Sequence[Any],
    *,
    on_event: Callable[[JobEvent], None] | None = None,
    result: Callable[[M], str] | None = None,
) -> M:
    """The finished job of these inputs: the one that is there, or a new one if that failed or its result is gone.

    ``create`` starts a job under a request id; ``result`` names the resource whose existence is checked.
    Raises the error of a job that fails now.
    """
    key, attempt = digest(list(inputs)), 0
    while True:
        job: Any = create(f"{key}-{attempt}")
        if job.job.state not in RESUMABLE:
            job = client.wait(job.name, on_event=on_event)
            if result is None or _exists(client, result(job)):
                return job
        attempt += 1


def _exists(client: Client, name: str) -> bool:
    try:
        client.get(name)
    except NotFoundError:
        return False
    return True


def ingest(dataset: str, sources: Sequence[Plain], max_bad_share: float, revision: str) -> dataset_pb2.DatasetVersion:
    """Reads sources into a new version of a dataset."""
    with step("ingest") as (client, on_event):
        ingestion = dataset_pb2.Ingestion(
            dataset=f"datasets/{dataset}",
            sources=[_parsed(source, dataset_pb2.Source(), f"sources[{at}]") for at, source in enumerate(sources)],
            max_bad_share=max_bad_share,
        )

        def create(request_id: str) -> dataset_pb2.Ingestion:
            request = dataset_pb2.CreateIngestionRequest(ingestion=ingestion, request_id=request_id)
            return client.ingestions.CreateIngestion(request)

        inputs = ("ingest", _plain(ingestion), revision)
        done = make(client, create, inputs, on_event=on_event, result=lambda job: job.dataset_version)
        return client.get(done.dataset_version)


def curate(version: dataset_pb2.DatasetVersion, curators: Sequence[Plain], revision: str) -> dataset_pb2.DatasetVersion:
    """Curates a dataset version into the next; without curators it stays as it is."""
    if not curators:
        return version
    with step("curate") as (client, on_event):
        curation = dataset_pb2.Curation(
            dataset_version=version.name,
            curators=[_parsed(spec, dataset_pb2.Curator(), f"curators[{at}]") for at, spec in enumerate(curators)],
        )

        def create(request_id: str) -> dataset_pb2.Curation:
            request = dataset_pb2.CreateCurationRequest(curation=curation, request_id=request_id)
            return client.ingestions.CreateCuration(request)

        inputs = ("curate", version.digest, _plain(curation), revision)
        done = make(client, create, inputs, on_event=on_event, result=lambda job: job.result_version)
        return client.get(done.result_version)


def train(version: dataset_pb2.DatasetVersion, recipe: str, seed: int, revision: str) -> training_pb2.Run:
    """Trains a recipe on a dataset version; a run that failed before goes on from its last checkpoint."""
    with step("train") as (client, on_event):
        values = read_recipe(recipe)
        run = training_pb2.Run(
            recipe=yaml.safe_dump(values, sort_keys=False),
            datasets=dict.fromkeys(_dataset_names(values), version.name),
            seed=seed,
        )
        key = digest(["train", version.name, version.digest, values, seed, revision])
        run = client.training.CreateRun(training_pb2.CreateRunRequest(run=run, request_id=key))
        if run.job.state in RESUMABLE:
            run = client.training.ResumeRun(training_pb2.ResumeRunRequest(name=run.name))
        return client.wait(run.name, on_event=on_event)


def _dataset_names(recipe: Plain) -> list[str]:
    """The recipe's logical dataset names, as far as its ``data`` is well-formed; the service checks the rest."""
    data = recipe.get("data")
    bindings = data.values() if isinstance(data, Mapping) else ()
    names = {binding["dataset"] for binding in bindings if isinstance(binding, Mapping) and "dataset" in binding}
    return sorted(map(str, names))


def register(run: training_pb2.Run, model: str) -> model_pb2.ModelVersion:
    """Registers a run's last checkpoint as a version of a model."""
    with step("register") as (client, _):
        request = model_pb2.CreateModelVersionRequest(parent=f"models/{model}", run=run.name)
        return client.models.CreateModelVersion(request)


def index(
    version: dataset_pb2.DatasetVersion, model: model_pb2.ModelVersion, split: str, algorithm: str, revision: str
) -> retrieval_pb2.Index:
    """Builds an index over the images of a dataset version."""
    with step("index") as (client, on_event):
        wanted = retrieval_pb2.Index(
            model_version=model.name, dataset_version=version.name, split=split, algorithm=algorithm
        )

        def create(request_id: str) -> retrieval_pb2.Index:
            request = retrieval_pb2.CreateIndexRequest(index=wanted, request_id=request_id)
            return client.retrieval.CreateIndex(request)

        inputs = ("index", model.digest, version.digest, _plain(wanted), revision)
        return make(client, create, inputs, on_event=on_event)


def evaluate(
    version: dataset_pb2.DatasetVersion,
    model: model_pb2.ModelVersion,
    benchmarks: Sequence[Plain],
    seed: int,
    revision: str,
) -> evaluation_pb2.Evaluation:
    """Scores a model version on benchmarks whose items come from a dataset version."""
    with step("evaluate") as (client, on_event):
        wanted = evaluation_pb2.Evaluation(seed=seed)
        for at, benchmark in enumerate(benchmarks):
            spec = evaluation_pb2.BenchmarkSpec(dataset_version=version.name)
            wanted.benchmarks.append(_parsed(benchmark, spec, f"benchmarks[{at}]"))
        return _evaluate(client, model, wanted, revision, on_event)


def _evaluate(
    client: Client,
    model: model_pb2.ModelVersion,
    like: evaluation_pb2.Evaluation,
    revision: str,
    on_event: Callable[[JobEvent], None],
) -> evaluation_pb2.Evaluation:
    """Scores ``model`` on the benchmarks and with the seed of ``like``."""
    wanted = evaluation_pb2.Evaluation(model_version=model.name, benchmarks=like.benchmarks, seed=like.seed)

    def create(request_id: str) -> evaluation_pb2.Evaluation:
        request = evaluation_pb2.CreateEvaluationRequest(evaluation=wanted, request_id=request_id)
        return client.evaluation.CreateEvaluation(request)

    return make(client, create, ("evaluate", model.digest, _plain(wanted), revision), on_event=on_event)


def predictions(evaluation: str, benchmark: str, group: str) -> list[evaluation_pb2.Prediction]:
    """All predictions of one group of an evaluation's benchmark."""
    found: list[evaluation_pb2.Prediction] = []
    request = evaluation_pb2.ListPredictionsRequest(parent=evaluation, page_size=1000)
    with step("evaluate") as (client, _):
        while True:
            page = client.evaluation.ListPredictions(request)
            found += [p for p in page.predictions if (p.benchmark, p.group) == (benchmark, group)]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def promote(
    model: model_pb2.ModelVersion,
    evaluation: evaluation_pb2.Evaluation,
    metric: str,
    revision: str,
) -> tuple[str, dict[str, float]]:
    """Makes a model version the champion if its metric beats the present champion's on the same rows.

    A champion that has not been scored on these rows is scored first, so the comparison is always like with like.
    The alias moves by compare-and-swap: a champion crowned meanwhile makes this step fail, and its retry compares
    again. Returns the champion's name after the step, and the values compared.
    """
    with step("promote") as (client, on_event):
        values = {"candidate": score_of(evaluation, metric)}
        parent = model.name.partition("/versions/")[0]
        champion: str = client.get(parent).aliases.get(CHAMPION, "")
        if champion == model.name:
            return champion, values
        if champion:
            other = _evaluate(client, client.get(champion), evaluation, revision, on_event)
            values["champion"] = score_of(other, metric)
            if values["candidate"] <= values["champion"]:
                return champion, values
        request = model_pb2.SetModelAliasRequest(
            name=parent, alias=CHAMPION, model_version=model.name, expected_version=champion
        )
        return client.models.SetModelAlias(request).aliases[CHAMPION], values


def score_of(evaluation: evaluation_pb2.Evaluation, metric: str) -> float:
    """The score named ``benchmark/group/metric``; an unknown one is an error that lists those there are."""
    scores = {score_key(score): score.value for score in evaluation.scores}
    if metric not in scores:
        raise invalid("metric", f"{evaluation.name} has no score {metric!r}; it has {', '.join(sorted(scores))}")
    return scores[metric]


def _parsed(values: Plain, message: M, field: str) -> M:
    """``message`` with the values of a pipeline's parameter laid over it."""
    try:
        return json_format.ParseDict(dict(values), message)
    except json_format.ParseError as error:
        raise invalid(field, str(error)) from None


def _plain(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message)
