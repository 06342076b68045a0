"""Random histories: gc keeps whatever is reached or may still be, and removes the rest."""

from __future__ import annotations

import secrets
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebus.config import digest
from rebus.errors import DataLossError
from rebus.jobs import status
from rebus.jobs.events import EventLog
from rebus.store import Store, documents, maintenance, manifests, requests
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import Dataset, DatasetVersion
from rebus.v1.training_pb2 import CreateRunRequest, Run

RUNS, STEPS, FILES = range(3), range(3), range(4)
run_ids, step_ids = st.sampled_from(RUNS), st.sampled_from(STEPS)
PLAIN = st.one_of(
    st.tuples(st.just("start"), run_ids),
    st.tuples(st.just("write"), run_ids, step_ids),
    st.tuples(st.just("publish"), run_ids, step_ids),
    st.tuples(st.just("end"), run_ids),
    st.tuples(st.just("requeue"), run_ids),
    st.tuples(st.just("half_delete"), run_ids),
    st.tuples(st.just("leave"), st.sampled_from(FILES)),
    st.tuples(st.just("version"), st.sets(st.sampled_from(FILES), min_size=1)),
)
# A collection, and what happens between its search and its removals.
GC = st.tuples(st.just("gc"), st.lists(PLAIN, max_size=4))


class History:
    """A store, and what must be found in it: path -> bytes."""

    def __init__(self) -> None:
        self.store = Store.open(f"memory://gc-{secrets.token_hex(8)}")
        documents.create(self.store, Dataset(name="datasets/d"))
        self.written: dict[int, dict[str, bytes]] = {run: {} for run in RUNS}  # by a job, since it was accepted
        self.published: dict[int, dict[str, bytes]] = {run: {} for run in RUNS}
        self.rows: dict[str, bytes] = {}
        self.states: dict[int, str] = {}
        self.versions = 0

    def apply(self, action: str, *values: Any) -> None:
        getattr(self, action)(*values)

    def start(self, run: int) -> None:
        if run in self.states:
            return
        documents.create(self.store, _running(f"runs/{run}"))
        EventLog(self.store, f"runs/{run}").append([("state", {"state": "RUNNING"})])
        self.states[run] = "active"

    def write(self, run: int, step: int) -> None:
        """As a checkpoint is written: what lies there unpublished is replaced."""
        folder = f"runs/{run}/checkpoints/step-{step}"
        if self.states.get(run) != "active" or self.store.exists(f"{folder}/manifest.json"):
            return
        self.store.delete_prefix(folder)
        for part in ("model.bin", "state.json"):
            self.written[run][f"{folder}/{part}"] = data = secrets.token_bytes(8)
            self.store.put(f"{folder}/{part}", data)

    def publish(self, run: int, step: int) -> None:
        folder = f"runs/{run}/checkpoints/step-{step}"
        parts = {path: data for path, data in self.written[run].items() if path.startswith(f"{folder}/")}
        if self.states.get(run) != "active" or not parts or self.store.exists(f"{folder}/manifest.json"):
            return
        manifests.publish(self.store, folder)
        self.published[run] |= parts

    def end(self, run: int) -> None:
        if self.states.get(run) == "active":
            status.transition(self.store, f"runs/{run}", JobStatus.FAILED)
            self.states[run] = "ended"

    def requeue(self, run: int) -> None:
        if self.states.get(run) == "ended":
            status.requeue(self.store, f"runs/{run}")
            self.states[run] = "active"
            self.written[run] = dict(self.published[run])  # it counts on no more than this until it writes again

    def half_delete(self, run: int) -> None:
        """A deletion that is killed after the document and the manifests are gone."""
        if self.states.get(run) != "ended":
            return
        self.store.delete(documents.path_of(f"runs/{run}"))
        for info in list(self.store.list(f"runs/{run}")):
            if info.path.endswith("manifest.json"):
                self.store.delete(info.path)
        self.states[run] = "deleted"

    def leave(self, file: int) -> None:
        """What a killed writer of a dataset leaves."""
        path = f"datasets/d/data.lance/data/{file}.lance"
        if path not in self.rows:
            self.store.put(path, b"left")

    def version(self, files: set[int]) -> None:
        """New versions share objects with those before them."""
        self.versions += 1
        paths = [f"data.lance/data/{file}.lance" for file in sorted(files)]
        for path in paths:
            if f"datasets/d/{path}" not in self.rows:
                self.rows[f"datasets/d/{path}"] = data = secrets.token_bytes(8)
                self.store.put(f"datasets/d/{path}", data)
        name = f"datasets/d/versions/{self.versions}"
        manifest = manifests.publish(self.store, name, paths, base="datasets/d")
        documents.create(self.store, DatasetVersion(name=name, digest=manifest.digest))

    def gc(self, meanwhile: list[Any]) -> None:
        found = maintenance.garbage(self.store, now=_later())
        for action in meanwhile:
            self.apply(*action)
        maintenance.collect(self.store, found)
        self.check()

    def reachable(self) -> dict[str, bytes]:
        found = dict(self.rows)
        for run, state in self.states.items():
            found |= {"active": self.written[run], "ended": self.published[run], "deleted": {}}[state]
        return found

    def check(self) -> None:
        for path, data in self.reachable().items():
            assert self.store.get(path) == data
        for run, state in self.states.items():
            if state != "deleted":
                assert next(EventLog(self.store, f"runs/{run}").read()).sequence == 1
        assert maintenance.fsck(self.store) == []


