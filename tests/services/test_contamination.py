"""The gate of contamination through the real services: from data to a refused run, a scored model and its lineage."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from google.protobuf import struct_pb2

from rebus.client import Client
from rebus.data.dataset import open_version, write_version
from rebus.errors import FailedPreconditionError, InvalidArgumentError
from rebus.store import Store
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.contamination_pb2 import ContaminationMatch, ContaminationPolicy
from rebus.v1.dataset_pb2 import CreateIngestionRequest, Ingestion, Source
from rebus.v1.evaluation_pb2 import BenchmarkSpec, CreateEvaluationRequest, Evaluation
from rebus.v1.model_pb2 import CreateModelVersionRequest, GetLineageRequest
from rebus.v1.training_pb2 import CreateRunRequest, ResumeRunRequest, Run
from tests.libs.training.scenes_run import RECIPE


def ingested(client: Client) -> str:
    settings = struct_pb2.Struct()
    settings.update({"num_scenes": 60, "num_pairs": 10, "num_texts": 0, "image_size": 32, "seed": 3})
    sources = [Source(reader="scenes", settings=settings)]
    request = CreateIngestionRequest(ingestion=Ingestion(dataset="datasets/scenes", sources=sources))
    return client.wait(client.ingestions.CreateIngestion(request).name).dataset_version


def started(client: Client, version: str, gate: dict[str, Any]) -> Run:
    recipe = {**copy.deepcopy(dict(RECIPE)), "benchmarks": [gate]}
    run = Run(recipe=yaml.safe_dump(recipe), datasets={"scenes": version})
    return client.training.CreateRun(CreateRunRequest(run=run))


@pytest.mark.slow
def test_from_a_refused_run_to_an_evaluation_that_names_what_was_seen(client: Client, store: Store) -> None:
    version = ingested(client)
    leaked = list(open_version(store, version).scan("train"))[:2]
    write_version(store, "datasets/bench", [*leaked, *open_version(store, version).scan("test")])
    gate = {"benchmark": "datasets/bench", "by": ["text"], "min_overlap": 0.95}

    refused = started(client, version, {**gate, "max_share": 0.0})
    with pytest.raises(FailedPreconditionError, match="of datasets/bench/versions/1, more than 0.0%: .*curator"):
        client.wait(refused.name)
    assert client.get(refused.name).contamination[0].num_seen >= 2
    client.training.ResumeRun(ResumeRunRequest(name=refused.name))
    with pytest.raises(FailedPreconditionError, match="more than 0.0%"):
        client.wait(refused.name)
    assert client.get(refused.name).step == 0

    passed = client.wait(started(client, version, {**gate, "max_share": 1.0}).name)
    assert passed.benchmark_versions["datasets/bench"] == "datasets/bench/versions/1"
    request = CreateModelVersionRequest(parent="models/m", run=passed.name)
    model = client.models.CreateModelVersion(request)
    assert model.contamination == passed.contamination

    policy = ContaminationPolicy(match=ContaminationMatch(by=[ContaminationMatch.TEXT], min_overlap=0.95))
    wanted = Evaluation(model_version=model.name, contamination_policy=policy)
    wanted.benchmarks.append(
        BenchmarkSpec(benchmark="scene-captions", dataset_version="datasets/bench/versions/1", split="train")
    )
    done = client.wait(client.evaluation.CreateEvaluation(CreateEvaluationRequest(evaluation=wanted)).name)
    (report,) = done.contamination
    assert (report.num_items, report.num_seen, report.share) == (2, 2, 1.0)
    assert {score.clean.num_items for score in done.scores} == {0}
    nodes = {n.name: n for n in client.models.GetLineage(GetLineageRequest(name=done.name)).nodes}
    assert "100.0% of 2 items" in nodes[done.name].attributes["contamination/datasets/bench/versions/1 train"]
    assert "contamination/datasets/bench/versions/1" in nodes[model.name].attributes

    wanted.contamination_policy.max_share = 0.5
    gated = client.evaluation.CreateEvaluation(CreateEvaluationRequest(evaluation=wanted)).name
    with pytest.raises(FailedPreconditionError, match="hold 100.0%"):
        client.wait(gated)
    assert client.get(gated).job.state == JobStatus.FAILED


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (ContaminationPolicy(max_share=1.5), "max_share"),
        (ContaminationPolicy(max_share=float("nan")), "max_share"),
        (ContaminationPolicy(max_samples=-1), "max_samples"),
        (ContaminationPolicy(match=ContaminationMatch(ngram=65)), "match.ngram"),
        (ContaminationPolicy(match=ContaminationMatch(max_distance=32)), "match.max_distance"),
        (ContaminationPolicy(match=ContaminationMatch(by=[9])), "match.by[0]"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_policy_out_of_range_is_refused_by_name(client: Client, policy: ContaminationPolicy, field: str) -> None:
    wanted = Evaluation(model_version="models/m/versions/1", contamination_policy=policy)
    wanted.benchmarks.append(BenchmarkSpec(benchmark="scene-captions", dataset_version="datasets/d/versions/1"))
    with pytest.raises(InvalidArgumentError) as error:
        client.evaluation.CreateEvaluation(CreateEvaluationRequest(evaluation=wanted))
    assert [violation.field for violation in error.value.violations] == [f"evaluation.contamination_policy.{field}"]
