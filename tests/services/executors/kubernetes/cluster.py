"""The hands of a cluster: what its Job controller and kubelets would do, done by tests over the Kubernetes API."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client

from rebus.store import Store
from services.executors.kubernetes import KubernetesExecutor
from services.executors.kubernetes.api import ClusterApi
from services.executors.kubernetes.naming import OBJECT_LABEL
from services.executors.kubernetes.settings import settings_from_mapping

Object = dict[str, Any]
NAMESPACE = "rebus"
NOW = "2026-01-01T00:00:00Z"
_PATHS = {
    "jobs": "/apis/batch/v1",
    "trainjobs": "/apis/trainer.kubeflow.org/v1alpha1",
    "pods": "/api/v1",
}


class Cluster:
    """A Kubernetes API with nobody behind it but the test."""

    def __init__(self, url: str, admin_token: str, executor_token: str, logs: Path | None = None) -> None:
        self._url, self._executor_token = url, executor_token
        self._headers = {"Authorization": f"Bearer {admin_token}"}
        self._http = urllib3.PoolManager(cert_reqs=ssl.CERT_NONE)
        # Where a server that keeps logs in files reads them; a real one asks kubelets, which there are none of.
        self.logs = logs

    def executor(self, store: Store, **settings: Any) -> KubernetesExecutor:
        """An executor of its own connection, as a service would have it."""
        configuration = client.Configuration(host=self._url)
        configuration.verify_ssl = False
        configuration.api_key = {"authorization": f"Bearer {self._executor_token}"}
        values = {
            "image": "rebus/python:0.1.0",
            "namespace": NAMESPACE,
            "watch_seconds": 1,
            "volumes": [{"claim": "store", "mount_path": "/", "read_only": False}],
            **settings,
        }
        api = ClusterApi(client.ApiClient(configuration), NAMESPACE, request_seconds=10)
        return KubernetesExecutor(store, settings_from_mapping(values), api)

    def call(self, method: str, collection: str, name: str = "", body: Object | None = None) -> Object:
        path = f"{self._url}{_PATHS[collection]}/namespaces/{NAMESPACE}/{collection}{'/' if name else ''}{name}"
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        response = self._http.request(
            method, path, body=json.dumps(body or {}) if method != "GET" else None,
            headers={**self._headers, "Content-Type": kind},
        )  # fmt: skip
        found = json.loads(response.data)
        assert response.status < 300 or response.status == 404, found
        return {} if response.status == 404 else found

    def get(self, name: str, collection: str = "jobs") -> Object:
        """An object; empty if there is none."""
        return self.call("GET", collection, name)

    def names(self, collection: str = "jobs") -> list[str]:
        return sorted(item["metadata"]["name"] for item in self.call("GET", collection)["items"])

    def start_pod(self, job: str) -> str:
        """Makes the pod of a Job, whose container waits; the pod's name."""
        item, name = self.get(job), f"{job}-pod"
        template = item["spec"]["template"]
        metadata = {**template["metadata"], "name": name, "namespace": NAMESPACE}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        self.call("POST", "pods", "", pod)
        return name

    def set_container(self, pod: str, state: Object, *, phase: str = "Running", **status: Any) -> None:
        container = {"name": "worker", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        self.call("PATCH", "pods", f"{pod}/status", {"status": {"phase": phase, "containerStatuses": [container]}})
        if status:
            self.call("PATCH", "pods", f"{pod}/status", {"status": status})

    def end_container(self, pod: str, code: int, reason: str = "", message: str = "", log: bytes = b"") -> None:
        """The container ends; what it wrote stays readable while its pod is there."""
        if self.logs is not None and log:
            (self.logs / f"{pod}.log").write_bytes(log)
        ended = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "message": message}
        self.set_container(pod, {"terminated": ended}, phase="Failed" if code else "Succeeded")

    def disrupt(self, pod: str) -> None:
        """Marks a pod as one that the cluster ends for reasons of its own."""
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "drain",
        }
        self.call("PATCH", "pods", f"{pod}/status", {"status": {"conditions": [condition]}})

    def complete(self, job: str) -> None:
        conditions = [self._condition("SuccessCriteriaMet"), self._condition("Complete")]
        self._end(job, conditions, succeeded=1, completionTime=NOW)

    def fail(self, job: str, reason: str = "BackoffLimitExceeded", message: str = "a pod failed") -> None:
        conditions = [self._condition(kind, reason, message) for kind in ("FailureTarget", "Failed")]
        self._end(job, conditions, failed=1)

    def finish_deletion(self, job: str) -> None:
        """Removes the pods of an object that is being deleted, then itself, as the garbage collector does."""
        item = self.get(job)
        assert "deletionTimestamp" in item["metadata"], "nobody deleted it"
        for pod in self.call("GET", "pods")["items"]:
            if pod["metadata"]["labels"][OBJECT_LABEL] == job:
                self.call("DELETE", "pods", pod["metadata"]["name"], {"gracePeriodSeconds": 0})
        self.call("PATCH", "jobs", job, {"metadata": {"finalizers": None}})

    def delete(self, job: str) -> None:
        """Deletes a Job as `kubectl delete` would, its pods at once."""
        self.call("DELETE", "jobs", job, {"propagationPolicy": "Foreground"})
        self.finish_deletion(job)

    def _end(self, job: str, conditions: list[Object], **status: Any) -> None:
        status = {"startTime": NOW, "active": 0, "ready": 0, "conditions": conditions, **status}
        self.call("PATCH", "jobs", f"{job}/status", {"status": status})

    def _condition(self, kind: str, reason: str = "CompletionsReached", message: str = "") -> Object:
        return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": NOW}
