"""A job's whole life in a cluster. The tests do the cluster's part, and the worker's, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.rpc import code_pb2

from rebus.errors import CancelledError, InvalidArgumentError
from rebus.jobs import status
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.training_pb2 import Run
from services.executors.kubernetes import KubernetesExecutor
from services.executors.kubernetes.naming import ATTEMPT_ANNOTATION, JOB_ANNOTATION
from tests.services.executors.kubernetes.api_server import ApiServer
from tests.services.executors.kubernetes.cluster import Cluster
from tests.waiting import until

WAIT_SECONDS = 60.0
Opened = Callable[..., KubernetesExecutor]


@pytest.fixture
def opened(store: Store) -> Iterator[Callable[..., KubernetesExecutor]]:
    """Opens executors; each stops with the test."""
    executors: list[KubernetesExecutor] = []

    def open_on(cluster: Cluster, **settings: Any) -> KubernetesExecutor:
        executors.append(cluster.executor(store, **settings))
        return executors[-1]

    yield open_on
    for executor in executors:
        executor.close()


@pytest.fixture
def name(store: Store) -> str:
    """A new job."""
    return status.create(store, Run())[0].name


def object_of(name: str, attempt: int = 1) -> str:
    return f"rebus-{name.replace('/', '-')}-{attempt}"


def job(store: Store, name: str) -> JobStatus:
    return documents.get(store, Run, name).job


def start(cluster: Cluster, store: Store, name: str, attempt: int = 1) -> tuple[str, str]:
    """The cluster makes the pod, and its worker begins; the names of the object and the pod."""
    object_name = object_of(name, attempt)
    until(lambda: cluster.get(object_name))
    pod = cluster.start_pod(object_name)
    assert status.transition(store, name, JobStatus.RUNNING)
    cluster.set_container(pod, {"running": {}})
    return object_name, pod


def ended(store: Store, name: str, state: status.State) -> JobStatus:
    return until(lambda: found if (found := job(store, name)).state == state else None)


def test_a_job_runs_to_its_end(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    opened(cluster).submit(name)
    object_name, pod = start(cluster, store, name)
    annotations = cluster.get(object_name)["metadata"]["annotations"]
    assert (annotations[JOB_ANNOTATION], annotations[ATTEMPT_ANNOTATION]) == (name, "1")
    status.transition(store, name, JobStatus.SUCCEEDED)
    cluster.end_container(pod, 0, log=b"one\ntwo\n")
    cluster.complete(object_name)
    if cluster.logs:
        until(lambda: store.exists(f"{name}/logs/000001.txt"))
        assert store.get(f"{name}/logs/000001.txt") == b"one\ntwo\n"
    assert (job(store, name).state, job(store, name).attempts) == (JobStatus.SUCCEEDED, 1)


def test_many_services_start_a_job_once(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    for _ in range(4):
        executor = opened(cluster)
        executor.recover("runs")
        executor.submit(name)
        executor.submit(name)
    object_name, _ = start(cluster, store, name)
    uid = cluster.get(object_name)["metadata"]["uid"]
    status.transition(store, name, JobStatus.SUCCEEDED)
    cluster.complete(object_name)
    other = status.create(store, Run())[0].name
    opened(cluster).submit(other)
    until(lambda: cluster.get(object_of(other)))
    assert cluster.get(object_name)["metadata"]["uid"] == uid
    assert [n for n in cluster.names() if n.startswith(object_name[:-1])] == [object_name]


def test_cancel_stops_the_worker_first(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    executor = opened(cluster)
    executor.submit(name)
    object_name, _ = start(cluster, store, name)
    status.request_cancel(store, name)
    executor.cancel(name)
    item = until(lambda: i if "deletionTimestamp" in (i := cluster.get(object_name))["metadata"] else None)
    assert item["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert item["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 60
    assert job(store, name).state == JobStatus.RUNNING, "while its worker may still be at work"
    cluster.finish_deletion(object_name)
    assert ended(store, name, JobStatus.CANCELLED).error.code == code_pb2.CANCELLED


def test_cancel_keeps_what_the_worker_says(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    executor = opened(cluster)
    executor.submit(name)
    object_name, pod = start(cluster, store, name)
    status.request_cancel(store, name)
    executor.cancel(name)
    until(lambda: "deletionTimestamp" in cluster.get(object_name)["metadata"])
    status.transition(store, name, JobStatus.CANCELLED, error=CancelledError("at step 7"))
    cluster.end_container(pod, 0, log=b"stopping\n")
    if cluster.logs:
        until(lambda: store.exists(f"{name}/logs/000001.txt"))
    cluster.finish_deletion(object_name)
    until(lambda: object_name not in cluster.names())
    assert job(store, name).error.message == "at step 7"


def test_cancel_before_there_is_an_object(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    status.request_cancel(store, name)
    opened(cluster).cancel(name)
    ended(store, name, JobStatus.CANCELLED)
    assert object_of(name) not in cluster.names()


def test_out_of_memory_is_reported(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    opened(cluster).submit(name)
    object_name, pod = start(cluster, store, name)
    cluster.end_container(pod, 137, "OOMKilled")
    cluster.fail(object_name)
    error = ended(store, name, JobStatus.FAILED).error
    assert error.code == code_pb2.RESOURCE_EXHAUSTED
    assert "memory limit" in error.message


def test_a_drained_node_starts_the_job_elsewhere(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    opened(cluster).submit(name)
    object_name, pod = start(cluster, store, name)
    cluster.disrupt(pod)
    cluster.end_container(pod, 143)
    cluster.fail(object_name, "PodFailurePolicy", "Pod has condition DisruptionTarget")
    until(lambda: cluster.get(object_of(name, 2)))
    assert (job(store, name).state, job(store, name).attempts) == (JobStatus.QUEUED, 1)
    second, _ = start(cluster, store, name, 2)
    status.transition(store, name, JobStatus.SUCCEEDED)
    cluster.complete(second)
    assert (job(store, name).state, job(store, name).attempts) == (JobStatus.SUCCEEDED, 2)


def test_a_worker_that_was_told_to_stop_by_the_cluster_goes_on(
    cluster: Cluster, opened: Opened, store: Store, name: str
) -> None:
    opened(cluster).submit(name)
    object_name, pod = start(cluster, store, name)
    status.transition(store, name, JobStatus.PREEMPTED)
    cluster.end_container(pod, 0)
    cluster.complete(object_name)
    until(lambda: cluster.get(object_of(name, 2)))
    assert job(store, name).state == JobStatus.QUEUED


def test_interruptions_are_bounded(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    opened(cluster, max_preemptions=0).submit(name)
    object_name, pod = start(cluster, store, name)
    cluster.disrupt(pod)
    cluster.fail(object_name, "PodFailurePolicy")
    assert "interrupted: " in ended(store, name, JobStatus.FAILED).error.message


def test_a_resumed_job_is_a_new_object(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    executor = opened(cluster)
    executor.submit(name)
    object_name, pod = start(cluster, store, name)
    cluster.end_container(pod, 1, message="Traceback\nValueError: bad\n")
    cluster.fail(object_name)
    assert "exit code 1: Traceback\nValueError: bad" in ended(store, name, JobStatus.FAILED).error.message
    status.requeue(store, name)
    executor.submit(name)
    until(lambda: cluster.get(object_of(name, 2)))
    assert object_name in cluster.names(), "the first one stays for those who ask why it failed"


def test_two_attempts_never_hold_pods_at_once(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    executor = opened(cluster)
    executor.submit(name)
    object_name, _ = start(cluster, store, name)
    status.transition(store, name, JobStatus.FAILED)  # recorded, while its pod has not ended
    status.requeue(store, name)
    executor.submit(name)
    until(lambda: "deletionTimestamp" in cluster.get(object_name)["metadata"])
    assert object_of(name, 2) not in cluster.names()
    cluster.finish_deletion(object_name)
    until(lambda: cluster.get(object_of(name, 2)))


def test_an_object_that_somebody_deleted(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    opened(cluster).submit(name)
    object_name, _ = start(cluster, store, name)
    cluster.delete(object_name)
    error = ended(store, name, JobStatus.FAILED).error
    assert (error.code, object_name in error.message) == (code_pb2.ABORTED, True)


def test_a_worker_that_dies_before_it_begins(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    executor = opened(cluster)
    executor.submit(name)
    object_name = object_of(name)
    until(lambda: cluster.get(object_name))
    uid = cluster.get(object_name)["metadata"]["uid"]
    pod = cluster.start_pod(object_name)
    cluster.end_container(pod, 1, message="ModuleNotFoundError: no module named rebus")
    cluster.fail(object_name)
    assert "ModuleNotFoundError" in ended(store, name, JobStatus.FAILED).error.message
    status.requeue(store, name)
    executor.submit(name)
    cluster.finish_deletion(object_name)
    again = until(lambda: cluster.get(object_name))
    assert again["metadata"]["uid"] != uid, "its attempt has the same number, so the old object made way"


def test_a_pod_that_cannot_start(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    opened(cluster, start_error_seconds=1).submit(name)
    object_name = object_of(name)
    until(lambda: cluster.get(object_name))
    pod = cluster.start_pod(object_name)
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    cluster.set_container(pod, waiting, phase="Pending")
    error = ended(store, name, JobStatus.FAILED).error
    assert (error.code, error.message.endswith("ImagePullBackOff: no such image")) == (
        code_pb2.FAILED_PRECONDITION,
        True,
    )
    assert "deletionTimestamp" in cluster.get(object_name)["metadata"]


def test_people_see_what_a_job_waits_for(cluster: Cluster, opened: Opened, store: Store, name: str) -> None:
    opened(cluster).submit(name)
    until(lambda: cluster.get(object_of(name)))
    pod = cluster.start_pod(object_of(name))
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    cluster.call("PATCH", "pods", f"{pod}/status", {"status": {"conditions": [unschedulable]}})
    until(lambda: job(store, name).message == "Unschedulable: 0/3 nodes")
    assert job(store, name).state == JobStatus.QUEUED


def test_a_restarted_service_finds_its_jobs(cluster: Cluster, opened: Opened, store: Store) -> None:
    running, failed, queued = (status.create(store, Run())[0].name for _ in range(3))
    first = opened(cluster)
    first.submit(running)
    first.submit(failed)
    kept, _ = start(cluster, store, running)
    object_name, pod = start(cluster, store, failed)
    uid = cluster.get(kept)["metadata"]["uid"]
    first.close()
    cluster.end_container(pod, 137, "OOMKilled")
    cluster.fail(object_name)
    second = opened(cluster)
    second.recover("runs")
    ended(store, failed, JobStatus.FAILED)
    until(lambda: cluster.get(object_of(queued)))
    assert job(store, running).state == JobStatus.RUNNING
    assert cluster.get(kept)["metadata"]["uid"] == uid
    cluster.complete(kept)
    assert "recorded no result" in ended(store, running, JobStatus.FAILED).error.message


def test_a_lost_cancellation_is_carried_out_by_recovery(
    cluster: Cluster, opened: Opened, store: Store, name: str
) -> None:
    first = opened(cluster)
    first.submit(name)
    object_name, _ = start(cluster, store, name)
    first.close()
    status.request_cancel(store, name)
    opened(cluster).recover("runs")
    until(lambda: "deletionTimestamp" in cluster.get(object_name)["metadata"])


def test_a_version_that_expired_is_listed_anew(
    api: ApiServer, small_cluster: Cluster, opened: Opened, store: Store, name: str
) -> None:
    opened(small_cluster, watch_seconds=600).submit(name)
    object_name, pod = start(small_cluster, store, name)
    until(lambda: ("watch", "jobs") in api.state.calls)
    listings = api.state.calls.count(("list", "jobs"))
    small_cluster.end_container(pod, 137, "OOMKilled")
    api.forget_history()
    until(lambda: api.state.calls.count(("list", "jobs")) > listings)
    small_cluster.fail(object_name)
    ended(store, name, JobStatus.FAILED)


def test_a_cluster_that_does_not_answer_is_asked_again(
    api: ApiServer, small_cluster: Cluster, opened: Opened, store: Store, name: str
) -> None:
    api.refuse_next(503, 503, 503)
    opened(small_cluster).submit(name)
    until(lambda: small_cluster.get(object_of(name)))
    assert job(store, name).state == JobStatus.QUEUED


def test_what_the_cluster_refuses_for_good_fails_the_job(
    api: ApiServer, small_cluster: Cluster, opened: Opened, store: Store, name: str
) -> None:
    api.state.rules = [{**rule, "verbs": [v for v in rule["verbs"] if v != "create"]} for rule in api.state.rules]
    opened(small_cluster).submit(name)
    error = ended(store, name, JobStatus.FAILED).error
    assert error.code == code_pb2.PERMISSION_DENIED
    assert "create jobs" in error.message


def test_logs_are_streamed_while_the_worker_runs(
    small_cluster: Cluster, opened: Opened, store: Store, name: str
) -> None:
    executor = opened(small_cluster)
    executor.submit(name)
    _, pod = start(small_cluster, store, name)
    assert small_cluster.logs is not None
    path = small_cluster.logs / f"{pod}.log"
    assert list(executor.logs(name)) == []
    path.write_bytes(b"first\n")
    lines = executor.logs(name, follow=True)
    assert next(lines) == b"first\n"
    path.write_bytes(b"first\nsecond\n")
    assert next(lines) == b"second\n"
    small_cluster.end_container(pod, 0)
    assert list(lines) == []


def test_an_ended_trainjob_is_removed_after_its_time(
    api: ApiServer, small_cluster: Cluster, opened: Opened, store: Store, name: str
) -> None:
    opened(small_cluster, kinds={"runs": {"workload": "trainjob", "num_nodes": 2}}).submit(name)
    object_name = object_of(name)
    until(lambda: small_cluster.get(object_name, "trainjobs"))
    status.transition(store, name, JobStatus.RUNNING)
    status.transition(store, name, JobStatus.SUCCEEDED)
    done = {"type": "Complete", "status": "True", "reason": "x", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    small_cluster.call("PATCH", "trainjobs", f"{object_name}/status", {"status": {"conditions": [done]}})
    until(lambda: "deletionTimestamp" in small_cluster.get(object_name, "trainjobs")["metadata"])


def test_the_role_allows_what_is_needed_and_no_more(
    api: ApiServer, small_cluster: Cluster, opened: Opened, store: Store, name: str
) -> None:
    executor = opened(small_cluster)
    executor.submit(name)
    object_name, pod = start(small_cluster, store, name)
    small_cluster.end_container(pod, 0, log=b"x\n")
    assert list(executor.logs(name))
    status.request_cancel(store, name)
    executor.cancel(name)
    until(lambda: "deletionTimestamp" in small_cluster.get(object_name)["metadata"])
    until(lambda: {("watch", "jobs"), ("watch", "pods")} <= set(api.state.calls))
    granted = {
        (verb, resource)
        for rule in api.state.rules
        if rule["apiGroups"][0] in ("", "batch")
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == set(api.state.calls)


def test_the_worker_gets_the_trace_and_the_named_variables(
    small_cluster: Cluster, opened: Opened, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    monkeypatch.setenv("TRACEPARENT", trace)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    opened(small_cluster, environment=["AWS_REGION", "AWS_SECRET_ACCESS_KEY"]).submit(name)
    item = until(lambda: small_cluster.get(object_of(name)))
    values = {v["name"]: v.get("value") for v in item["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert (values["TRACEPARENT"], values["AWS_REGION"]) == (trace, "us-east-1")
    assert values["AWS_SECRET_ACCESS_KEY"] is None


def test_a_store_that_pods_cannot_reach_is_refused(small_cluster: Cluster, store: Store) -> None:
    with pytest.raises(InvalidArgumentError, match="store: .* is a folder of this machine"):
        small_cluster.executor(store, volumes=[])
