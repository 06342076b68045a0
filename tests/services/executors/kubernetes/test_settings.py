"""Settings are checked whole, and every bad field is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rebus.errors import InvalidArgumentError
from rebus.jobs import LocalExecutor
from rebus.store import Store
from rebus.v1.common_pb2 import Resources
from services.executors import open_executor
from services.executors.kubernetes.settings import load_settings, settings_from_mapping
from services.harness.server import main

LEAST: dict[str, Any] = {"image": "rebus/python:0.1.0", "namespace": "rebus"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"namespace": "Rebus"}, "namespace: expected lower-case"),
        ({"image": ""}, "image: expected an image reference"),
        ({"imag": "x"}, "executor.imag: unknown key; did you mean 'image'"),
        ({"kinds": {"run": {}}}, "kinds: no kind 'run'"),
        ({"defaults": {"num_nodes": 2}}, "executor.defaults: num_nodes: a Job runs one process"),
        ({"kinds": {"runs": {"num_nodes": 0}}}, "executor.kinds.runs: num_nodes: expected 1 to 4096, found 0"),
        ({"defaults": {"workload": "pod"}}, "executor.defaults.workload"),
        ({"defaults": {"resources": {"memory": "4 GB"}}}, "executor.defaults.resources: memory: expected a quantity"),
        ({"defaults": {"resources": {"gpu": -1}}}, "gpu: expected 0 to 64"),
        ({"defaults": {"tolerations": [{"operator": "Equal"}]}}, "key: is required"),
        ({"volumes": [{"claim": "x", "mount_path": "data"}]}, "mount_path: expected an absolute path"),
        ({"environment": ["A B"]}, "'A B' is not the name of a variable"),
        ({"cancel_grace_seconds": 0}, "cancel_grace_seconds: expected 1 to 3600"),
        ({"ttl_seconds_after_finished": 5}, "ttl_seconds_after_finished: expected 60 to"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        settings_from_mapping({**LEAST, **change})
    assert message in str(caught.value)


def test_kinds_are_laid_over_the_defaults() -> None:
    found = settings_from_mapping(
        {
            **LEAST,
            "defaults": {"resources": {"cpu": "1", "memory": "2Gi"}, "node_selector": {"pool": "cpu"}},
            "kinds": {"runs": {"resources": {"memory": "64Gi"}}},
        }
    )
    runs = found.kind("runs")
    assert (runs.resources.cpu, runs.resources.memory, runs.node_selector) == ("1", "64Gi", {"pool": "cpu"})
    assert found.kind("indexes") == found.defaults


def test_what_a_job_asks_for_itself_replaces_its_kinds_settings() -> None:
    found = settings_from_mapping({**LEAST, "defaults": {"resources": {"cpu": "1", "memory": "2Gi"}}})
    asked = found.asking("runs", Resources(cpus=0.5, gpus=2)).kind("runs").resources
    assert (asked.cpu, asked.memory, asked.gpu) == ("500m", "2Gi", 2)
    assert found.asking("runs", Resources(memory_bytes=1 << 30)).kind("runs").resources.memory == "1073741824"
    assert found.asking("runs", Resources()).kind("runs") == found.kind("runs")


def test_which_stores_pods_reach() -> None:
    settings_from_mapping(LEAST).check_store("s3://bucket/prefix")
    volumes = [{"claim": "a", "mount_path": "/store", "read_only": False}, {"claim": "b", "mount_path": "/data"}]
    found = settings_from_mapping({**LEAST, "volumes": volumes})
    found.check_store("file:///store/rebus")
    for url in ("file:///elsewhere", "file:///data/rebus"):
        with pytest.raises(InvalidArgumentError, match="mount a writable volume"):
            found.check_store(url)


def test_the_executor_is_chosen_by_name(store: Store, tmp_path: Path) -> None:
    assert isinstance(open_executor("local", store, tmp_path), LocalExecutor)
    with pytest.raises(InvalidArgumentError, match="expected one of local, kubernetes, found 'slurm'"):
        open_executor("slurm", store, tmp_path)
    with pytest.raises(InvalidArgumentError, match="kubernetes wants settings"):
        open_executor("kubernetes", store, tmp_path)
    with pytest.raises(InvalidArgumentError, match="executor: no such file"):
        load_settings(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "slurm"], "invalid choice: 'slurm'"),
        (["--executor", "kubernetes"], "kubernetes wants settings"),
    ],
)
def test_the_server_says_in_one_line_what_is_wrong(
    arguments: list[str], message: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ingest"], ["--store", store.url, *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]
