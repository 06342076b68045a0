"""Settings of the Kubernetes executor: one YAML file, checked whole before anything is created."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from rebus import config
from rebus.errors import invalid
from rebus.jobs.kinds import KINDS
from rebus.v1.common_pb2 import Resources

WHERE = "executor"
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class ResourceSettings:
    """What each pod asks for and is held to: Kubernetes quantities, requests equal to limits."""

    # Processor cores.
    cpu: str = "2"
    # Main memory.
    memory: str = "4Gi"
    # Disk for caches and temporary files; ``/tmp`` and the cache folder share it.
    ephemeral_storage: str = "20Gi"
    # Whole accelerators.
    gpu: int = 0
    # The resource that the cluster's device plug-in offers.
    gpu_resource: str = "nvidia.com/gpu"

    def __post_init__(self) -> None:
        for name in ("cpu", "memory", "ephemeral_storage"):
            if not _QUANTITY.fullmatch(getattr(self, name)):
                raise ValueError(f"{name}: expected a quantity such as 500m or 4Gi, found {getattr(self, name)!r}")
        if not 0 <= self.gpu <= 64:
            raise ValueError(f"gpu: expected 0 to 64, found {self.gpu}")


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint of nodes that pods may run on all the same; fields as in Kubernetes."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    def __post_init__(self) -> None:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"value: must be empty where the operator is Exists, found {self.value!r}")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key: is required where the operator is Equal")


@dataclass(frozen=True, kw_only=True)
class VolumeSettings:
    """A PersistentVolumeClaim that every pod mounts, such as the folder that files are ingested from."""

    claim: str
    mount_path: str
    read_only: bool = True

    def __post_init__(self) -> None:
        if not _DNS_NAME.fullmatch(self.claim):
            raise ValueError(f"claim: expected a name of lower-case letters, digits, - and ., found {self.claim!r}")
        if not self.mount_path.startswith("/") or ".." in self.mount_path.split("/"):
            raise ValueError(f"mount_path: expected an absolute path, found {self.mount_path!r}")


@dataclass(frozen=True, kw_only=True)
class KindSettings:
    """How jobs of one kind run."""

    # A `batch/v1` Job of one pod, a Kubeflow Trainer TrainJob, or a PyTorchJob of the older training operator.
    workload: Literal["job", "trainjob", "pytorchjob"] = "job"
    # Pods that work together; more than one takes a TrainJob or a PyTorchJob.
    num_nodes: int = 1
    # Processes on each node, usually one for each accelerator; more than one takes a TrainJob or a PyTorchJob.
    num_processes_per_node: int = 1
    # The ClusterTrainingRuntime of a TrainJob; its trainer container is named ``node``.
    runtime: str = "torch-distributed"
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)
    # The cluster ends a job that has run for so long.
    active_deadline_seconds: int = 7 * _DAY

    def __post_init__(self) -> None:
        _check_range("num_nodes", self.num_nodes, 1, 4096)
        _check_range("num_processes_per_node", self.num_processes_per_node, 1, 64)
        _check_range("active_deadline_seconds", self.active_deadline_seconds, 1, 365 * _DAY)
        if self.workload == "job" and (self.num_nodes, self.num_processes_per_node) != (1, 1):
            raise ValueError("num_nodes: a Job runs one process in one pod; set workload to trainjob or pytorchjob")


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings:
    """Settings of the executor. ``kinds`` overrides ``defaults`` key by key, e.g. ``kinds: {runs: {num_nodes: 2}}``."""

    # The image of the worker, the same as the service's own.
    image: str
    # Where jobs are created.
    namespace: str
    # The account of the workers' pods: for the object store's workload identity, without any right in the cluster.
    service_account: str = "rebus-job"
    # A Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; pods start without it where there is none.
    store_secret: str = "rebus-store"
    # Names of this process's environment variables that workers get too; nothing secret.
    environment: list[str] = field(
        default_factory=lambda: ["AWS_ENDPOINT_URL", "AWS_REGION", "REBUS_INGEST_ROOTS", "REBUS_CODE_REVISION"]
    )
    image_pull_secrets: list[str] = field(default_factory=list)
    volumes: list[VolumeSettings] = field(default_factory=list)
    defaults: KindSettings = field(default_factory=KindSettings)
    kinds: dict[str, KindSettings] = field(default_factory=dict)
    # Between SIGTERM and SIGKILL of a worker that was cancelled or has to leave its node.
    cancel_grace_seconds: int = 60
    # Ended objects stay so long for `kubectl describe` and `kubectl logs`.
    ttl_seconds_after_finished: int = 3600
    # Times that the cluster may interrupt a job before it ends as FAILED; a caller's resume starts the count again.
    max_preemptions: int = 32
    # A pod that cannot start for a reason of its own (its image, its Secret) fails its job after so long.
    start_error_seconds: int = 600
    # Bound of a call to the API.
    request_seconds: float = 15.0
    # A watch is opened anew, after a fresh listing, at least so often.
    watch_seconds: int = 300

    def __post_init__(self) -> None:
        for name in ("namespace", "service_account"):
            if not _DNS_LABEL.fullmatch(getattr(self, name)):
                raise ValueError(f"{name}: expected lower-case letters, digits and -, found {getattr(self, name)!r}")
        if not self.image or re.search(r"\s", self.image):
            raise ValueError(f"image: expected an image reference, found {self.image!r}")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment: {name!r} is not the name of a variable")
        unknown = sorted(self.kinds.keys() - KINDS.keys())
        if unknown:
            raise ValueError(f"kinds: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
        _check_range("cancel_grace_seconds", self.cancel_grace_seconds, 1, 3600)
        _check_range("ttl_seconds_after_finished", self.ttl_seconds_after_finished, 60, 30 * _DAY)
        _check_range("max_preemptions", self.max_preemptions, 0, 1000)
        _check_range("start_error_seconds", self.start_error_seconds, 1, _DAY)
        _check_range("request_seconds", self.request_seconds, 0.1, 300)
        _check_range("watch_seconds", self.watch_seconds, 1, 3600)

    def kind(self, collection: str) -> KindSettings:
        """How jobs of a collection run."""
        return self.kinds.get(collection, self.defaults)

    def asking(self, collection: str, asked: Resources) -> KubernetesSettings:
        """The settings with what a job asks for itself in place of its kind's; zero asks for nothing."""
        kind = self.kind(collection)
        changes: dict[str, Any] = {"cpu": f"{round(asked.cpus * 1000)}m"} if asked.cpus else {}
        changes |= {"memory": str(asked.memory_bytes)} if asked.memory_bytes else {}
        changes |= {"gpu": asked.gpus} if asked.gpus else {}
        resources = dataclasses.replace(kind.resources, **changes)
        kinds = {**self.kinds, collection: dataclasses.replace(kind, resources=resources)}
        return dataclasses.replace(self, kinds=kinds)

    def check_store(self, url: str) -> None:
        """``InvalidArgumentError`` for a store that a pod cannot reach: a folder outside the writable volumes."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
            if not any(not v.read_only and path.is_relative_to(v.mount_path) for v in self.volumes):
                raise invalid("store", f"{url} is a folder of this machine; name a bucket, or mount a writable volume")


def load_settings(path: Path) -> KubernetesSettings:
    """Reads and checks a settings file; ``InvalidArgumentError`` names each bad field."""
    if not path.is_file():
        raise invalid(WHERE, f"no such file: {path}")
    return settings_from_mapping(config.load_yaml(path))


def settings_from_mapping(values: Mapping[str, Any]) -> KubernetesSettings:
    """Settings from plain values, each kind laid over the defaults."""
    defaults, kinds = values.get("defaults") or {}, values.get("kinds") or {}
    if isinstance(defaults, Mapping) and isinstance(kinds, Mapping):
        merged = {
            name: config.merge(defaults, kind) if isinstance(kind, Mapping) else kind for name, kind in kinds.items()
        }
        values = {**values, "kinds": merged}
    return config.build(KubernetesSettings, values, where=WHERE)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, found {value}")
