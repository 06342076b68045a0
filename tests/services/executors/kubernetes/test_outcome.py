"""Conditions and container states as a cluster reports them, and the errors they become."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from rebus.errors import (
    AbortedError,
    DeadlineExceededError,
    FailedPreconditionError,
    RebusError,
    ResourceExhaustedError,
)
from services.executors.kubernetes import outcome, workloads
from services.executors.kubernetes.outcome import Interrupted

Object = dict[str, Any]


def failed(reason: str, message: str = "") -> Object:
    return {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": message}]}}


def pod(*conditions: Object, terminated: Object | None = None, waiting: Object | None = None, **status: Any) -> Object:
    state = {"terminated": terminated} if terminated else {"waiting": waiting} if waiting else {}
    return {
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"conditions": list(conditions), "containerStatuses": [{"name": "worker", "state": state}], **status},
    }


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "node lost"}


@pytest.mark.parametrize(
    ("item", "pods", "kind", "text"),
    [
        (failed("BackoffLimitExceeded"), [pod(terminated={"exitCode": 137, "reason": "OOMKilled"})],
         ResourceExhaustedError, "memory limit"),
        (failed("BackoffLimitExceeded"), [pod(terminated={"exitCode": 137, "reason": "Error"})],
         AbortedError, "killed by SIGKILL"),
        (failed("BackoffLimitExceeded"), [pod(terminated={"exitCode": 139, "reason": "Error"})],
         AbortedError, "killed by SIGSEGV"),
        (failed("BackoffLimitExceeded"), [pod(terminated={"exitCode": 3, "message": "a\nb\n"})],
         RebusError, "exit code 3: a\nb"),
        (failed("BackoffLimitExceeded"), [pod(terminated={"exitCode": 3})], RebusError, "exit code 3: no output"),
        (failed("DeadlineExceeded", "too long"), [pod(terminated={"exitCode": 143})],
         DeadlineExceededError, "longer than its bound: too long"),
        (failed("BackoffLimitExceeded"), [pod(reason="Evicted", message="ephemeral local storage")],
         ResourceExhaustedError, "evicted: ephemeral local storage"),
        (failed("JobSetFailed", "x"), [], AbortedError, "JobSetFailed: x"),
        ({"status": {}}, [pod(terminated={"exitCode": 0})], RebusError, "recorded no result"),
    ],
)  # fmt: skip
def test_failures(item: Object, pods: list[Object], kind: type[RebusError], text: str) -> None:
    found = outcome.why_failed(item, pods)
    assert not isinstance(found, Interrupted)
    error, exit = found
    assert type(error) is kind
    assert text in str(error)
    assert exit.reason


@pytest.mark.parametrize(
    ("item", "pods"),
    [
        (failed("BackoffLimitExceeded"), [pod(), pod(DISRUPTED, terminated={"exitCode": 143})]),
        (failed("PodFailurePolicy", "matching FailJob rule"), []),
        (failed("BackoffLimitExceeded"), [pod(DISRUPTED, reason="Evicted", message="the node was low on memory")]),
    ],
)
def test_disruptions_are_no_failures(item: Object, pods: list[Object]) -> None:
    assert isinstance(outcome.why_failed(item, pods), Interrupted)


def test_conditions_of_the_three_kinds() -> None:
    for kind, ended in (("Complete", True), ("Succeeded", True), ("Running", False), ("Suspended", False)):
        condition = {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        item = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": [condition]}}
        assert (workloads.finished_at(item) is not None, workloads.succeeded(item)) == (ended, ended)
        condition["status"] = "False"
        assert workloads.finished_at(item) is None


def test_only_what_does_not_pass_by_itself_is_a_start_error() -> None:
    soon, late = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC), datetime(2026, 1, 1, 0, 1, 0, tzinfo=UTC)
    broken = [pod(waiting={"reason": "ErrImagePull", "message": "no such image"})]
    assert outcome.start_error(broken, soon, 30) is None
    assert isinstance(outcome.start_error(broken, late, 30), FailedPreconditionError)
    assert outcome.start_error([pod(waiting={"reason": "ContainerCreating"})], late, 30) is None
    pending = [pod({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"})]
    assert outcome.start_error(pending, late, 30) is None
    assert outcome.waiting(pending) == "Unschedulable: 0/3"
    assert outcome.waiting([pod(waiting={"reason": "ContainerCreating"})]) == ""
