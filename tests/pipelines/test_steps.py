from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pipelines import steps
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.evaluation_pb2 import Evaluation
from rebus.v1.model_pb2 import ModelVersion
from rebus.v1.training_pb2 import Run

if TYPE_CHECKING:
    from tests.pipelines.conftest import FakeServices

SOURCES = [{"reader": "emoji", "settings": {"languages": ["en"]}}]
METRIC = "scene-questions/mean/exact_match"
RECIPE = {"name": "tiny", "data": {"a": {"dataset": "scenes"}, "b": {"dataset": "texts"}, "c": {"dataset": "scenes"}}}


def ingest(revision: str = "", share: float = 0.1) -> DatasetVersion:
    return steps.ingest("emoji", SOURCES, share, revision)


def test_ingest_sends_the_sources_and_reports_progress(
    services: FakeServices, capsys: pytest.CaptureFixture[str]
) -> None:
    version = ingest(share=0.25)
    ingestion = services.resources[version.producer]
    assert ingestion.dataset == "datasets/emoji"
    assert ingestion.max_bad_share == 0.25
    assert [(source.reader, list(source.settings["languages"])) for source in ingestion.sources] == [("emoji", ["en"])]
    assert capsys.readouterr().out == "[ingest] 50% half way\n"


def test_equal_inputs_reuse_the_result_and_others_do_not(services: FakeServices) -> None:
    first = ingest()
    assert ingest() == first
    assert ingest(revision="2").name != first.name
    assert ingest(share=0.2).name != first.name
    assert len(services.created_in("ingestions")) == 3


def test_a_result_that_is_gone_is_made_anew(services: FakeServices) -> None:
    first = ingest()
    del services.resources[first.name]
    second = ingest()
    assert second.name != first.name
    assert ingest() == second


def test_a_job_that_fails_now_ends_the_step_with_one_line(services: FakeServices) -> None:
    services.failures["ingestions"] = 1
    with pytest.raises(SystemExit, match=r"^\[ingest\] error: INVALID_ARGUMENT: .*no such file$"):
        ingest()
    assert ingest().producer == "ingestions/2"


def test_a_malformed_parameter_is_named(services: FakeServices) -> None:
    with pytest.raises(SystemExit, match=r"INVALID_ARGUMENT: sources\[0\]: .*readr"):
        steps.ingest("emoji", [{"readr": "emoji"}], 0.1, "")
    assert services.created == []


def test_no_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBUS_ENDPOINT", "127.0.0.1:1")
    with pytest.raises(SystemExit, match=r"^\[ingest\] error: UNAVAILABLE: no Rebus server answers at 127.0.0.1:1"):
        ingest()


def test_curate(services: FakeServices) -> None:
    raw = ingest()
    assert steps.curate(raw, [], "") is raw
    curated = steps.curate(raw, [{"curator": "text-length", "settings": {"min": 2}}], "")
    curation = services.resources[curated.producer]
    assert curation.dataset_version == raw.name
    assert [(c.curator, c.settings["min"]) for c in curation.curators] == [("text-length", 2)]


def test_train_binds_every_dataset_of_the_recipe(services: FakeServices) -> None:
    version = ingest()
    run = steps.train(version, yaml.safe_dump(RECIPE), 7, "")
    assert dict(run.datasets) == {"scenes": version.name, "texts": version.name}
    assert run.seed == 7
    assert yaml.safe_load(run.recipe) == RECIPE
    assert steps.train(version, yaml.safe_dump(RECIPE), 7, "") == run
    assert steps.train(version, yaml.safe_dump(RECIPE), 8, "").name != run.name


def test_train_goes_on_with_a_run_that_failed(services: FakeServices) -> None:
    version = ingest()
    services.failures["runs"] = 1
    with pytest.raises(SystemExit, match="train"):
        steps.train(version, yaml.safe_dump(RECIPE), 0, "")
    assert steps.train(version, yaml.safe_dump(RECIPE), 0, "").name == services.created_in("runs")[0]
    assert len(services.created_in("runs")) == 1


