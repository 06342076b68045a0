"""Kills writers with SIGKILL at random moments and checks the store: ``python -m tools.chaos.kill --rounds 200``.

In every round a fresh process (``tools.chaos.victim``) puts objects, publishes folders, appends events with two
writers, moves an alias and may start a real job, saying what was acknowledged; after a random time it is killed, and
by chance the worker, the supervisor or both of a job that runs. Then whatever was acknowledged must be there, whatever
was not must be there whole or not at all, and in the end every job must have come to a state that tells what happened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from google.protobuf import json_format

from rebus.errors import NotFoundError, RebusError
from rebus.jobs import status
from rebus.jobs.events import EventLog
from rebus.jobs.processes import JOB_ENV, mark_of, process_path, read_record
from rebus.store import Store, documents, maintenance, manifests, model_versions
from rebus.v1.common_pb2 import JobExit, JobStatus
from rebus.v1.dataset_pb2 import Ingestion
from rebus.v1.model_pb2 import Model, ModelVersion
from services.harness.runtime import CACHE_ENV, Runtime
from tools import seaweed
from tools.chaos import victim

MAX_WRITE_SECONDS = 1.0
# Share of the rounds that start a job.
JOB_SHARE = 0.3
# How long a job may take once those before it have ended.
SETTLE_SECONDS = 600.0
VANISH_SECONDS = 30.0
TARGETS = ("nothing", "worker", "supervisor", "both")
Lines = list[dict[str, Any]]


@dataclass
class Tally:
    """What all rounds together came to."""

    begun: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    # Acknowledged writes that are not there.
    lost: list[str] = field(default_factory=list)
    # What is there in part, or altered.
    torn: list[str] = field(default_factory=list)
    # Jobs whose state does not tell what happened.
    untruthful: list[str] = field(default_factory=list)
    # Job -> what of it was killed.
    jobs: dict[str, str] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.torn or self.untruthful)


class Driver:
    """Plays the rounds over one store."""

    def __init__(self, runtime: Runtime, seed: int) -> None:
        self._runtime, self._store, self._seed = runtime, runtime.store, seed
        self.tally = Tally()

    def prepare(self) -> None:
        """A model with the versions that the alias moves between."""
        documents.create(self._store, Model(name=victim.MODEL))
        for number in range(1, victim.NUM_VERSIONS + 1):
            documents.create(self._store, ModelVersion(name=f"{victim.MODEL}/versions/{number}"))
        self._runtime.executor.recover("ingestions")

    def play(self, number: int) -> None:
        """One round: write, kill, check."""
        rng = random.Random(f"kill/{self._seed}/{number}")
        request_id = f"chaos-{self._seed}-{number}"
        job_after = rng.randrange(5) if rng.random() < JOB_SHARE else -1
        lines = self._write_and_kill(number, request_id, job_after, rng)
        for line in lines:
            counter = self.tally.acknowledged if line["done"] else self.tally.begun
            counter[line["operation"]] += 1
        self._check_puts(lines)
        self._check_published(lines)
        self._check_events(number, lines)
        self._check_alias(number, lines)
        if job_after >= 0:
            self._ask_again(number, request_id, lines)
        self._break_a_job(rng)

    def _write_and_kill(self, number: int, request_id: str, job_after: int, rng: random.Random) -> Lines:
        command = [sys.executable, "-m", "tools.chaos.victim", "--store", self._store.url, "--round", str(number)]
        command += ["--seed", str(self._seed), "--request-id", request_id]
        command += ["--job-after", str(job_after)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(rng.random() * MAX_WRITE_SECONDS)
            process.kill()
            rest = process.stdout.read()
        if not first:
            raise RuntimeError(f"round {number}: the victim ended before it began")
        return [json.loads(line) for line in rest.splitlines()]

    def _check_puts(self, lines: Lines) -> None:
        last: dict[str, str] = {}
        open_: dict[str, str] = {}
        for line in (line for line in lines if line["operation"] == "put"):
            (last if line["done"] else open_)[line["path"]] = line["digest"]
        for path in open_:
            try:
                data = self._store.get(path)
            except NotFoundError:
                if path in last:
                    self.tally.lost.append(f"{path}: acknowledged, not there")
                continue
            if not victim.is_whole(data):
                self.tally.torn.append(f"{path}: not what anybody wrote")
            elif data[:32].hex() not in (last.get(path), open_[path]):
                self.tally.lost.append(f"{path}: an older write is there")

    def _check_published(self, lines: Lines) -> None:
        done = {line["folder"]: line["done"] for line in lines if line["operation"] == "publish"}
        for folder, acknowledged in done.items():
            try:
                problems = manifests.verify(self._store, folder)
            except NotFoundError:
                if acknowledged:
                    self.tally.lost.append(f"{folder}: acknowledged, not published")
                continue
            except RebusError as error:
                problems = [str(error)]
            self.tally.torn += problems

    def _check_events(self, number: int, lines: Lines) -> None:
        name = f"runs/chaos-{number}"
        events = list(EventLog(self._store, name).read())
        if [event.sequence for event in events] != list(range(1, len(events) + 1)):
            self.tally.torn.append(f"{name}: its events are not numbered from 1 without gaps")
        found = Counter(_event_key(json_format.MessageToDict(event.values)) for event in events)
        open_: set[tuple[int, int]] = set()
        for line in (line for line in lines if line["operation"] == "append"):
            key = (line["writer"], line["number"])
            halves = [found[*key, half] for half in (0, 1)]
            if line["done"] and halves != [1, 1]:
                self.tally.lost.append(f"{name}: event {key} was acknowledged and is there {halves} times")
            elif halves not in ([0, 0], [1, 1]):
                self.tally.torn.append(f"{name}: event {key} is there {halves} times")
            open_.add(key)
        if {key[:2] for key in found} - open_:
            self.tally.torn.append(f"{name}: has events that nobody wrote")

    def _check_alias(self, number: int, lines: Lines) -> None:
        moves = [line for line in lines if line["operation"] == "alias"]
        acknowledged = [line["version"] for line in moves if line["done"]]
        expected = {*acknowledged[-1:], *(line["version"] for line in moves[-1:])}
        model = documents.get(self._store, Model, victim.MODEL)
        found = model.aliases.get(f"round-{number}", "")
        if found not in expected and (acknowledged or found):
            self.tally.lost.append(f"{victim.MODEL}: round-{number} points at {found!r}, expected {expected}")
        elif found:
            model_versions.resolve(self._store, f"{victim.MODEL}/versions/round-{number}")

    def _ask_again(self, number: int, request_id: str, lines: Lines) -> None:
        """The caller who got no answer asks again; the same job answers."""
        request = victim.ingestion(number, request_id)
        name = self._runtime.start_job(request.ingestion, request).name
        for line in lines:
            if line["operation"] == "job" and line["done"] and line["name"] != name:
                self.tally.lost.append(f"{line['name']}: acknowledged, and {name} answers the same request")
        self.tally.jobs.setdefault(name, "nothing")

    def _break_a_job(self, rng: random.Random) -> None:
        """Kills processes of one of the jobs that have some now."""
        records = {name: read_record(process_path(self._runtime.cache_dir, name)) for name in self.tally.jobs}
        live = {name: process for name, record in records.items() if record and (process := record.process())}
        target = rng.choice(TARGETS)
        if not live or target == "nothing":
            return
        name = rng.choice(sorted(live))
        try:
            workers = live[name].children() if target != "supervisor" else []
            for process in [*workers, *([live[name]] if target != "worker" else [])]:
                process.kill()
                self.tally.jobs[name] = target
        except psutil.NoSuchProcess:
            return  # it ended by itself meanwhile

    def finish(self) -> None:
        """Waits until every job has ended, then checks what each tells, and the whole store."""
        for name, killed in self.tally.jobs.items():
            deadline = time.monotonic() + SETTLE_SECONDS  # anew for each: they wait for each other in the queue
            while not self._ended(name) and time.monotonic() < deadline:
                time.sleep(1.0)
            self.tally.untruthful += [f"{name} ({killed} killed): {why}" for why in self._contradictions(name, killed)]
        self.tally.torn += [f"{p.path}: {p.description}" for p in maintenance.fsck(self._store)]

    def _ended(self, name: str) -> bool:
        job = documents.get(self._store, Ingestion, name).job
        return job.state in status.TERMINAL and status.is_logged(self._store, name, job)

    def _contradictions(self, name: str, killed: str) -> Iterator[str]:
        document = documents.get(self._store, Ingestion, name)
        job, reason = document.job, JobExit.Reason.Name(document.job.exit.reason)
        if not self._ended(name):
            yield f"is {JobStatus.State.Name(job.state)} after {SETTLE_SECONDS:.0f} s"
        elif job.state == JobStatus.SUCCEEDED:
            version = document.dataset_version
            base = version.partition("/versions/")[0]
            yield from manifests.verify(self._store, version, base=base) if version else ["succeeded without a result"]
        elif job.exit.reason not in (JobExit.SIGNAL, JobExit.LOST) or killed == "nothing":
            yield f"is {JobStatus.State.Name(job.state)} for {reason}: {job.error.message}"
        if not _vanishes(mark_of(self._store.url, name)):
            yield "has ended and its processes still run"


def _event_key(values: dict[str, Any]) -> tuple[int, int, int]:
    return int(values["writer"]), int(values["number"]), int(values["half"])


def _vanishes(mark: str) -> bool:
    """Whether a job's processes are gone, or go within a moment: a worker ends after it said how it did."""
    deadline = time.monotonic() + VANISH_SECONDS
    while _is_running(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _is_running(mark: str) -> bool:
    for process in psutil.process_iter():
        try:
            if process.environ().get(JOB_ENV) == mark:
                return True
        except (psutil.Error, OSError):
            continue
    return False


def report(tally: Tally, store: Store, rounds: int, seed: int, seconds: float) -> dict[str, Any]:
    """Prints a table of what was done and what became of it; returns the same as data."""
    print(f"\n{'operation':<12}{'begun':>8}{'acknowledged':>14}")
    for operation in (*victim.OPERATIONS, "job"):
        print(f"{operation:<12}{tally.begun[operation]:>8}{tally.acknowledged[operation]:>14}")
    endings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, killed in tally.jobs.items():
        job = documents.get(store, Ingestion, name).job
        reason = f" {JobExit.Reason.Name(job.exit.reason)}" if job.exit.reason else ""
        endings[killed][f"{JobStatus.State.Name(job.state)}{reason}"] += 1
    print(f"\n{'killed of a job':<18}how it ended")
    for killed, counts in sorted(endings.items()):
        print(f"{killed:<18}{', '.join(f'{count} {ending}' for ending, count in counts.most_common())}")
    for title in ("lost", "torn", "untruthful"):
        for line in getattr(tally, title):
            print(f"{title}: {line}")
    return {
        "rounds": rounds,
        "seed": seed,
        "seconds": round(seconds, 1),
        "acknowledged": sum(tally.acknowledged[key] for key in (*victim.OPERATIONS, "job")),
        "jobs": len(tally.jobs),
        "lost": len(tally.lost),
        "torn": len(tally.torn),
        "untruthful": len(tally.untruthful),
    }


@contextmanager
def _opened(store_url: str, with_seaweed: bool) -> Iterator[Runtime]:
    """A runtime over the store that was asked for, with a cache folder of its own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rebus-chaos-")))
        os.environ[CACHE_ENV] = str(folder / "cache")
        if with_seaweed:
            store_url = stack.enter_context(seaweed.running(folder / "seaweed"))["REBUS_STORE"]
        runtime = Runtime.open(store_url or (folder / "store").as_uri())
        stack.callback(runtime.executor.close)
        yield runtime


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, help="default: a random one, printed")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--store", default="", help="an empty store (default: a temporary folder)")
    where.add_argument("--seaweed", action="store_true", help="over S3, on a SeaweedFS started for the purpose")
    args = parser.parse_args(argv)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    with _opened(args.store, args.seaweed) as runtime:
        driver = Driver(runtime, seed)
        driver.prepare()
        for number in range(args.rounds):
            driver.play(number)
            if (number + 1) % 10 == 0:
                print(f"{number + 1} rounds", flush=True)
        driver.finish()
        summary = report(driver.tally, runtime.store, args.rounds, seed, time.monotonic() - started)
    print(json.dumps(summary))
    return 0 if driver.tally.is_clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
