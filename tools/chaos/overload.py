"""Ten times as many calls as a server can answer: what it takes on is answered, the rest is refused at once.

``python -m tools.chaos.overload`` measures the peak (as many callers as there are places, each calling again as soon as
it is answered), then offers ``--factor`` times that rate on a schedule that waits for no answer. It prints what was
answered, refused and lost, the latency of answered calls, and the server's memory; then one line of JSON. The exit code
is 1 unless goodput stays at 80 % of the peak, admitted calls keep within the longest wait and a few calls' work, every
refusal says when to come again, and memory stays flat. The work of a call is a wait, as that for an accelerator is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from rebus.v1 import media_pb2, media_pb2_grpc
from services.harness.limits import Limits, PoolLimits
from services.harness.runtime import Runtime, run

CALL = media_pb2.GetMediaRequest(name=f"media/{'0' * 64}")
PLACES = 8
POOL = PoolLimits(
    concurrent=PLACES, concurrent_per_principal=PLACES, queued=16, queued_per_principal=16, wait_seconds=0.5
)
TIMEOUT_SECONDS = 20.0
MIN_GOODPUT = 0.8
# An admitted call waits at most ``wait_seconds`` and works once; beyond that, this many times its work is scheduling.
SLACK = 6.0
MAX_GROWTH_BYTES = 48 << 20


class Working(media_pb2_grpc.MediaServiceServicer):
    """Answers after ``work_seconds`` in a thread."""

    def __init__(self, work_seconds: float) -> None:
        self._work_seconds = work_seconds

    async def GetMedia(self, request: media_pb2.GetMediaRequest, context: Any) -> media_pb2.Media:
        await run(time.sleep, self._work_seconds)
        return media_pb2.Media(name=request.name)


@dataclass
class Outcome:
    """What became of the calls of one phase."""

    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    # Seconds of each answered call.
    latencies: list[float] = field(default_factory=list)
    # Refusals without a ``RetryInfo``.
    unexplained: int = 0

    @property
    def goodput(self) -> float:
        """Answered calls a second."""
        return self.codes["OK"] / self.seconds

    def percentile(self, share: float) -> float:
        """Latency of answered calls, in seconds."""
        return float(np.quantile(self.latencies, share)) if self.latencies else float("inf")


@dataclass(frozen=True)
class Result:
    """The figures of one run."""

    seed: int
    peak_per_second: float
    offered_per_second: float
    goodput_ratio: float
    p99_seconds: float
    p99_bound_seconds: float
    codes: dict[str, int]
    refusals_without_retry_info: int
    memory_growth_bytes: int

    @property
    def holds(self) -> bool:
        """Whether every bar is met."""
        return (
            self.goodput_ratio >= MIN_GOODPUT
            and self.p99_seconds <= self.p99_bound_seconds
            and not self.refusals_without_retry_info
            and set(self.codes) <= {"OK", "RESOURCE_EXHAUSTED"}
            and self.memory_growth_bytes <= MAX_GROWTH_BYTES
        )


def measure(*, work_seconds: float, seconds: float, factor: float, seed: int) -> Result:
    """Runs both phases against a server in a process of its own."""
    with _server(work_seconds) as (address, server):
        asyncio.run(_peak(address, min(seconds, 2.0)))  # warms both sides up
        peak = asyncio.run(_peak(address, seconds))
        before = server.memory_info().rss
        offered = factor * peak.goodput
        overload, highest = asyncio.run(_overload(address, offered, seconds, server, random.Random(seed)))
    return Result(
        seed=seed,
        peak_per_second=peak.goodput,
        offered_per_second=offered,
        goodput_ratio=overload.goodput / peak.goodput,
        p99_seconds=overload.percentile(0.99),
        p99_bound_seconds=POOL.wait_seconds + SLACK * work_seconds,
        codes=dict(overload.codes),
        refusals_without_retry_info=overload.unexplained,
        memory_growth_bytes=max(highest - before, 0),
    )


async def _peak(address: str, seconds: float) -> Outcome:
    outcome = Outcome()
    async with grpc.aio.insecure_channel(address) as channel:
        end = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < end:
                await _call(channel, outcome)

        await _timed(outcome, *(caller() for _ in range(PLACES)))
    return outcome


async def _overload(
    address: str, rate: float, seconds: float, server: psutil.Process, rng: random.Random
) -> tuple[Outcome, int]:
    """Calls at random times of the given mean rate; also the most memory that the server held."""
    outcome, highest, calls = Outcome(), 0, set[asyncio.Task[None]]()

    async def arrivals() -> None:
        nonlocal highest
        started = due = time.monotonic()
        while due < started + seconds:
            due += rng.expovariate(rate)
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())
            calls.add(asyncio.create_task(_call(channel, outcome)))
            if len(calls) % 100 == 0:
                highest = max(highest, server.memory_info().rss)

    async with grpc.aio.insecure_channel(address) as channel:
        await _timed(outcome, arrivals())
        await asyncio.gather(*calls)
    return outcome, max(highest, server.memory_info().rss)


async def _timed(outcome: Outcome, *work: Any) -> None:
    started = time.monotonic()
    await asyncio.gather(*work)
    outcome.seconds = time.monotonic() - started


async def _call(channel: grpc.aio.Channel, outcome: Outcome) -> None:
    stub: Any = media_pb2_grpc.MediaServiceStub(channel)
    started = time.monotonic()
    try:
        await stub.GetMedia(CALL, timeout=TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        outcome.codes[error.code().name] += 1
        if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and not _says_when(error):
            outcome.unexplained += 1
    else:
        outcome.codes["OK"] += 1
        outcome.latencies.append(time.monotonic() - started)


def _says_when(error: grpc.aio.AioRpcError) -> bool:
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    return status is not None and any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)


def _serve(work_seconds: float, store: str, connection: Connection) -> None:
    from services.harness.server import Host, Service

    def add(server: grpc.aio.Server, runtime: Runtime) -> None:
        del runtime
        media_pb2_grpc.add_MediaServiceServicer_to_server(Working(work_seconds), server)

    async def serve() -> None:
        runtime = replace(Runtime.open(store), limits=Limits(calls=POOL))
        host = Host([Service(("rebus.v1.MediaService",), add)], runtime, address="127.0.0.1:0")
        connection.send(await host.start())
        await asyncio.Event().wait()

    asyncio.run(serve())


@contextmanager
def _server(work_seconds: float) -> Iterator[tuple[str, psutil.Process]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(
            target=_serve, args=(work_seconds, (Path(folder) / "store").as_uri(), theirs), daemon=True
        )
        process.start()
        try:
            yield f"127.0.0.1:{ours.recv()}", psutil.Process(process.pid)
        finally:
            process.kill()
            process.join()


def main() -> int:
    """Runs the measurement; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-seconds", type=float, default=0.1, help="work of one call")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each phase")
    parser.add_argument("--factor", type=float, default=10.0, help="offered load, in peaks")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    result = measure(
        work_seconds=options.work_seconds, seconds=options.seconds, factor=options.factor, seed=options.seed
    )
    for name, value, bar in (
        ("peak, calls/s", f"{result.peak_per_second:.1f}", ""),
        ("offered, calls/s", f"{result.offered_per_second:.1f}", ""),
        ("goodput / peak", f"{result.goodput_ratio:.3f}", f">= {MIN_GOODPUT}"),
        ("p99 of answered, s", f"{result.p99_seconds:.3f}", f"<= {result.p99_bound_seconds:.3f}"),
        ("refusals without RetryInfo", str(result.refusals_without_retry_info), "0"),
        ("memory growth, MiB", f"{result.memory_growth_bytes / 2**20:.1f}", f"<= {MAX_GROWTH_BYTES >> 20}"),
        ("codes", str(result.codes), "OK, RESOURCE_EXHAUSTED"),
    ):
        print(f"{name:<28} {value:<44} {bar}")
    print(json.dumps({"driver": "overload", **asdict(result), "holds": result.holds}))
    return 0 if result.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