def test_train_names_an_unknown_recipe(services: FakeServices) -> None:
    with pytest.raises(SystemExit, match=r"\[train\] error: INVALID_ARGUMENT: recipe: no recipe 'quikstart'"):
        steps.train(ingest(), "quikstart", 0, "")


def test_index(services: FakeServices) -> None:
    version, model = ingest(), ModelVersion(name="models/emoji/versions/1", digest="d")
    built = steps.index(version, model, "test", "hnsw", "")
    assert (built.model_version, built.dataset_version) == (model.name, version.name)
    assert (built.split, built.algorithm) == ("test", "hnsw")
    assert steps.index(version, model, "test", "hnsw", "") == built
    assert steps.index(version, model, "test", "flat", "").name != built.name


def scored(version: DatasetVersion, model: ModelVersion, seed: int = 0) -> Evaluation:
    return steps.evaluate(version, model, [{"benchmark": "scene-questions", "split": "test"}], seed, "")


def registered(services: FakeServices, run: str, score: float) -> ModelVersion:
    services.scores[f"models/m/versions/{run}"] = score
    return steps.register(Run(name=f"runs/{run}"), "m")


def test_evaluate_binds_benchmarks_to_the_dataset(services: FakeServices) -> None:
    version, model = ingest(), registered(services, "7", 0.5)
    evaluation = scored(version, model)
    assert [(b.benchmark, b.dataset_version, b.split) for b in evaluation.benchmarks] == [
        ("scene-questions", version.name, "test")
    ]
    assert scored(version, model) == evaluation
    assert scored(version, model, seed=1).name != evaluation.name


def promote(version: DatasetVersion, model: ModelVersion) -> Any:
    return steps.promote(model, scored(version, model), METRIC, "")


def test_promote_crowns_only_the_better(services: FakeServices) -> None:
    version = ingest()
    good, equal, worse, better = (
        registered(services, run, score) for run, score in [("1", 0.6), ("2", 0.6), ("3", 0.5), ("4", 0.7)]
    )
    assert promote(version, good) == (good.name, {"candidate": 0.6})
    assert promote(version, good) == (good.name, {"candidate": 0.6})
    assert promote(version, equal) == (good.name, {"candidate": 0.6, "champion": 0.6})
    assert promote(version, worse) == (good.name, {"candidate": 0.5, "champion": 0.6})
    assert promote(version, better) == (better.name, {"candidate": 0.7, "champion": 0.6})
    assert services.resources["models/m"].aliases["champion"] == better.name


def test_promote_scores_the_champion_on_the_same_rows(services: FakeServices) -> None:
    old, new = ingest(), ingest(revision="2")
    first, second = registered(services, "1", 0.6), registered(services, "2", 0.7)
    promote(old, first)
    services.created.clear()
    promote(new, second)
    pairs = [
        (services.resources[n].model_version, services.resources[n].benchmarks[0].dataset_version)
        for n in services.created_in("evaluations")
    ]
    assert pairs == [(second.name, new.name), (first.name, new.name)]


def test_promote_loses_a_race_without_harm(services: FakeServices) -> None:
    version, rival, model = ingest(), registered(services, "1", 0.9), registered(services, "2", 0.8)

    def crown() -> None:
        services.resources["models/m"].aliases["champion"] = rival.name

    services.before_alias.append(crown)
    with pytest.raises(SystemExit, match=r"\[promote\] error: ABORTED"):
        promote(version, model)
    assert promote(version, model) == (rival.name, {"candidate": 0.8, "champion": 0.9})


def test_promote_names_an_unknown_metric(services: FakeServices) -> None:
    model = registered(services, "1", 0.6)
    evaluation = scored(ingest(), model)
    with pytest.raises(SystemExit, match=r"no score 'x/y'; it has scene-questions/mean/exact_match, "):
        steps.promote(model, evaluation, "x/y", "")


def test_predictions_reads_every_page_of_the_group(services: FakeServices) -> None:
    found = steps.predictions("evaluations/1", "scene-questions", "color")
    assert [item.prediction for item in found] == ["blue", "red"]
    assert steps.predictions("evaluations/1", "scene-questions", "count") == []
