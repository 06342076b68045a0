"""What is sent to the cluster: valid against its schemas, bounded, unprivileged, without secrets."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from rebus.jobs.kinds import KINDS
from services.executors.kubernetes import workloads
from services.executors.kubernetes.naming import MAX_NAME, OBJECT_LABEL, Attempt, selector
from services.executors.kubernetes.settings import KubernetesSettings, settings_from_mapping
from tests.kube_schema import check_schema

Object = dict[str, Any]
STORE = "s3://rebus/production"
VARIABLES = {"AWS_REGION": "us-east-1", "TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
FULL: Object = {
    "resources": {"cpu": "500m", "memory": "1.5Gi", "ephemeral_storage": "10Gi", "gpu": 2},
    "node_selector": {"pool": "gpu"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
        {"key": "team", "operator": "Equal", "value": "rebus"},
    ],
}
SHAPES = {
    "job": {"workload": "job"},
    "trainjob": {"workload": "trainjob", "num_nodes": 4, "num_processes_per_node": 2},
    "pytorchjob": {"workload": "pytorchjob", "num_nodes": 4, "num_processes_per_node": 2},
    "pytorchjob of one node": {"workload": "pytorchjob"},
}


def settings(**kind: Any) -> KubernetesSettings:
    return settings_from_mapping(
        {
            "image": "rebus/python:0.1.0",
            "namespace": "rebus",
            "image_pull_secrets": ["registry"],
            "volumes": [{"claim": "files", "mount_path": "/data"}],
            "defaults": {**FULL, **kind},
        }
    )


def manifest(name: str = "runs/20260131-235959-123-ab12cd", **kind: Any) -> Object:
    return workloads.manifest(Attempt(name, 1, STORE), settings(**kind), VARIABLES)


def pod_specs(item: Object) -> list[Object]:
    spec = item["spec"]
    if item["kind"] == "Job":
        return [spec["template"]["spec"]]
    if item["kind"] == "PyTorchJob":
        return [replicas["template"]["spec"] for replicas in spec["pytorchReplicaSpecs"].values()]
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return [replicated["template"]["spec"]["template"]["spec"]]


@pytest.mark.parametrize("collection", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_object_matches_its_schema(shape: str, collection: str) -> None:
    check_schema(manifest(f"{collection}/20260131-235959-123-ab12cd", **SHAPES[shape]))


def test_the_least_settings_make_valid_objects() -> None:
    least = settings_from_mapping({"image": "x", "namespace": "y"})
    item = workloads.manifest(Attempt("runs/a", 1, STORE), least, {})
    check_schema(item)
    assert "nodeSelector" not in item["spec"]["template"]["spec"]


@pytest.mark.parametrize("where", ["spec", "pod", "container"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_schemas_refuse_an_unknown_field(shape: str, where: str) -> None:
    item = manifest(**SHAPES[shape])
    pod = pod_specs(item)[0]
    {"spec": item["spec"], "pod": pod, "container": pod["containers"][0]}[where]["nodeSelectr"] = {}
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_schema(item)


@pytest.mark.parametrize("shape", SHAPES)
def test_pods_are_unprivileged_and_bounded(shape: str) -> None:
    item = manifest(**SHAPES[shape])
    for pod in pod_specs(item):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["serviceAccountName"] == "rebus-job"
        assert pod["terminationGracePeriodSeconds"] == 60
        assert pod["nodeSelector"] == {"pool": "gpu"}
        assert pod["tolerations"][0] == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        assert pod["tolerations"][1] == {"key": "team", "operator": "Equal", "value": "rebus"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {m["mountPath"] for m in container["volumeMounts"]} >= {"/var/cache/rebus", "/tmp", "/data"}
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    trainer = item["spec"]["trainer"] if item["kind"] == "TrainJob" else None
    found = trainer["resourcesPerNode"] if trainer else container["resources"]
    amounts = {"cpu": "500m", "memory": "1.5Gi", "ephemeral-storage": "10Gi", "nvidia.com/gpu": "2"}
    assert found == {"requests": amounts, "limits": amounts}


@pytest.mark.parametrize("shape", SHAPES)
def test_credentials_are_references_and_the_rest_is_passed(shape: str) -> None:
    item = manifest(**SHAPES[shape])
    holder = item["spec"]["trainer"] if item["kind"] == "TrainJob" else pod_specs(item)[0]["containers"][0]
    variables = {variable["name"]: variable for variable in holder["env"]}
    assert len(variables) == len(holder["env"])
    assert {name: variables[name]["value"] for name in VARIABLES} == VARIABLES
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert variables[name]["valueFrom"]["secretKeyRef"] == {"name": "rebus-store", "key": name, "optional": True}
    command = " ".join(holder["command"])
    assert "rebus.jobs.worker --store s3://rebus/production --name runs/20260131-235959-123-ab12cd" in command
    assert ("torch.distributed.run" in command) == (shape in ("trainjob", "pytorchjob"))


def test_the_platform_resumes_not_the_cluster() -> None:
    spec = manifest()["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (604_800, 3600)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_nodes_and_processes() -> None:
    trainer = manifest(**SHAPES["trainjob"])["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 2)
    spec = manifest(**SHAPES["pytorchjob"])["spec"]
    assert {k: v["replicas"] for k, v in spec["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 3}
    assert spec["nprocPerNode"] == "2"
    assert list(manifest(**SHAPES["pytorchjob of one node"])["spec"]["pytorchReplicaSpecs"]) == ["Master"]


@pytest.mark.parametrize("shape", SHAPES)
def test_pods_are_found_by_their_labels(shape: str) -> None:
    item = manifest(**SHAPES[shape])
    text = str(item["spec"])
    labels = item["metadata"]["labels"]
    assert labels[OBJECT_LABEL] == item["metadata"]["name"]
    assert str(labels) in text, "the pods carry the labels of their object"
    assert all(tuple(part.split("=")) in labels.items() for part in selector(STORE).split(","))
    assert selector(STORE) != selector("s3://rebus/other")


@pytest.mark.parametrize(
    "name",
    ["runs/a", "evaluations/20260131-235959-123-ab12cd", "runs/" + "x" * 200, "runs/With.Dots_and-Ünicode", "runs/-"],
)
def test_names_fit_and_differ_by_attempt(name: str) -> None:
    names = [Attempt(name, number, STORE).object_name for number in (1, 2, 1000)]
    assert len(set(names)) == 3
    for found in names:
        assert len(found) <= MAX_NAME
        check_schema({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": found}, "spec": {"containers": []}})
        assert found.strip("-") == found
        assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_names_of_different_jobs_differ() -> None:
    jobs = [
        "runs/a-1",
        "runs/a",
        "runs/A",
        "runs/a.b",
        "runs/a-b",
        "runs/a_b",
        "indexes/a",
        *["runs/" + "x" * n for n in (90, 91)],
    ]
    names = [Attempt(job, number, STORE).object_name for job in jobs for number in (1, 2, 11)]
    assert len(set(names)) == len(names)