def _running(name: str) -> Run:
    run = Run(name=name, recipe="{}", recipe_digest=digest({}), job=JobStatus(state=JobStatus.RUNNING))
    run.job.create_time.GetCurrentTime()
    return run


def _later() -> datetime:
    """Far enough from now that the grace period protects nothing."""
    return datetime.now(UTC) + timedelta(days=30)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(actions=st.lists(st.one_of(PLAIN, PLAIN, GC), max_size=25))
def test_gc_keeps_what_is_reached_and_nothing_else(actions: list[Any]) -> None:
    history = History()
    for action in actions:
        history.apply(*action)
    for run in RUNS:
        history.end(run)
    history.gc([])
    left = {info.path for info in history.store.list() if info.path.endswith((".bin", ".lance", "state.json"))}
    assert left == set(history.reachable())
    gone = [f"runs/{run}" for run, state in history.states.items() if state == "deleted"]
    assert [path for path in gone if list(history.store.list(path))] == []


@pytest.mark.parametrize("kind", ["store", "memory_store"])
def test_a_job_that_works_during_gc_loses_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    """One thread writes, publishes and ends jobs; this one collects without any grace, all the time."""
    store: Store = request.getfixturevalue(kind)
    done, failures, rounds, number = threading.Event(), [], 0, 0

    def work() -> None:
        nonlocal number
        try:
            for number in range(200):
                if number > 6 and rounds > 6:
                    return
                name = f"runs/{number}"
                documents.create(store, _running(name))
                for step in range(3):
                    store.put(f"{name}/checkpoints/step-{step}/model.bin", b"x" * step)
                    manifests.publish(store, f"{name}/checkpoints/step-{step}")
                status.transition(store, name, JobStatus.SUCCEEDED)
        except Exception as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        maintenance.collect(store, maintenance.garbage(store, grace=timedelta(0)))
        rounds += 1
    thread.join()
    assert failures == []
    for run in range(number):
        for step in range(3):
            assert manifests.verify(store, f"runs/{run}/checkpoints/step-{step}") == []


def test_what_is_written_anew_between_search_and_removal_stays(any_store: Store) -> None:
    path = "datasets/d/data.lance/data/0.lance"
    any_store.put(path, b"left")
    found = maintenance.garbage(any_store, now=_later())
    assert [info.path for info in found] == [path]
    any_store.put(path, b"wanted")
    assert maintenance.collect(any_store, found) == 0
    assert any_store.get(path) == b"wanted"


def test_what_a_job_put_back_into_the_queue_may_use_stays(store: Store) -> None:
    """It may publish what an earlier attempt wrote."""
    documents.create(store, _running("runs/a"))
    store.put("runs/a/checkpoints/step-1/model.bin", b"x")
    status.transition(store, "runs/a", JobStatus.FAILED)
    found = maintenance.garbage(store, now=_later())
    assert [info.path for info in found] == ["runs/a/checkpoints/step-1/model.bin"]
    status.requeue(store, "runs/a")
    assert maintenance.collect(store, found) == 0
    manifests.publish(store, "runs/a/checkpoints/step-1")


def test_gc_stops_at_what_it_cannot_read(store: Store) -> None:
    """Of an altered manifest nobody knows what it refers to."""
    store.put("runs/a/checkpoints/step-1/model.bin", b"x")
    manifests.publish(store, "runs/a/checkpoints/step-1")
    path = "runs/a/checkpoints/step-1/manifest.json"
    store.put(path, store.get(path).replace(b"model", b"medel"))
    with pytest.raises(DataLossError, match=path):
        maintenance.garbage(store, now=_later())


def test_a_request_is_recognised_for_a_month(store: Store) -> None:
    request = CreateRunRequest(request_id="r")
    first = requests.claim(store, request, "runs/a")
    before, after = (datetime.now(UTC) + timedelta(days=days) for days in (29, 31))
    assert maintenance.garbage(store, now=before) == []
    found = maintenance.garbage(store, now=after)
    assert [info.path for info in found] == [f"requests/{first.key}.json"]
    assert requests.claim(store, request, "runs/b").name == "runs/a"
    assert maintenance.collect(store, found) > 0
    assert requests.claim(store, request, "runs/b").name == "runs/b"


def test_half_written_files_go_with_the_grace_period(store: Store, tmp_path: Any) -> None:
    (tmp_path / "store" / "x#1").write_bytes(b"half")
    assert maintenance.garbage(store) == []
    found = maintenance.garbage(store, now=_later())
    assert [info.path for info in found] == ["x#1"]
    assert maintenance.collect(store, found) == 4
    assert not (tmp_path / "store" / "x#1").exists()


def test_fsck_names_a_latest_version_that_is_gone(store: Store) -> None:
    documents.create(store, Dataset(name="datasets/d", latest_version="datasets/d/versions/3"))
    assert maintenance.fsck(store) == [
        maintenance.Problem("datasets/d", "its latest version dangles: no datasets/d/versions/3")
    ]
