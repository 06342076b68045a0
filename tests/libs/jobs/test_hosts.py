"""A host is gone when its signs of life stop changing, by the watcher's own clock."""

from __future__ import annotations

from pathlib import Path

from rebus.jobs import hosts, status
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.training_pb2 import Run


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_host_is_gone_a_lease_after_its_last_sign(any_store: Store) -> None:
    clock = Clock()
    watch, heart = hosts.HostWatch(any_store, 30.0, clock), hosts.Heartbeat(any_store, "h", 0.0)
    assert not watch.is_gone("h")
    clock.now += 29
    heart.beat()
    assert not watch.is_gone("h")
    clock.now += 29
    assert not watch.is_gone("h")
    clock.now += 1
    assert watch.is_gone("h")
    heart.beat()
    assert not watch.is_gone("h")


def test_a_host_that_never_gave_a_sign_has_a_lease_from_the_first_look(store: Store) -> None:
    clock = Clock()
    watch = hosts.HostWatch(store, 30.0, clock)
    assert not watch.is_gone("h")
    clock.now += 30
    assert watch.is_gone("h")


def test_a_heart_beats_three_times_in_a_lease(store: Store) -> None:
    heart = hosts.Heartbeat(store, "h", 3600.0)
    heart.beat()
    first = store.get("hosts/h.json")
    heart.beat()
    assert store.get("hosts/h.json") == first


def test_a_cluster_answers_for_its_jobs_itself(store: Store) -> None:
    clock, name = Clock(), f"{hosts.CLUSTER}team"
    watch = hosts.HostWatch(store, 30.0, clock)
    for _ in range(2):
        assert not watch.is_gone(name)
        clock.now += 3600
    run = status.create(store, Run(), host=name)[0].name
    for state in (JobStatus.RUNNING, JobStatus.PREEMPTED, JobStatus.QUEUED):
        assert status.transition(store, run, state)
    assert documents.get(store, Run, run).job.host == name


def test_a_host_is_a_boot_a_container_and_a_cache_folder(tmp_path: Path) -> None:
    assert hosts.host_id(tmp_path / "a") == hosts.host_id(tmp_path / "a")
    assert hosts.host_id(tmp_path / "a") != hosts.host_id(tmp_path / "b")
