from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines import local
from rebus.client import ENDPOINT_ENV
from rebus.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tests.pipelines.conftest import FakeServices

pytestmark = pytest.mark.slow

RECIPE = "name: tiny\ndata: {all: {dataset: scenes}}\n"


def run(pipeline: local.Name, arguments: dict[str, Any], folder: Path) -> tuple[dict[str, str], list[local.Progress]]:
    seen: list[local.Progress] = []
    outputs = local.run(pipeline, arguments, endpoint=os.environ[ENDPOINT_ENV], folder=folder, on_progress=seen.append)
    return outputs, seen


def test_end_to_end_runs_reports_and_runs_again_for_nothing(services: FakeServices, tmp_path: Path) -> None:
    recipes = {"mllm_recipe": RECIPE, "embedder_recipe": RECIPE}
    outputs, seen = run("end-to-end", recipes, tmp_path / "first")
    assert outputs["mllm_champion"] == outputs["mllm_model"]
    assert outputs["embedder_champion"] == outputs["embedder_model"]
    assert {name.partition("_")[2] for name in outputs} == {"dataset", "model", "index", "evaluation", "champion"}
    assert set(outputs.values()) <= services.resources.keys()
    assert services.resources["models/scenes"].aliases["champion"] == outputs["mllm_model"]

    started = [progress.step for progress in seen if progress.message == "started"]
    assert sorted(started) == sorted(["ingest", "curate", "train", "register", "evaluate", "promote"] * 2 + ["index"])
    assert local.Progress("train", 0.5, "half way") in seen
    tables = list((tmp_path / "first").rglob("table"))
    assert len(tables) == 2
    assert all(table.read_text().startswith("<!doctype html>") for table in tables)

    created = list(services.created)
    again, _ = run("end-to-end", recipes, tmp_path / "second")
    assert again == outputs
    assert services.created == created


def test_a_failing_step_is_retried_and_then_named(
    services: FakeServices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services.failures["ingestions"] = 1
    run("mllm", {"recipe": RECIPE}, tmp_path / "retried")
    assert len(services.created_in("ingestions")) == 2

    with pytest.raises(InvalidArgumentError, match=r"^\[ingest\] error: INVALID_ARGUMENT: sources\[0\]: "):
        run("mllm", {"recipe": RECIPE, "sources": [{"readr": "x"}]}, tmp_path / "bad")
    assert capsys.readouterr().out == ""
    assert "readr" in (tmp_path / "bad" / local.LOG).read_text()
