"""Fills ``ReportData`` from a running Rebus, through its client and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from rebus.client import Client
from rebus.evaluation.report import examples
from rebus.v1 import dataset_pb2, evaluation_pb2, model_pb2, retrieval_pb2
from rebus.v1.common_pb2 import Sample, Segment
from tools.report.data import (
    Answered,
    Curve,
    EvaluationPanel,
    Hit,
    Neighbours,
    ReportData,
    RunPanel,
    SampleCard,
    SampleGrid,
    SearchPanel,
    Stage,
)

_PAGE = 100
_CARDS = 12
_TEXT_QUERIES, _IMAGE_QUERIES, _HITS = 5, 3, 6
# Most rows looked through for pictures and queries, so that a report of a large dataset stays quick.
_MAX_ROWS = 5000
LOSS = "loss"


def collect(
    client: Client,
    *,
    title: str,
    subtitle: str = "",
    evaluations: Sequence[str] = (),
    indexes: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> ReportData:
    """The report on these evaluations and indexes, on the runs that made their models and on the data they used.

    Raises ``NotFoundError`` for a name that does not exist.
    """
    found = [client.get(name) for name in evaluations]
    built = [client.get(name) for name in indexes]
    versions = dict.fromkeys(item.model_version for item in [*found, *built])
    runs = dict.fromkeys(client.get(name).run for name in versions)
    datasets = dict.fromkeys(spec.dataset_version for item in found for spec in item.benchmarks)
    return ReportData(
        title=title,
        subtitle=subtitle,
        facts=facts or {},
        samples=[sample_grid(client, name) for name in datasets],
        runs=[run_panel(client, name) for name in runs if name],
        evaluations=[evaluation_panel(client, item) for item in found],
        searches=[search_panel(client, item) for item in built],
        lineages=[client.models.GetLineage(model_pb2.GetLineageRequest(name=name)) for name in evaluations],
    )


def sample_grid(client: Client, dataset_version: str) -> SampleGrid:
    """Training samples, alternating between the sources of the dataset as far as the first rows hold several."""
    version: dataset_pb2.DatasetVersion = client.get(dataset_version)
    by_source: dict[str, list[Sample]] = defaultdict(list)
    for at, sample in enumerate(list_samples(client, dataset_version, "train")):
        if len(by_source[sample.source]) < _CARDS:
            by_source[sample.source].append(sample)
        held = sum(len(samples) for samples in by_source.values())
        if (len(by_source) == len(version.sources) and held >= _CARDS) or at + 1 >= _MAX_ROWS:
            break
    rounds = [samples[at] for at in range(_CARDS) for samples in by_source.values() if at < len(samples)]
    facts = {
        "samples": f"{version.num_samples:,}",
        "splits": ", ".join(f"{name} {count:,}" for name, count in sorted(version.splits.items())),
        "sources": ", ".join(f"{name} {count:,}" for name, count in sorted(version.sources.items())),
        "digest": version.digest[:16],
    }
    return SampleGrid(title=version.name, facts=facts, cards=[_card(sample) for sample in rounds[:_CARDS]])


def _card(sample: Sample) -> SampleCard:
    texts = [s for s in sample.segments if s.WhichOneof("content") == "text"]
    told = [s for s in texts if s.role == Segment.ASSISTANT]
    captions = [s for s in told if s.task in ("", "caption")]
    first = min((s.branch for s in captions), default=0)
    questions = []
    for answer in told:
        asked = [s.text for s in texts if s.branch == answer.branch and s.role != Segment.ASSISTANT]
        if answer.task not in ("", "caption") and asked:
            questions.append((" ".join(asked), answer.text))
    return SampleCard(
        pictures=_pictures(sample),
        caption=" ".join(s.text for s in captions if s.branch == first),
        questions=questions,
    )


def _pictures(sample: Sample) -> list[bytes]:
    return [s.image for s in sample.segments if s.WhichOneof("content") == "image"]


def list_samples(client: Client, dataset_version: str, split: str) -> Iterator[Sample]:
    """The samples of a split, page by page."""
    request = dataset_pb2.ListSamplesRequest(parent=dataset_version, split=split, page_size=_PAGE)
    while True:
        page = client.datasets.ListSamples(request)
        yield from page.samples
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def run_panel(client: Client, name: str) -> RunPanel:
    """A run's losses, from its events; the last value of a step counts, since a resumed run repeats some."""
    run = client.get(name)
    reports: dict[float, dict[str, Any]] = {}
    for event in client.watch(name):
        if event.kind == "metrics":
            values = json_format.MessageToDict(event.values)
            reports[values["step"]] = values
    steps = sorted(reports)
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for step in steps:
        for key, value in reports[step].items():
            if (key == LOSS or key.startswith(f"{LOSS}/")) and isinstance(value, float):
                series[key].append((step, value))
    stages: dict[str, float] = {str(reports[step].get("stage", "")): step for step in steps}
    metrics = dict(run.metrics)
    shares = [f"{share.source}: {share.num_samples:,} samples" for share in run.mixture]
    facts = {
        "steps": f"{run.step:,}",
        "seed": str(run.seed),
        "recipe digest": run.recipe_digest[:16],
        "code revision": run.code_revision[:16],
        "tokens per second": f"{metrics['tokens_per_second']:,.0f}" if metrics.get("tokens_per_second") else "",
        "data wait": f"{metrics['data_wait_share']:.1%}" if "data_wait_share" in metrics else "",
        "mixture": ", ".join(shares),
    }
    return RunPanel(
        name=name,
        facts=facts,
        curves=[Curve(name=key, points=points) for key, points in sorted(series.items())],
        stages=[Stage(name=stage, end=end) for stage, end in stages.items() if stage],
    )


