"""The manifests as `kubectl apply -k` would send them: valid against the API's schemas, bounded, unprivileged."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipelines.components.base import IMAGE
from services.executors.choice import EXECUTOR_ENV, SETTINGS_ENV
from services.executors.kubernetes.naming import Attempt
from services.executors.kubernetes.settings import KubernetesSettings, settings_from_mapping
from services.harness.telemetry.telemetry import METRICS_PORT_ENV
from tests.kube_schema import check_schema

K8S = Path(__file__).resolve().parents[2] / "k8s"
RENDERED = ("base", "overlays/local", "overlays/production")
SERVICES = ("ingest", "training", "retrieval", "generation", "evaluation")
WITH_JOBS = {f"rebus-{name}" for name in SERVICES if name != "generation"}
Object = dict[str, Any]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: nothing is rendered")


@cache
def render(path: str) -> list[Object]:
    done = subprocess.run(["kubectl", "kustomize", K8S / path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(path: str, *kinds: str) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in render(path) if item["kind"] in kinds}


def workloads(path: str) -> dict[str, Object]:
    return of_kind(path, "Deployment", "StatefulSet")


def containers(path: str) -> Iterator[tuple[Object, Object]]:
    """``(pod spec, container)`` of every container of every workload."""
    for item in workloads(path).values():
        pod = item["spec"]["template"]["spec"]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            yield pod, container


def volumes_of(pod: Object) -> dict[str, Object]:
    return {volume["name"]: volume for volume in pod.get("volumes", [])}


@pytest.mark.parametrize("path", RENDERED)
def test_every_object_matches_its_schema(path: str) -> None:
    for item in render(path):
        check_schema(item)


def test_the_schema_check_refuses_an_unknown_field_and_an_unknown_kind() -> None:
    production = render("overlays/production")
    for kind in ("Deployment", "GRPCRoute"):
        broken = json.loads(json.dumps(next(item for item in production if item["kind"] == kind)))
        broken["spec"]["replcas"] = 1
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check_schema(broken)
    with pytest.raises(kubernetes_validate.utils.SchemaNotFoundError):
        check_schema({"apiVersion": "rebus.dev/v1", "kind": "Unheard", "metadata": {"name": "x"}})


@pytest.mark.parametrize("path", RENDERED)
def test_every_container_is_bounded_probed_and_unprivileged(path: str) -> None:
    found = list(containers(path))
    assert found
    for pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is ("executor" in volumes_of(pod))
        assert not pod.get("hostNetwork")
        assert all(volume.keys() & {"emptyDir", "secret", "configMap"} for volume in pod.get("volumes", []))
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
        _, _, tag = container["image"].rpartition(":")
        assert tag not in ("", "latest")
        assert "/" not in tag


def test_base_runs_the_five_services() -> None:
    deployments = of_kind("base", "Deployment")
    assert sorted(deployments) == sorted(f"rebus-{name}" for name in SERVICES)
    for name in SERVICES:
        pod = deployments[f"rebus-{name}"]["spec"]["template"]
        assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == name
        (container,) = pod["spec"]["containers"]
        # The kubelet puts the label into REBUS_SERVICE, and REBUS_SERVICE into the command.
        assert container["command"][:3] == ["python", "-m", "services.$(REBUS_SERVICE).server"]
        (variable,) = (v for v in container["env"] if v["name"] == "REBUS_SERVICE")
        assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['app.kubernetes.io/component']"


@pytest.mark.parametrize("path", RENDERED)
def test_references_resolve(path: str) -> None:
    """Service accounts and config maps exist; services, budgets and autoscalers select exactly one workload."""
    pods = {name: item["spec"]["template"] for name, item in workloads(path).items()}

    def selected(labels: Object) -> list[str]:
        return [name for name, pod in pods.items() if labels.items() <= pod["metadata"]["labels"].items()]

    for pod in pods.values():
        account = pod["spec"].get("serviceAccountName")
        assert account is None or account in of_kind(path, "ServiceAccount")
        for source in (s for c in pod["spec"]["containers"] for s in c.get("envFrom", [])):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in of_kind(path, "ConfigMap")
            elif not source["secretRef"].get("optional"):
                assert source["secretRef"]["name"] in of_kind(path, "Secret")
    for name, service in of_kind(path, "Service").items():
        assert selected(service["spec"]["selector"]) == [name]
    for name, budget in of_kind(path, "PodDisruptionBudget").items():
        assert selected(budget["spec"]["selector"]["matchLabels"]) == [name]
    for scaler in of_kind(path, "HorizontalPodAutoscaler").values():
        assert scaler["spec"]["scaleTargetRef"]["name"] in pods
    governed = {
        name
        for policy in of_kind(path, "NetworkPolicy").values()
        for name in selected(policy["spec"]["podSelector"]["matchLabels"])
    }
    assert governed == pods.keys()


@pytest.mark.parametrize("path", RENDERED)
def test_a_service_that_runs_jobs_in_its_own_pod_is_never_doubled(path: str) -> None:
    scaled = {s["spec"]["scaleTargetRef"]["name"] for s in of_kind(path, "HorizontalPodAutoscaler").values()}
    for name, item in of_kind(path, "Deployment").items():
        found = (item["spec"].get("replicas"), item["spec"]["strategy"]["type"])
        if name in scaled:
            assert (name, found) == ("rebus-generation", (None, "RollingUpdate"))
        elif "executor" in volumes_of(item["spec"]["template"]["spec"]):
            assert found == (2, "RollingUpdate")
        else:
            assert found == (1, "Recreate")


@pytest.mark.parametrize("path", ["base", "overlays/local"])
def test_nothing_may_call_the_kubernetes_api(path: str) -> None:
    assert not of_kind(path, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    assert all(a["automountServiceAccountToken"] is False for a in of_kind(path, "ServiceAccount").values())


@pytest.mark.parametrize("path", RENDERED)
def test_metrics_are_served_where_scrapers_are_told_and_let_in(path: str) -> None:
    deployments = of_kind(path, "Deployment")
    servers = {name: item for name, item in deployments.items() if name.startswith("rebus")}
    assert servers
    for item in servers.values():
        template = item["spec"]["template"]
        (container,) = template["spec"]["containers"]
        (variable,) = (v for v in container["env"] if v["name"] == METRICS_PORT_ENV)
        (port,) = (p["containerPort"] for p in container["ports"] if p["name"] == "metrics")
        assert variable["value"] == template["metadata"]["annotations"]["prometheus.io/port"] == str(port)
        (policy,) = (
            p
            for p in of_kind(path, "NetworkPolicy").values()
            if p["spec"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            and "Ingress" in p["spec"]["policyTypes"]
        )
        (rule,) = (r for r in policy["spec"]["ingress"] if {"port": port} in r["ports"])
        assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"rebus.dev/monitoring": "true"}}}]


def test_production_lets_the_services_with_jobs_make_jobs_and_nothing_else() -> None:
    path = "overlays/production"
    assert not of_kind(path, "ClusterRole", "ClusterRoleBinding")
    (role,), (binding,) = of_kind(path, "Role").values(), of_kind(path, "RoleBinding").values()
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    workload = {"create", "get", "list", "watch", "delete"}
    assert granted == {
        ("batch", "jobs"): workload,
        ("trainer.kubeflow.org", "trainjobs"): workload,
        ("", "pods"): {"list", "watch"},
        ("", "pods/log"): {"get"},
    }
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    subjects = {(s["kind"], s["name"], s["namespace"]) for s in binding["subjects"]}
    namespace = role["metadata"]["namespace"]
    assert subjects == {("ServiceAccount", name, namespace) for name in WITH_JOBS}
    mounting = {n for n, d in of_kind(path, "Deployment").items() if "executor" in volumes_of(pod_of(d))}
    assert mounting == WITH_JOBS
    assert all(a["automountServiceAccountToken"] is False for a in of_kind(path, "ServiceAccount").values())


def pod_of(deployment: Object) -> Object:
    return deployment["spec"]["template"]["spec"]


def production_settings() -> KubernetesSettings:
    config_map = volumes_of(pod_of(of_kind("overlays/production", "Deployment")["rebus-training"]))["executor"]
    data = of_kind("overlays/production", "ConfigMap")[config_map["configMap"]["name"]]["data"]
    return settings_from_mapping(yaml.safe_load(data["settings.yaml"]))


def test_the_settings_of_the_executor_are_those_of_the_services() -> None:
    settings = production_settings()
    assert (settings.image, settings.namespace) == (IMAGE, "rebus")
    assert settings.service_account in of_kind("overlays/production", "ServiceAccount")
    for name in WITH_JOBS:
        (container,) = pod_of(of_kind("overlays/production", "Deployment")[name])["containers"]
        values = {variable["name"]: variable.get("value") for variable in container["env"]}
        (mount,) = (m for m in container["volumeMounts"] if m["name"] == "executor")
        assert (values[EXECUTOR_ENV], values[SETTINGS_ENV]) == ("kubernetes", f"{mount['mountPath']}/settings.yaml")
        assert settings.store_secret in [s["secretRef"]["name"] for s in container["envFrom"] if "secretRef" in s]


def test_pods_of_jobs_are_governed_and_get_no_calls() -> None:
    labels = Attempt("runs/x", 1, "s3://rebus").labels
    policies = [
        policy
        for policy in of_kind("overlays/production", "NetworkPolicy").values()
        if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    ]
    assert [sorted(policy["spec"]["policyTypes"]) for policy in policies] == [["Egress", "Ingress"]]
    for path in RENDERED:
        for service in of_kind(path, "Service").values():
            assert not service["spec"]["selector"].items() <= labels.items()


def test_production_routes_every_grpc_service_to_the_deployment_that_answers_it() -> None:
    routes = of_kind("overlays/production", "GRPCRoute")
    assert sorted(routes) == sorted(f"rebus-{name}" for name in SERVICES)
    for name in SERVICES:
        (rule,) = routes[f"rebus-{name}"]["spec"]["rules"]
        answered = importlib.import_module(f"services.{name}.server").SERVICE.grpc_names
        assert sorted(match["method"]["service"] for match in rule["matches"]) == sorted(answered)
        assert rule["backendRefs"] == [{"name": f"rebus-{name}", "port": 8080}]


def test_the_pipelines_find_their_endpoint() -> None:
    from pipelines.components.base import CONFIG_MAP

    (service,) = of_kind("overlays/production", "Gateway")
    assert of_kind("overlays/production", "ConfigMap")[CONFIG_MAP]["data"] == {
        "endpoint": f"{service}:8080",
        "insecure": "1",
    }


# Made by the operator, not by the manifests; k8s/README.md says how.
TOKENS = "rebus-auth"


@pytest.mark.parametrize("path", RENDERED)
def test_a_server_asks_for_tokens_or_says_that_it_does_not(path: str) -> None:
    """What the services bind is open to the network, so each pod mounts the token file, or is told to be insecure."""
    for item in of_kind(path, "Deployment").values():
        pod = item["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert "0.0.0.0" in container["command"]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
        if "--insecure" in container["command"]:
            assert path == "overlays/local"
            assert "REBUS_TOKENS" not in variables
            assert secrets == {}
        else:
            assert secrets == {"auth": TOKENS}
            (mount,) = (m for m in container["volumeMounts"] if m["name"] == "auth")
            assert variables["REBUS_TOKENS"] == f"{mount['mountPath']}/tokens.yaml"


@pytest.mark.parametrize("path", RENDERED)
def test_mounted_secrets_exist_or_are_the_operators(path: str) -> None:
    for pod, _ in containers(path):
        names = {v["secret"]["secretName"] for v in pod.get("volumes", []) if "secret" in v}
        assert names - {TOKENS} <= of_kind(path, "Secret").keys()
