"""The local executor with real processes: the queue, preemption, exit reasons, orphans, logs, other hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from rebus.client import Client
from rebus.config import load_yaml
from rebus.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from rebus.jobs import LocalExecutor, ResourceRequest, hosts, logs, status
from rebus.jobs.events import EventLog
from rebus.jobs.processes import JOB_ENV, mark_of, process_path, read_record
from rebus.jobs.settings import JobSettings
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobExit, JobStatus, Resources
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.training_pb2 import CreateRunRequest, Run
from services.harness.embedded import hosted
from tests.services.job_work import HOOK
from tests.waiting import until

pytestmark = pytest.mark.slow
WAIT_SECONDS = 90.0
SETTINGS = JobSettings(
    cpus=1, tick_seconds=0.2, lease_seconds=2.0, grace_seconds=1.0, log_seconds=0.1, stop_with_service=False
)


class Jobs:
    """An executor over a store, and what the tests ask of it."""

    def __init__(self, store: Store, cache_dir: Path) -> None:
        self.store, self.cache_dir = store, cache_dir
        self.executor = LocalExecutor(store, cache_dir, SETTINGS)
        self._opened = [self.executor]

    def another(self, **changes: Any) -> LocalExecutor:
        """A service process beside (or after) the first, as far as the executor is concerned."""
        self._opened.append(LocalExecutor(self.store, self.cache_dir, replace(SETTINGS, **changes)))
        return self._opened[-1]

    def start(self, recipe: str, *, cpus: float = 1.0) -> str:
        executor, request = self.executor, Resources(cpus=cpus)
        job, _ = status.create(self.store, Run(recipe=recipe), host=executor.host, resources=request)
        executor.submit(job.name)
        return job.name

    def job(self, name: str) -> JobStatus:
        return status.job_of(documents.get(self.store, documents.type_of(name), name))

    def wait(self, name: str, *states: status.State) -> JobStatus:
        return until(lambda: (job := self.job(name)).state in (states or status.TERMINAL) and job)

    def supervisor(self, name: str) -> psutil.Process:
        def find() -> psutil.Process | None:
            record = read_record(process_path(self.cache_dir, name))
            return record.process() if record else None

        return until(find)

    def marked(self, name: str) -> list[psutil.Process]:
        """The live processes of a job, its supervisor left out."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(JOB_ENV) == mark_of(self.store.url, name):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def states(self, name: str) -> list[str]:
        return [str(e.values["state"]) for e in EventLog(self.store, name).read() if e.kind == "state"]

    def close(self) -> None:
        for executor in self._opened:
            executor.close()
        for path in (self.cache_dir / "jobs").glob("*.json"):
            record = read_record(path)
            process = record.process() if record else None
            if process is not None:
                for child in [*process.children(recursive=True), process]:
                    child.kill()


