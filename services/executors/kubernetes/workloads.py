"""The three shapes of a job in the cluster, and what their conditions say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from services.executors.kubernetes import pods
from services.executors.kubernetes.naming import Attempt
from services.executors.kubernetes.pods import Object
from services.executors.kubernetes.settings import KubernetesSettings

# The names of the containers that do the work: those of the training operators are fixed by them.
CONTAINERS = ("worker", "node", "pytorch")
_SUCCEEDED, _FAILED = ("Complete", "Succeeded"), ("Failed",)


@dataclass(frozen=True)
class Resource:
    """A collection of the API."""

    group: str
    version: str
    plural: str
    # Whether the cluster removes ended objects by itself.
    expires: bool = True


@dataclass(frozen=True)
class Workload:
    """One shape of a job."""

    resource: Resource
    build: Callable[[Attempt, KubernetesSettings, Mapping[str, str]], Object]


def manifest(attempt: Attempt, settings: KubernetesSettings, variables: Mapping[str, str]) -> Object:
    """The object that stands for an attempt at a job; ``variables`` are the worker's environment."""
    return workload_of(attempt.collection, settings).build(attempt, settings, variables)


def workload_of(collection: str, settings: KubernetesSettings) -> Workload:
    return WORKLOADS[settings.kind(collection).workload]


def in_use(settings: KubernetesSettings) -> list[Workload]:
    """Those that the settings name: the operators of others need not be installed."""
    names = {settings.defaults.workload, *(kind.workload for kind in settings.kinds.values())}
    return [WORKLOADS[name] for name in sorted(names)]


def condition(item: Object, *types: str) -> Object | None:
    """The first condition of one of these types that holds."""
    found = (item.get("status") or {}).get("conditions") or []
    return next((c for c in found if c["type"] in types and c["status"] == "True"), None)


def succeeded(item: Object) -> bool:
    return condition(item, *_SUCCEEDED) is not None


def failure(item: Object) -> Object | None:
    """The condition that says that it failed."""
    return condition(item, *_FAILED)


def finished_at(item: Object) -> datetime | None:
    """When an object ended; ``None`` while it has not."""
    found = condition(item, *_SUCCEEDED, *_FAILED)
    return timestamp(found.get("lastTransitionTime") or item["metadata"]["creationTimestamp"]) if found else None


def timestamp(text: str) -> datetime:
    """A time as the API writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _metadata(attempt: Attempt, settings: KubernetesSettings) -> Object:
    return {
        "name": attempt.object_name,
        "namespace": settings.namespace,
        "labels": attempt.labels,
        "annotations": attempt.annotations,
    }


def _job(attempt: Attempt, settings: KubernetesSettings, variables: Mapping[str, str]) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(attempt, settings),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            # A new attempt is a new object, so that the job's document counts it and resumes from its checkpoint.
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            # A pod that is still stopping is not replaced.
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": settings.kind(attempt.collection).active_deadline_seconds,
            "ttlSecondsAfterFinished": settings.ttl_seconds_after_finished,
            "template": pods.template(attempt, settings, variables),
        },
    }


def _trainjob(attempt: Attempt, settings: KubernetesSettings, variables: Mapping[str, str]) -> Object:
    """A TrainJob: how many and what they run here, their pods as a patch of the runtime's template."""
    kind = settings.kind(attempt.collection)
    container: Object = {
        "name": "node",
        "securityContext": pods.container_security(),
        "volumeMounts": pods.volume_mounts(settings, kind),
    }
    pod = {
        "metadata": {"labels": attempt.labels, "annotations": attempt.annotations},
        "spec": {**pods.placement(settings, kind), "containers": [container]},
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(attempt, settings),
        "spec": {
            "runtimeRef": {"name": kind.runtime},
            "activeDeadlineSeconds": kind.active_deadline_seconds,
            "trainer": {
                "image": settings.image,
                "command": pods.command(attempt, kind),
                "env": pods.environment(settings, variables),
                "numNodes": kind.num_nodes,
                "numProcPerNode": kind.num_processes_per_node,
                "resourcesPerNode": pods.resources(kind.resources),
            },
            "runtimePatches": [
                {
                    "manager": "rebus.dev/executor",
                    "trainingRuntimeSpec": {
                        "template": {
                            "spec": {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": pod}}}]}
                        }
                    },
                }
            ],
        },
    }


def _pytorchjob(attempt: Attempt, settings: KubernetesSettings, variables: Mapping[str, str]) -> Object:
    kind = settings.kind(attempt.collection)

    def replicas(number: int) -> Object:
        pod = pods.template(attempt, settings, variables, container="pytorch")
        return {"replicas": number, "restartPolicy": "Never", "template": pod}

    specs = {"Master": replicas(1)}
    if kind.num_nodes > 1:
        specs["Worker"] = replicas(kind.num_nodes - 1)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": _metadata(attempt, settings),
        "spec": {
            "nprocPerNode": str(kind.num_processes_per_node),
            "runPolicy": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": kind.active_deadline_seconds,
                "ttlSecondsAfterFinished": settings.ttl_seconds_after_finished,
                # Once one pod has failed the others wait for it in vain.
                "cleanPodPolicy": "Running",
            },
            "pytorchReplicaSpecs": specs,
        },
    }


WORKLOADS: dict[str, Workload] = {
    "job": Workload(Resource("batch", "v1", "jobs"), _job),
    "trainjob": Workload(Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", expires=False), _trainjob),
    "pytorchjob": Workload(Resource("kubeflow.org", "v1", "pytorchjobs"), _pytorchjob),
}