def evaluation_panel(client: Client, evaluation: evaluation_pb2.Evaluation) -> EvaluationPanel:
    """Scores, and some right and wrong answers of every kind with their pictures."""
    shown = examples(list(list_predictions(client, evaluation.name)))
    pictures: dict[str, list[bytes]] = {}
    for spec in evaluation.benchmarks:
        wanted = {example.prediction.sample_id for example in shown} - set(pictures)
        pictures.update(_find_pictures(client, spec, wanted))
    answers: dict[str, list[Answered]] = defaultdict(list)
    for example in shown:
        prediction = example.prediction
        answered = Answered(prediction=prediction, right=example.right, pictures=pictures.get(prediction.sample_id, []))
        answers[example.title].append(answered)
    return EvaluationPanel(evaluation=evaluation, answers=answers)


def list_predictions(client: Client, evaluation: str) -> Iterator[evaluation_pb2.Prediction]:
    """All predictions, page by page."""
    request = evaluation_pb2.ListPredictionsRequest(parent=evaluation, page_size=1000)
    while True:
        page = client.evaluation.ListPredictions(request)
        yield from page.predictions
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _find_pictures(
    client: Client, spec: evaluation_pb2.BenchmarkSpec, wanted: Collection[str]
) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for at, sample in enumerate(list_samples(client, spec.dataset_version, spec.split) if wanted else ()):
        if sample.id in wanted:
            found[sample.id] = _pictures(sample)
        if len(found) == len(wanted) or at + 1 >= _MAX_ROWS:
            break
    return found


def search_panel(client: Client, index: retrieval_pb2.Index) -> SearchPanel:
    """Searches by the names of some rows of the index and by the pictures of others, the row itself left out."""
    queries: list[Sample] = []
    for at, sample in enumerate(list_samples(client, index.dataset_version, index.split)):
        if _pictures(sample) and _label(sample) and _canonical(sample):
            queries.append(sample)
        if at + 1 >= _MAX_ROWS:
            break
    spaced = queries[:: max(1, len(queries) // (_TEXT_QUERIES + _IMAGE_QUERIES))]
    by_text, by_picture = spaced[:_TEXT_QUERIES], spaced[_TEXT_QUERIES : _TEXT_QUERIES + _IMAGE_QUERIES]
    facts = {
        "model version": index.model_version,
        "rows": f"{index.num_vectors:,} of {index.dataset_version}" + (f" · {index.split}" if index.split else ""),
        "algorithm": index.algorithm or "flat",
        "dimension": str(index.dimension),
    }
    searches = [_search(client, index, sample, by_picture=False) for sample in by_text]
    searches += [_search(client, index, sample, by_picture=True) for sample in by_picture]
    return SearchPanel(title=index.name, facts=facts, searches=searches)


def _search(client: Client, index: retrieval_pb2.Index, sample: Sample, *, by_picture: bool) -> Neighbours:
    picture, label = _pictures(sample)[0], _label(sample)
    query = retrieval_pb2.Query(image=picture) if by_picture else retrieval_pb2.Query(text=label)
    request = retrieval_pb2.SearchRequest(index=index.name, query=query, top_k=_HITS + 1, include_samples=True)
    hits = [
        Hit(
            picture=_pictures(hit.sample)[0],
            label=_label(hit.sample),
            score=hit.score,
            right=None if by_picture else hit.sample_id == sample.id,
        )
        for hit in client.retrieval.Search(request).hits
        if _pictures(hit.sample) and not (by_picture and hit.sample_id == sample.id)
    ]
    return Neighbours(hits=hits[:_HITS], text=label, picture=picture if by_picture else None)


def _label(sample: Sample) -> str:
    """The English name where the source gives names, else the first caption."""
    names = _metadata(sample).get("names", {})
    return str(names.get("en") or _card(sample).caption)


def _canonical(sample: Sample) -> bool:
    return bool(_metadata(sample).get("canonical", True))


def _metadata(sample: Sample) -> dict[str, Any]:
    return json_format.MessageToDict(sample.metadata)
