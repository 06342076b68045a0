"""The executor: brings each job's object in the cluster and the job's document into line, one job at a time.

Whatever happens (a call, an event of the cluster, a restart) only names a job to look at. Looking reads the document
and the object and takes the one step that follows, so a step that is lost, repeated or taken by two services at once
does no harm: an object's name is that of its job's attempt, so it is made once, and a document changes by
compare-and-swap.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from rebus.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RebusError,
)
from rebus.jobs import ResourceRequest, exits, logs, status
from rebus.jobs.hosts import Heartbeat
from rebus.jobs.kinds import collection_of
from rebus.jobs.settings import JobSettings
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobExit, JobStatus, Resources
from services.executors.kubernetes import outcome, record, workloads
from services.executors.kubernetes.api import PODS, ClusterApi, ExpiredError
from services.executors.kubernetes.naming import JOB_ANNOTATION, OBJECT_LABEL, Attempt, selector
from services.executors.kubernetes.pods import Object
from services.executors.kubernetes.settings import KubernetesSettings, load_settings
from services.executors.kubernetes.work_queue import WorkQueue
from services.executors.kubernetes.workloads import Resource, Workload

LOG_LINES = 200
TRACE_VARIABLES = ("TRACEPARENT", "TRACESTATE")
_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.5, 60.0
_RELIST_SECONDS, _RECONNECT_SECONDS = 0.1, 2.0
_WAITING_SECONDS = 30.0
# The cluster will not change its mind about these by itself.
_FINAL = (InvalidArgumentError, PermissionDeniedError, FailedPreconditionError)

log = logging.getLogger("rebus.kubernetes")


def trace_of_environment() -> Mapping[str, str]:
    """The W3C trace context that this process was started with."""
    return {name: os.environ[name] for name in TRACE_VARIABLES if name in os.environ}


class KubernetesExecutor:
    """Runs each job as an object of a Kubernetes cluster. Any number of services may share the jobs of a store."""

    def __init__(
        self,
        store: Store,
        settings: KubernetesSettings,
        api: ClusterApi,
        *,
        trace_context: Callable[[], Mapping[str, str]] = trace_of_environment,
    ) -> None:
        settings.check_store(store.url)
        self._store = store
        self._settings = settings
        self._api = api
        self._trace_context = trace_context
        self._selector = selector(store.url)
        self._queue = WorkQueue()
        self._host = f"kubernetes-{settings.namespace}"
        # Services of other machines that run jobs of this store themselves leave ours alone while they see it.
        self._lease_seconds = JobSettings.from_environment().lease_seconds
        self._heartbeat = Heartbeat(store, self._host, self._lease_seconds)
        self._collections: set[str] = set()
        self._traces: dict[str, Mapping[str, str]] = {}
        self._retries: dict[str, int] = {}
        self._logged: set[str] = set()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()

    @classmethod
    def open(cls, store: Store, settings: Path) -> KubernetesExecutor:
        """Connects to the cluster that this process runs in, or that its kubeconfig names."""
        loaded = load_settings(settings)
        return cls(store, loaded, ClusterApi.connect(loaded.namespace, request_seconds=loaded.request_seconds))

    @property
    def host(self) -> str:
        """The same for all services that share the cluster's jobs."""
        return self._host

    def plan(self, collection: str, asked: ResourceRequest | None) -> Resources:
        """What the caller asks for; what it leaves open, or all of it, comes from the settings. The cluster decides."""
        return asked.to_proto() if asked is not None else Resources()

    def admit(self) -> None:
        """Any number may wait: the namespace's quota is the bound."""

    def submit(self, name: str) -> None:
        """Has the object of a QUEUED job made; a cluster that does not answer is asked again until it does."""
        self._traces[name] = dict(self._trace_context())
        self._look_after(collection_of(name))
        self._queue.add(name)

    def cancel(self, name: str) -> None:
        """Has the job's object deleted, and so its worker told to stop; the job was marked ``cancel_requested``."""
        self._look_after(collection_of(name))
        self._queue.add(name)

    def recover(self, collection: str) -> None:
        """Looks at every job of a collection that has not ended, and at what the cluster tells of them from now on."""
        self._look_after(collection)
        for document in documents.list_all(self._store, documents.TYPES[collection]):
            if status.job_of(document).state not in status.TERMINAL:
                self._queue.add(document.name)  # pyright: ignore[reportAttributeAccessIssue]

    def logs(self, name: str, *, follow: bool = False) -> Iterator[bytes]:
        """Lines of the job's worker (of several, the first): of its pod, or what was kept when that is gone.

        With ``follow`` until the worker ends.
        """
        attempt = self._attempt(name, record.read(self._store, name))
        pods = sorted(self._pods(attempt), key=lambda pod: pod["metadata"]["name"])
        if pods:
            yield from self._api.log(pods[0]["metadata"]["name"], _container(pods[0]), follow=follow)
        else:
            for data in logs.read(self._store, name):
                yield from data.splitlines(keepends=True)

    def close(self) -> None:
        """Stops looking after jobs; they go on."""
        self._closed.set()
        self._queue.close()

    def _look_after(self, collection: str) -> None:
        with self._starting:
            self._collections.add(collection)
            if self._threads:
                return
            resources = [*(workload.resource for workload in workloads.in_use(self._settings)), PODS]
            self._threads = [threading.Thread(target=self._reconcile_all, name="rebus-kubernetes", daemon=True)]
            self._threads.append(threading.Thread(target=self._beat, name="rebus-heartbeat", daemon=True))
            self._threads += [
                threading.Thread(target=self._watch, args=(r,), name=f"rebus-{r.plural}", daemon=True)
                for r in resources
            ]
        for thread in self._threads:
            thread.start()

    def _beat(self) -> None:
        while not self._closed.wait(self._lease_seconds / 6):
            try:
                self._heartbeat.beat()
            except RebusError as error:
                log.warning("no sign of life was written: %s", error)

    # What the cluster tells

    def _watch(self, resource: Resource) -> None:
        """Lists, then watches from there; anew when the watch ends, and when its version has expired."""
        listed: set[str] = set()
        while not self._closed.is_set():
            try:
                items, version = self._api.list(resource, self._selector)
                vanished, listed = listed, {_job_of(item) for item in items}
                for name in vanished - listed:
                    self._add_seen(name)
                for item in items:
                    self._see(resource, item)
                for item in self._api.watch(resource, self._selector, version, self._settings.watch_seconds):
                    listed.add(_job_of(item))
                    self._see(resource, item)
            except ExpiredError:
                self._closed.wait(_RELIST_SECONDS)
            except RebusError as error:
                log.warning("watching %s: %s", resource.plural, error)
                self._closed.wait(_RECONNECT_SECONDS)
            except Exception:  # this thread must outlive whatever a cluster may send
                log.exception("watching %s", resource.plural)
                self._closed.wait(_RECONNECT_SECONDS)

    def _see(self, resource: Resource, item: Object) -> None:
        self._add_seen(_job_of(item))
        ended = workloads.finished_at(item) if not resource.expires else None
        if ended is not None:
            self._expire(resource, item, ended)

    def _add_seen(self, name: str) -> None:
        if name.partition("/")[0] in self._collections:
            self._queue.add(name)

    def _expire(self, resource: Resource, item: Object, ended: datetime) -> None:
        """Deletes an ended object whose kind the cluster does not remove by itself; each listing shows it again."""
        if (datetime.now(UTC) - ended).total_seconds() >= self._settings.ttl_seconds_after_finished:
            self._api.delete(resource, item)

    # What follows from it

    def _reconcile_all(self) -> None:
        while (name := self._queue.get()) is not None:
            try:
                self._reconcile(name)
                self._retries.pop(name, None)
            except RebusError as error:
                log.warning("%s: %s", name, error)
                self._retry(name)
            except Exception:  # as above
                log.exception("%s", name)
                self._retry(name)

    def _retry(self, name: str) -> None:
        count = self._retries[name] = self._retries.get(name, -1) + 1
        self._queue.add(name, min(_FIRST_RETRY_SECONDS * 2**count, _MAX_RETRY_SECONDS))

    def _reconcile(self, name: str) -> None:
        """Takes the next step for one job."""
        try:
            job = record.read(self._store, name)
        except NotFoundError:
            return
        attempt = self._attempt(name, job)
        workload = workloads.workload_of(attempt.collection, self._settings)
        item = self._api.get(workload.resource, attempt.object_name)
        if item is not None and _job_of(item) != name:
            error = AlreadyExistsError(f"an object {attempt.object_name} that is not of this job is in the way")
            record.failed(self._store, name, attempt.number, (error, JobExit()))
        elif job.state in status.TERMINAL:
            if item is not None:
                self._keep_log(attempt)
        elif job.state == JobStatus.PREEMPTED:
            self._preempted(job, attempt, workload, item)
        elif item is None:
            self._without_object(job, attempt, workload)
        elif "deletionTimestamp" in item["metadata"]:
            self._keep_log(attempt)  # the rest follows when it is gone
        elif workloads.finished_at(item) is not None:
            self._ended(job, attempt, workload, item)
        elif job.cancel_requested:
            self._api.delete(workload.resource, item)
        elif job.state == JobStatus.QUEUED:
            self._not_started(job, attempt, workload, item)

    def _preempted(self, job: JobStatus, attempt: Attempt, workload: Workload, item: Object | None) -> None:
        """Queues a job again once its pod is gone, which its worker or this executor has said to be interrupted."""
        if item is not None and workloads.finished_at(item) is None:
            if job.cancel_requested and "deletionTimestamp" not in item["metadata"]:
                self._api.delete(workload.resource, item)
            return
        if item is not None:
            self._keep_log(attempt)
        if job.cancel_requested:
            record.cancelled(self._store, attempt.job)
        else:
            record.requeue(self._store, attempt.job, attempt.number, self._host)
            self._queue.add(attempt.job)

    def _without_object(self, job: JobStatus, attempt: Attempt, workload: Workload) -> None:
        if job.cancel_requested:
            record.cancelled(self._store, attempt.job)
        elif job.state != JobStatus.QUEUED:
            ending = exits.lost(f"the cluster's object {attempt.object_name} was deleted")
            record.failed(self._store, attempt.job, attempt.number, ending)
        elif not self._is_previous_at_work(attempt, workload):
            self._create(attempt, workload)

    def _is_previous_at_work(self, attempt: Attempt, workload: Workload) -> bool:
        """Whether the attempt before this one still holds a pod; it is told to let go, and its end brings us back."""
        previous = Attempt(attempt.job, attempt.number - 1, attempt.store_url)
        item = self._api.get(workload.resource, previous.object_name) if previous.number else None
        if item is None or workloads.finished_at(item) is not None:
            return False
        if "deletionTimestamp" not in item["metadata"]:
            self._api.delete(workload.resource, item)
        return True

    def _create(self, attempt: Attempt, workload: Workload) -> None:
        variables = {n: os.environ[n] for n in self._settings.environment if n in os.environ}
        variables |= self._traces.get(attempt.job, {})
        asked = record.read(self._store, attempt.job).resources
        settings = self._settings.asking(attempt.collection, asked)
        try:
            self._api.create(workload.resource, workload.build(attempt, settings, variables))
        except AlreadyExistsError:
            pass  # another service was first: this is success
        except _FINAL as error:
            record.failed(self._store, attempt.job, attempt.number, (error, JobExit()))
        self._traces.pop(attempt.job, None)

    def _not_started(self, job: JobStatus, attempt: Attempt, workload: Workload, item: Object) -> None:
        pods = self._pods(attempt)
        error = outcome.start_error(pods, datetime.now(UTC), self._settings.start_error_seconds)
        if error is not None:
            self._api.delete(workload.resource, item)
            record.failed(self._store, attempt.job, attempt.number, (error, JobExit()))
            return
        reason = outcome.waiting(pods)
        if reason:
            record.waits(self._store, attempt.job, job, reason)
            self._queue.add(attempt.job, min(_WAITING_SECONDS, self._settings.start_error_seconds))

    def _ended(self, job: JobStatus, attempt: Attempt, workload: Workload, item: Object) -> None:
        """The object has ended, and its worker has not said how."""
        self._keep_log(attempt)
        found = outcome.why_failed(item, self._pods(attempt))
        started = job.state != JobStatus.QUEUED
        if not started:  # the next attempt has the same number and so the same name
            self._api.delete(workload.resource, item)
        if job.cancel_requested:
            record.cancelled(self._store, attempt.job)
        elif not isinstance(found, outcome.Interrupted):
            record.failed(self._store, attempt.job, attempt.number, found)
        elif started:
            limit = self._settings.max_preemptions
            record.interrupted(self._store, attempt.job, attempt.number, found.ending, max_preemptions=limit)
            self._queue.add(attempt.job)

    def _keep_log(self, attempt: Attempt) -> None:
        """Stores the last output of a worker that has ended, once: its pod will not be there for ever."""
        if attempt.object_name in self._logged:
            return
        pods = sorted((p for p in self._pods(attempt) if outcome.has_output(p)), key=lambda p: p["metadata"]["name"])
        lines = b"".join(
            line
            for pod in pods[:1]
            for line in self._api.log(pod["metadata"]["name"], _container(pod), tail_lines=LOG_LINES)
        )
        if pods:
            record.keep_log(self._store, attempt.job, attempt.number, lines)
            self._logged.add(attempt.object_name)

    def _attempt(self, name: str, job: JobStatus) -> Attempt:
        return Attempt(name, record.current_attempt(job), self._store.url)

    def _pods(self, attempt: Attempt) -> list[Object]:
        return self._api.list(PODS, f"{self._selector},{OBJECT_LABEL}={attempt.object_name}")[0]


def _job_of(item: Object) -> str:
    """The job that an object or a pod belongs to; empty for what is not ours."""
    return item["metadata"].get("annotations", {}).get(JOB_ANNOTATION, "")


def _container(pod: Object) -> str:
    """The container that does the work."""
    names = [container["name"] for container in pod["spec"]["containers"]]
    return next((name for name in names if name in workloads.CONTAINERS), names[0])
