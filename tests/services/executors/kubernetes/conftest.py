"""The APIs that the executor is tested against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kube_schema import check_schema
from tests.services.executors.kubernetes import api_server, real_api_server
from tests.services.executors.kubernetes.api_server import ApiServer
from tests.services.executors.kubernetes.cluster import Cluster

ROLE = Path(__file__).resolve().parents[4] / "k8s" / "components" / "kubernetes-executor" / "role.yaml"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """The small server, which allows the executor what the manifests' Role allows it."""
    (tmp_path / "pod-logs").mkdir()
    rules = yaml.safe_load(ROLE.read_text())["rules"]
    with api_server.running(check_schema, rules, tmp_path / "pod-logs") as server:
        yield server


@pytest.fixture
def small_cluster(api: ApiServer) -> Cluster:
    return Cluster(api.url, api_server.ADMIN, api_server.EXECUTOR, api.state.logs)


@pytest.fixture(scope="session")
def real_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not real_api_server.available():
        pytest.skip(f"no kube-apiserver: set {' and '.join(real_api_server.VARIABLES)} to its program and etcd's")
    with real_api_server.running(tmp_path_factory.mktemp("kube-apiserver")) as cluster:
        yield cluster


@pytest.fixture(params=["small server", "kube-apiserver"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Tests that take it run once on each; on the real one only where the environment names its programs."""
    return request.getfixturevalue("small_cluster" if request.param == "small server" else "real_cluster")
