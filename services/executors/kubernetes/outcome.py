"""Why an attempt ended, from the conditions of its object and the last state of its pods' containers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rebus.errors import (
    AbortedError,
    DeadlineExceededError,
    FailedPreconditionError,
    RebusError,
    ResourceExhaustedError,
)
from rebus.jobs import exits
from rebus.jobs.exits import Ending
from rebus.v1.common_pb2 import JobExit
from services.executors.kubernetes import workloads
from services.executors.kubernetes.pods import Object

_SIGNAL_BASE = 128  # a shell's convention, and the container runtime's: 128 + the signal
# A pod in one of these states waits for a person: the image or a Secret must be put right.
_START_ERRORS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
)


@dataclass(frozen=True)
class Interrupted:
    """The cluster took the node away: a drain, a preemption, a lost node. The job goes on elsewhere."""

    ending: Ending


def why_failed(item: Object, pods: Sequence[Object]) -> Ending | Interrupted:
    """Why a workload that has ended, but not well by its worker's own word, ended."""
    failed = workloads.failure(item) or {}
    for pod in pods:
        found = workloads.condition(pod, "DisruptionTarget")
        if found is not None:
            return _interrupted(_text(found))
    if failed.get("reason") == "PodFailurePolicy":  # our one rule: a disruption; the pod itself may be gone already
        return _interrupted(failed.get("message", "a disruption"))
    if failed.get("reason") == "DeadlineExceeded":
        text = f"the job ran longer than its bound: {failed.get('message', '')}".rstrip(": ")
        return DeadlineExceededError(text), JobExit(reason=JobExit.SIGNAL, signal="SIGTERM")
    for pod in pods:
        ending = _pod_ending(pod)
        if ending is not None:
            return ending
    if failed:
        return exits.lost(f"{failed.get('reason', 'Failed')}: {failed.get('message', 'no message')}")
    error = RebusError("the worker ended with exit code 0, but recorded no result")
    return error, JobExit(reason=JobExit.EXCEPTION)


def _interrupted(message: str) -> Interrupted:
    return Interrupted((AbortedError(f"interrupted: {message}"), JobExit(reason=JobExit.PREEMPTED)))


def _pod_ending(pod: Object) -> Ending | None:
    status = pod.get("status") or {}
    if status.get("reason") == "Evicted":  # not by a disruption: the pod went beyond a bound of its own
        error = ResourceExhaustedError(f"the pod was evicted: {status.get('message', 'no message')}")
        return error, JobExit(reason=JobExit.LOST)
    for container in _statuses(pod):
        ended = container.get("state", {}).get("terminated")
        if ended and ended["exitCode"]:
            return _container_ending(ended)
    return None


def _container_ending(ended: Object) -> Ending:
    code, lines = ended["exitCode"], ended.get("message", "").splitlines(keepends=True)
    if ended.get("reason") == "OOMKilled":
        error = ResourceExhaustedError("the worker went beyond its pod's memory limit (OOMKilled)")
        return error, JobExit(reason=JobExit.OUT_OF_MEMORY, signal="SIGKILL")
    number = ended.get("signal") or code - _SIGNAL_BASE
    return exits.of_process(-number if number in set(signal.Signals) else code, lines, oom_killed=False)


def waiting(pods: Sequence[Object]) -> str:
    """Why pods have not started, for people; empty if they have."""
    for pod in pods:
        for container in _statuses(pod):
            found = container.get("state", {}).get("waiting")
            if found and found.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                return _text(found)
        scheduled = (pod.get("status") or {}).get("conditions") or []
        for found in scheduled:
            if found["type"] == "PodScheduled" and found["status"] == "False":
                return _text(found)
    return ""


def start_error(pods: Sequence[Object], now: datetime, patience_seconds: float) -> RebusError | None:
    """The error of a pod that has not been able to start for so long, for a reason that does not pass by itself."""
    for pod in pods:
        age = (now - workloads.timestamp(pod["metadata"]["creationTimestamp"])).total_seconds()
        for container in _statuses(pod):
            found = container.get("state", {}).get("waiting") or {}
            if found.get("reason") in _START_ERRORS and age >= patience_seconds:
                return FailedPreconditionError(f"the worker's pod cannot start: {_text(found)}")
    return None


def has_output(pod: Object) -> bool:
    """Whether a container of the pod has run and ended, so that its log is whole."""
    return any("terminated" in container.get("state", {}) for container in _statuses(pod))


def _statuses(pod: Object) -> Iterator[Object]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _text(found: Object) -> str:
    return f"{found.get('reason', 'waiting')}: {found.get('message', '')}".rstrip(": ")
