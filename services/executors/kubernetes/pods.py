"""The pod that does a job's work: unprivileged, bounded, and the same in every kind of workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebus.jobs.settings import PREFIX
from services.executors.kubernetes.naming import Attempt
from services.executors.kubernetes.settings import KindSettings, KubernetesSettings, ResourceSettings

Object = dict[str, Any]
CACHE = "/var/cache/rebus"
USER = 10001
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# Carried by Kubernetes' own means, so that a settings file cannot replace them.
_RESERVED = {*_SECRET_VARIABLES, "HOME"}


def command(attempt: Attempt, kind: KindSettings) -> list[str]:
    """The worker itself, not its supervisor: here the cluster supervises, and must see how the worker ends.

    With several processes ``torchrun`` starts them; where and how many comes from the ``PET_*`` variables that the
    training operators set.
    """
    worker = ["-m", "rebus.jobs.worker", "--store", attempt.store_url, "--name", attempt.job, "--cache-dir", CACHE]
    single = (kind.num_nodes, kind.num_processes_per_node) == (1, 1)
    return ["python", *worker] if single else ["python", "-m", "torch.distributed.run", *worker]


def environment(settings: KubernetesSettings, variables: Mapping[str, str]) -> list[Object]:
    """``variables`` as they are, and the store's credentials by reference, so that no object holds them."""
    plain = [{"name": "HOME", "value": "/tmp"}]
    plain.append({"name": f"{PREFIX}MAX_PREEMPTIONS", "value": str(settings.max_preemptions)})
    plain += [{"name": name, "value": value} for name, value in sorted(variables.items()) if name not in _RESERVED]
    secret = [
        {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": settings.store_secret, "key": name, "optional": True}},
        }
        for name in _SECRET_VARIABLES
    ]
    return [*plain, *(secret if settings.store_secret else [])]


def resources(asked: ResourceSettings) -> Object:
    """Requests equal to limits: what was asked for is there, and no more."""
    amounts: Object = {"cpu": asked.cpu, "memory": asked.memory, "ephemeral-storage": asked.ephemeral_storage}
    if asked.gpu:
        amounts[asked.gpu_resource] = str(asked.gpu)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def pod_security() -> Object:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def volumes(settings: KubernetesSettings, kind: KindSettings) -> list[Object]:
    """The two writable folders, within the disk that the pod asks for, shared memory where processes use it, claims."""
    size = kind.resources.ephemeral_storage
    found: list[Object] = [
        {"name": "cache", "emptyDir": {"sizeLimit": size}},
        {"name": "tmp", "emptyDir": {"sizeLimit": size}},
    ]
    if kind.num_processes_per_node > 1:  # counted as memory; without it /dev/shm has 64 MiB, too few for NCCL
        found.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": kind.resources.memory}})
    for number, volume in enumerate(settings.volumes):
        claim = {"claimName": volume.claim, "readOnly": volume.read_only}
        found.append({"name": f"volume-{number}", "persistentVolumeClaim": claim})
    return found


def volume_mounts(settings: KubernetesSettings, kind: KindSettings) -> list[Object]:
    mounts: list[Object] = [{"name": "cache", "mountPath": CACHE}, {"name": "tmp", "mountPath": "/tmp"}]
    if kind.num_processes_per_node > 1:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    for number, volume in enumerate(settings.volumes):
        mounts.append({"name": f"volume-{number}", "mountPath": volume.mount_path, "readOnly": volume.read_only})
    return mounts


def placement(settings: KubernetesSettings, kind: KindSettings) -> Object:
    """Where a pod may run, as whom, and how it ends: the fields that TrainJobs may patch too."""
    found: Object = {
        "serviceAccountName": settings.service_account,
        "terminationGracePeriodSeconds": settings.cancel_grace_seconds,
        "securityContext": pod_security(),
        "volumes": volumes(settings, kind),
    }
    if kind.node_selector:
        found["nodeSelector"] = dict(kind.node_selector)
    if kind.tolerations:
        found["tolerations"] = [
            {key: getattr(t, key) for key in ("key", "operator", "value", "effect") if getattr(t, key)}
            for t in kind.tolerations
        ]
    if settings.image_pull_secrets:
        found["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return found


def template(
    attempt: Attempt, settings: KubernetesSettings, variables: Mapping[str, str], *, container: str = "worker"
) -> Object:
    """A pod template whose one container is named ``container``."""
    kind = settings.kind(attempt.collection)
    return {
        "metadata": {"labels": attempt.labels, "annotations": attempt.annotations},
        "spec": {
            **placement(settings, kind),
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [
                {
                    "name": container,
                    "image": settings.image,
                    "command": command(attempt, kind),
                    "env": environment(settings, variables),
                    "resources": resources(kind.resources),
                    "securityContext": container_security(),
                    "volumeMounts": volume_mounts(settings, kind),
                    # Where a worker says nothing else, its last output tells why it ended.
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                }
            ],
        },
    }
