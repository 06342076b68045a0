"""The whole way once at its smallest size, and once more over what it left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.rebus.conftest import Command

pytestmark = pytest.mark.slow


def listed(rebus: Command, *arguments: str) -> list[dict[str, Any]]:
    return json.loads(rebus(*arguments, "list", "--format", "json").stdout)


def test_pictures_become_scored_models_and_a_second_run_reuses_them(
    rebus: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = rebus("quickstart", "--size", "smoke", "--check")
    assert first.exit_code == 1, first.stderr
    assert first.stderr.endswith("a bar was missed\n"), first.stderr
    assert f"Report: {tmp_path}/.rebus/quickstart/report.html" in first.stdout
    report = (tmp_path / ".rebus/quickstart/report.html").read_text()
    made = {kind: [item["name"] for item in listed(rebus, kind)] for kind in ("runs", "index", "eval")}
    assert [len(names) for names in made.values()] == [2, 1, 2]
    assert all(name in report for names in made.values() for name in names)
    models = {model["name"]: model["aliases"] for model in listed(rebus, "models")}
    assert models == {name: {"champion": f"{name}/versions/1"} for name in ("models/emoji", "models/scenes")}

    second = rebus("quickstart", "--size", "smoke", "--output", "again.html")
    assert second.exit_code == 0, second.stderr
    assert {kind: [item["name"] for item in listed(rebus, kind)] for kind in made} == made
    assert (tmp_path / "again.html").is_file()

    walked = json.loads(rebus("lineage", made["eval"][0], "--format", "json").stdout)
    kinds = {node["kind"] for node in walked["nodes"]}
    assert kinds >= {"evaluation", "model_version", "run", "recipe", "code", "dataset_version", "ingestion", "source"}
    assert rebus("fsck").exit_code == 0
