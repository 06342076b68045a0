from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import COMPILED, compile_all
from pipelines.components.base import IMAGE


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return compile_all(tmp_path_factory.mktemp("compiled"))


def test_the_committed_files_are_what_the_code_compiles_to(fresh: list[Path]) -> None:
    """After a deliberate change: ``make pipelines``, and read the difference."""
    assert sorted(path.name for path in COMPILED.glob("*.yaml")) == sorted(path.name for path in fresh)
    for path in fresh:
        assert (COMPILED / path.name).read_text() == path.read_text(), f"{path.name}: run `make pipelines`"


def tasks(spec: dict[str, Any]) -> list[dict[str, Any]]:
    dags = [spec["root"], *spec["components"].values()]
    return [task for dag in dags if "dag" in dag for task in dag["dag"]["tasks"].values()]


@pytest.mark.parametrize("name", ["mllm", "embedder", "end-to-end"])
def test_every_step_is_a_small_uncached_client(name: str) -> None:
    spec, platforms = documents(COMPILED / f"{name}.yaml")
    executors = spec["deploymentSpec"]["executors"]
    configured = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == configured.keys()
    for label, executor in executors.items():
        container = executor["container"]
        assert container["image"] == IMAGE
        assert "pip install" not in " ".join(container["command"])
        assert container["resources"]["memoryLimit"] == 1.0
        (address,), (secret,) = configured[label]["configMapAsEnv"], configured[label]["secretAsEnv"]
        assert [key["envVar"] for key in address["keyToEnv"]] == ["REBUS_ENDPOINT", "REBUS_INSECURE"]
        assert ([key["envVar"] for key in secret["keyToEnv"]], secret["optional"]) == (["REBUS_TOKEN"], True)
    steps = [task for task in tasks(spec) if spec["components"][task["componentRef"]["name"]].get("executorLabel")]
    assert len(steps) == len(executors)
    assert all(task["retryPolicy"]["maxRetryCount"] == 2 for task in steps)
    assert not any(task["cachingOptions"].get("enableCache") for task in steps)


def test_end_to_end_is_made_of_both_pipelines() -> None:
    spec = documents(COMPILED / "end-to-end.yaml")[0]
    assert sorted(spec["root"]["dag"]["tasks"]) == ["embedder", "mllm"]
    names = {task["taskInfo"]["name"] for task in tasks(spec)}
    assert names == {"ingest", "curate", "train", "register", "index", "evaluate", "promote", "mllm", "embedder"}