@pytest.fixture
def jobs(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """Jobs whose code is ``tests.services.job_work``; all that they left running is killed at the end."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hook"), str(root), str(root / "libs")]))
    opened = Jobs(store, tmp_path / "cache" / "one")
    yield opened
    opened.close()


def test_jobs_wait_in_order_until_there_is_room_and_no_service_is_needed(jobs: Jobs) -> None:
    first, second, third = (jobs.start(recipe) for recipe in ("wait", "wait", "nothing"))
    jobs.wait(first, JobStatus.RUNNING)
    assert [jobs.job(name).state for name in (second, third)] == [JobStatus.QUEUED] * 2
    jobs.executor.close()  # its supervisors start what waits
    status.request_cancel(jobs.store, first)
    jobs.executor.cancel(first)
    jobs.wait(second, JobStatus.RUNNING)
    assert jobs.job(first).state == JobStatus.CANCELLED
    assert jobs.job(third).state == JobStatus.QUEUED
    status.request_cancel(jobs.store, third)
    jobs.another().cancel(third)  # a job that waits is cancelled without ever having run
    assert jobs.job(third).state == JobStatus.CANCELLED
    assert jobs.states(third) == ["QUEUED", "CANCELLED"]


def test_many_schedulers_start_a_job_once(jobs: Jobs) -> None:
    name = status.create(jobs.store, Run(recipe="wait"), host=jobs.executor.host)[0].name
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: jobs.another().schedule(), range(6)))
    jobs.wait(name, JobStatus.RUNNING)
    assert jobs.job(name).attempts == 1
    named = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    assert len([line for line in named if name in line and "rebus.jobs.supervisor" in line]) == 1


def test_what_no_machine_has_is_refused_and_so_is_one_too_many(jobs: Jobs) -> None:
    with pytest.raises(FailedPreconditionError, match=r"resources.cpus: asked for 3, there are 1; resources.gpus: "):
        jobs.executor.plan("runs", ResourceRequest(cpus=3, gpus=99))
    assert jobs.executor.plan("runs", None).cpus == 1
    small = jobs.another(max_queued=1)
    small.admit()
    jobs.start("wait", cpus=0.5)
    small.admit()  # it runs
    jobs.start("wait")
    with pytest.raises(ResourceExhaustedError, match="1 jobs wait already"):
        small.admit()


@pytest.mark.parametrize(
    ("recipe", "reason", "expected"),
    [
        ("exit 3", JobExit.EXCEPTION, {"exit_code": 3, "last_lines": ["last words"]}),
        ("signal SIGSEGV", JobExit.SIGNAL, {"signal": "SIGSEGV"}),
        ("signal SIGKILL", JobExit.SIGNAL, {"signal": "SIGKILL"}),
        ("refuse", JobExit.EXCEPTION, {"last_lines": ["recipe.steps: must be positive"]}),
    ],
)
def test_a_failed_job_says_what_ended_it(jobs: Jobs, recipe: str, reason: Any, expected: dict[str, Any]) -> None:
    job = jobs.wait(jobs.start(recipe))
    assert (job.state, job.exit) == (JobStatus.FAILED, JobExit(reason=reason, **expected))


def test_cancel_kills_children_and_grandchildren_that_do_not_listen(jobs: Jobs) -> None:
    name = jobs.start("family")
    until(lambda: len(jobs.marked(name)) == 3)
    family = jobs.marked(name)
    status.request_cancel(jobs.store, name)
    jobs.executor.cancel(name)
    job = jobs.wait(name)
    assert (job.state, job.exit.reason) == (JobStatus.CANCELLED, JobExit.CANCELLED)
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))


def test_orphans_of_a_killed_supervisor_are_found_and_ended(jobs: Jobs) -> None:
    name = jobs.start("family")
    until(lambda: len(jobs.marked(name)) == 3)
    jobs.supervisor(name).kill()
    until(lambda: len(jobs.marked(name)) == 2)  # the kernel ends the worker; what it had started goes on
    jobs.another().schedule()
    job = jobs.job(name)
    assert (job.state, job.exit.reason) == (JobStatus.FAILED, JobExit.LOST)
    until(lambda: not jobs.marked(name))


SLOW_SUPERVISOR = """
import sys, time
from rebus.jobs import supervisor
start = supervisor.Supervisor._start
def start_late(self):
    print("ready", flush=True)
    while self._job().state == supervisor.JobStatus.QUEUED:
        time.sleep(0.05)
    return start(self)
supervisor.Supervisor._start = start_late
raise SystemExit(supervisor.main(sys.argv[1:]))
"""


def test_a_worker_that_another_one_was_quicker_than_fails_nothing(jobs: Jobs) -> None:
    """Found by ``tools.chaos.kill``: a supervisor was killed before its worker could be told to die with it."""
    name = status.create(jobs.store, Run(recipe="wait"), host=jobs.executor.host)[0].name
    arguments = ["--store", jobs.store.url, "--name", name, "--cache-dir", str(jobs.cache_dir)]
    arguments += ["--host", jobs.executor.host]
    command = [sys.executable, "-c", SLOW_SUPERVISOR, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"ready\n"
        quicker = subprocess.Popen([sys.executable, "-m", "rebus.jobs.worker", *arguments])
        assert supervisor.wait(WAIT_SECONDS) == 0
        job = jobs.job(name)
        quicker.kill()
        quicker.wait()
    # The supervisor's last act is to look at the queue, where it finds a job without a supervisor.
    assert (job.state, job.exit.reason) == (JobStatus.FAILED, JobExit.LOST)


def test_a_preempted_job_goes_on_by_itself(jobs: Jobs) -> None:
    name = jobs.start("wait_once")
    jobs.executor.recover("runs")
    jobs.wait(name, JobStatus.RUNNING)
    jobs.supervisor(name).send_signal(signal.SIGTERM)
    job = jobs.wait(name)
    assert (job.state, job.attempts, job.preemptions) == (JobStatus.SUCCEEDED, 2, 1)
    assert jobs.states(name) == ["QUEUED", "RUNNING", "PREEMPTED", "QUEUED", "RUNNING", "SUCCEEDED"]


def test_preemption_has_its_bounds(jobs: Jobs) -> None:
    name = jobs.start("wait")
    jobs.wait(name, JobStatus.RUNNING)
    documents.update(jobs.store, Run, name, lambda run: setattr(run.job, "preemptions", SETTINGS.max_preemptions))
    jobs.supervisor(name).send_signal(signal.SIGTERM)
    job = jobs.wait(name)
    assert (job.state, job.exit.reason) == (JobStatus.FAILED, JobExit.PREEMPTED)
    assert "was preempted" in job.error.message


def test_a_service_that_ends_with_its_container_preempts_its_jobs(jobs: Jobs) -> None:
    name = jobs.start("wait_once")
    jobs.wait(name, JobStatus.RUNNING)
    jobs.another(stop_with_service=True, grace_seconds=WAIT_SECONDS).close()
    assert jobs.job(name).state == JobStatus.PREEMPTED
    jobs.another().recover("runs")
    assert jobs.wait(name).state == JobStatus.SUCCEEDED


def test_a_job_of_another_host_is_left_alone_until_that_gives_no_signs_of_life(jobs: Jobs) -> None:
    name = status.create(jobs.store, Run(recipe="wait_once"), host="elsewhere", resources=Resources(cpus=1))[0].name
    assert status.transition(jobs.store, name, JobStatus.RUNNING)
    heart = hosts.Heartbeat(jobs.store, "elsewhere", 0.3)
    jobs.executor.recover("runs")
    for _ in range(20):  # twice as long as a lease
        heart.beat()
        time.sleep(0.2)
    assert jobs.job(name).state == JobStatus.RUNNING
    job = jobs.wait(name)
    assert (job.state, job.attempts, job.host) == (JobStatus.SUCCEEDED, 2, jobs.executor.host)
    assert jobs.states(name) == ["QUEUED", "RUNNING", "PREEMPTED", "QUEUED", "RUNNING", "SUCCEEDED"]
    preempted = [e for e in EventLog(jobs.store, name).read() if e.kind == "state"][2]
    assert preempted.values["reason"] == "LOST"


def test_a_machine_that_was_started_again_takes_its_jobs_up_at_once(jobs: Jobs) -> None:
    name = jobs.start("wait_once")
    jobs.wait(name, JobStatus.RUNNING)
    record = process_path(jobs.cache_dir, name)
    before = json.loads(record.read_text())
    for process in [*jobs.supervisor(name).children(), jobs.supervisor(name)]:
        process.kill()
    record.write_text(json.dumps({**before, "boot_id": "an earlier one"}))
    documents.update(jobs.store, Run, name, lambda run: setattr(run.job, "host", "this machine, before"))
    jobs.another(lease_seconds=3600.0).recover("runs")
    assert jobs.wait(name).state == JobStatus.SUCCEEDED


def test_a_job_is_cancelled_through_another_host(jobs: Jobs, tmp_path: Path) -> None:
    name = jobs.start("wait")
    jobs.wait(name, JobStatus.RUNNING)
    elsewhere = LocalExecutor(jobs.store, tmp_path / "elsewhere" / "one", SETTINGS)
    assert elsewhere.host != jobs.executor.host
    status.request_cancel(jobs.store, name)
    elsewhere.cancel(name)
    assert jobs.wait(name).state == JobStatus.CANCELLED


def test_output_can_be_read_while_the_job_runs(jobs: Jobs) -> None:
    name = jobs.start("print 1000")
    expected = "".join(f"line {number}\n" for number in range(1000)).encode()
    until(lambda: b"".join(logs.read(jobs.store, name)) == expected)
    assert jobs.job(name).state == JobStatus.RUNNING


def test_a_recipe_asks_for_more_than_there_is(store: Store) -> None:
    recipe = load_yaml(Path(__file__).parents[2] / "pipelines" / "recipes" / "smoke-scenes.yaml")
    recipe["resources"] = {"cpus": 0.5, "gpus": 999}
    bound = {binding["dataset"]: "datasets/scenes/versions/1" for binding in recipe["data"].values()}
    documents.create(store, DatasetVersion(name="datasets/scenes/versions/1"))
    with hosted(store.url, ["training"]) as endpoint, Client(endpoint) as client:
        with pytest.raises(FailedPreconditionError, match="resources.gpus: asked for 999, there are "):
            client.training.CreateRun(CreateRunRequest(run=Run(recipe=yaml.safe_dump(recipe), datasets=bound)))
        recipe["resources"]["gpus"] = -1
        with pytest.raises(InvalidArgumentError, match="recipe.resources"):
            client.training.CreateRun(CreateRunRequest(run=Run(recipe=yaml.safe_dump(recipe), datasets=bound)))
    assert not list(documents.list_all(store, Run))


def test_a_supervisor_whose_starter_was_killed_is_known_all_the_same(jobs: Jobs) -> None:
    """Found by ``tools.chaos.kill``: it was not recorded, and the second one's end was taken for the job's."""
    name = status.create(jobs.store, Run(recipe="wait"), host=jobs.executor.host, resources=Resources(cpus=1))[0].name
    arguments = ["--store", jobs.store.url, "--name", name, "--cache-dir", str(jobs.cache_dir)]
    command = [sys.executable, "-m", "rebus.jobs.supervisor", *arguments, "--host", jobs.executor.host]
    with subprocess.Popen(command) as unrecorded:
        jobs.wait(name, JobStatus.RUNNING)
        assert jobs.supervisor(name).pid == unrecorded.pid
        with subprocess.Popen(command) as second:
            assert second.wait(WAIT_SECONDS) == 0
        jobs.another().schedule()
        assert (jobs.job(name).state, jobs.job(name).attempts) == (JobStatus.RUNNING, 1)
        status.request_cancel(jobs.store, name)
        jobs.executor.cancel(name)
    assert jobs.job(name).state == JobStatus.CANCELLED
