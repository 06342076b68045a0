"""The process that ``tools.chaos.kill`` kills: writes to a store without end and says so, one JSON line each time.

A line with ``"done": false`` comes right before a write, one with ``"done": true`` once it was acknowledged.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf import struct_pb2

from rebus.jobs.events import EventLog
from rebus.store import Store, manifests, model_versions
from rebus.v1.dataset_pb2 import CreateIngestionRequest, Ingestion, Source
from services.harness.runtime import Runtime

MODEL = "models/chaos"
NUM_VERSIONS = 2
NUM_OBJECTS = 3
NUM_PARTS = 3
MAX_BYTES = 200_000
OPERATIONS = ("put", "publish", "append", "alias")


def say(operation: str, done: bool, **fields: Any) -> None:
    """One line for the driver; a pipe keeps whole what is shorter than a page."""
    print(json.dumps({"operation": operation, "done": done, **fields}), flush=True)


def payload(rng: random.Random) -> bytes:
    """Random bytes behind their own SHA-256 (32 bytes), so that a torn object shows."""
    body = rng.randbytes(rng.randrange(1, MAX_BYTES))
    return hashlib.sha256(body).digest() + body


def is_whole(data: bytes) -> bool:
    """Whether bytes are those of a ``payload``."""
    return hashlib.sha256(data[32:]).digest() == data[:32]


def ingestion(round_number: int, request_id: str = "") -> CreateIngestionRequest:
    """The request for a small real job."""
    settings = struct_pb2.Struct()
    settings.update({"num_scenes": 3, "seed": round_number})
    source = Source(reader="scenes", settings=settings)
    wanted = Ingestion(dataset=f"datasets/chaos-{round_number}", sources=[source])
    return CreateIngestionRequest(ingestion=wanted, request_id=request_id)


class Victim:
    """The writes of one round; each method makes one."""

    def __init__(self, store: Store, round_number: int, rng: random.Random) -> None:
        self._store, self._round, self._rng = store, round_number, rng
        self._count = itertools.count()
        # Two writers of one log, as a worker and its supervisor are.
        self._logs = [EventLog(store, f"runs/chaos-{round_number}") for _ in range(2)]

    def put(self) -> None:
        path, data = f"chaos/{self._round}/objects/{self._rng.randrange(NUM_OBJECTS)}", payload(self._rng)
        with_digest = {"path": path, "digest": data[:32].hex()}
        say("put", False, **with_digest)
        self._store.put(path, data)
        say("put", True, **with_digest)

    def publish(self) -> None:
        folder = f"chaos/{self._round}/published/{next(self._count)}"
        say("publish", False, folder=folder)
        for part in range(NUM_PARTS):
            self._store.put(f"{folder}/{part}", payload(self._rng))
        manifests.publish(self._store, folder)
        say("publish", True, folder=folder)

    def append(self) -> None:
        writer, number = self._rng.randrange(2), next(self._count)
        say("append", False, writer=writer, number=number)
        self._logs[writer].append([("metrics", {"writer": writer, "number": number, "half": half}) for half in (0, 1)])
        say("append", True, writer=writer, number=number)

    def alias(self) -> None:
        version = f"{MODEL}/versions/{self._rng.randrange(NUM_VERSIONS) + 1}"
        say("alias", False, version=version)
        model_versions.set_alias(self._store, MODEL, f"round-{self._round}", version)
        say("alias", True, version=version)


def start_job(runtime: Runtime, request: CreateIngestionRequest) -> None:
    say("job", False)
    say("job", True, name=runtime.start_job(request.ingestion, request).name)


def writes(victim: Victim, rng: random.Random) -> Iterator[Callable[[], None]]:
    """One random write after the other."""
    while True:
        yield getattr(victim, rng.choice(OPERATIONS))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--request-id", required=True, help="of the round's job")
    parser.add_argument("--job-after", type=int, required=True, help="writes before the job is started; -1: none is")
    args = parser.parse_args(argv)
    runtime, rng = Runtime.open(args.store), random.Random(f"{args.seed}/{args.round}")
    victim = Victim(runtime.store, args.round, rng)
    say("ready", True)
    for number, write in enumerate(writes(victim, rng)):
        if number == args.job_after:
            start_job(runtime, ingestion(args.round, args.request_id))
        write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
