"""The harness against bare grpc.aio with the same servicer: latency of a unary call, throughput of an upload, in one
run.

``python -m tools.bench.rpc`` prints milliseconds and MB/s with their ratios, then one line of JSON. Each server is a
process of its own. The harness runs all that it runs in production: admission, deadline, validation, scopes. The peer
is a bare ``grpc.aio`` server; an upload it writes to a file as it comes, while the harness hashes, stages and publishes
it. A peer that drops the chunks is shown too: what the wire alone allows, whatever the disk does.
Many short rounds take turns, so that a busy moment meets both; the ratio is the median over pairs of rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from rebus.client.uploads import opened, requests
from rebus.v1 import media_pb2, media_pb2_grpc

GET = media_pb2.GetMediaRequest(name=f"media/{'0' * 64}")
IN_FLIGHT = 32
WARM_ROUNDS = 4


class Peer(media_pb2_grpc.MediaServiceServicer):
    """What both servers answer to the unary call; its upload only counts bytes, or also writes them down."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    async def GetMedia(self, request: media_pb2.GetMediaRequest, context: Any) -> media_pb2.Media:
        return media_pb2.Media(name=request.name, size_bytes=1)

    async def UploadMedia(
        self, request_iterator: AsyncIterator[media_pb2.UploadMediaRequest], context: Any
    ) -> media_pb2.Media:
        size = 0
        with tempfile.TemporaryFile(dir=self._folder) if self._folder else nullcontext() as file:
            async for request in request_iterator:
                size += len(request.chunk)
                if file is not None:
                    file.write(request.chunk)
        return media_pb2.Media(size_bytes=size)


def _serve(kind: str, store: str, folder: str, connection: Connection) -> None:
    bare = {"bare": Peer(), "writing": Peer(Path(folder))}
    asyncio.run(_serve_bare(bare[kind], connection) if kind in bare else _serve_harness(kind, store, connection))


async def _serve_bare(peer: Peer, connection: Connection) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    media_pb2_grpc.add_MediaServiceServicer_to_server(peer, server)
    connection.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


async def _serve_harness(kind: str, store: str, connection: Connection) -> None:
    from rebus.memory import keep_buffers, keep_what_is_loaded
    from services.harness.runtime import Runtime
    from services.harness.server import Host, Service, load

    keep_buffers()

    def add(server: grpc.aio.Server, runtime: Runtime) -> None:
        media_pb2_grpc.add_MediaServiceServicer_to_server(Peer(), server)

    services = [Service(("rebus.v1.MediaService",), add)] if kind == "harness" else load(["ingest"])
    host = Host(services, Runtime.open(store), address="127.0.0.1:0")
    port = await host.start()
    keep_what_is_loaded()
    connection.send(port)
    await asyncio.Event().wait()


@contextmanager
def _server(kind: str, folder: str) -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    store = (Path(folder) / "store").as_uri()
    process = context.Process(target=_serve, args=(kind, store, folder, theirs), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


async def _latencies(addresses: list[str], calls: int, rounds: int, in_flight: int) -> list[list[float]]:
    """Seconds a call, for each server a list over rounds of ``calls`` calls with ``in_flight`` at once."""
    channels = [grpc.aio.insecure_channel(address) for address in addresses]
    gets: list[Any] = [media_pb2_grpc.MediaServiceStub(channel).GetMedia for channel in channels]

    async def caller(get: Any, number: int) -> None:
        for _ in range(number):
            await get(GET, timeout=30)

    async def one_round(get: Any) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(caller(get, calls // in_flight) for _ in range(in_flight)))
        return (time.perf_counter() - started) / (calls // in_flight * in_flight)

    found: list[list[float]] = [[] for _ in gets]
    for number in range(-WARM_ROUNDS, rounds):
        # Who comes first changes, since what follows a round may be slower than the round.
        for get, times in sorted(zip(gets, found, strict=True), key=lambda pair: pair[1] is found[number % 2]):
            seconds = await one_round(get)
            if number >= 0:
                times.append(seconds)
    for channel in channels:
        await channel.close()
    return found


def _upload(address: str, data: bytes) -> float:
    """Seconds of one upload."""
    with grpc.insecure_channel(address) as channel, opened(data) as file:
        started = time.perf_counter()
        media_pb2_grpc.MediaServiceStub(channel).UploadMedia(requests(file), timeout=300)
        return time.perf_counter() - started


def _alternate(paths: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, measure in paths.items():
            times[name].append(measure())
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=128, help="unary calls a round")
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--megabytes", type=int, default=64, help="size of an upload")
    options = parser.parse_args()
    data = bytes(options.megabytes << 20)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        at = {kind: stack.enter_context(_server(kind, folder)) for kind in ("bare", "writing", "harness", "ingest")}
        results = {}
        for name, in_flight in (("sequential", 1), ("in_flight", IN_FLIGHT)):
            bare, ours = asyncio.run(_latencies([at["bare"], at["harness"]], options.calls, options.rounds, in_flight))
            results[name] = {
                "bare": 1000 * statistics.median(bare),
                "harness": 1000 * statistics.median(ours),
                "ratio": statistics.median(o / b for o, b in zip(ours, bare, strict=True)),
            }
        kinds = ("bare", "writing", "ingest")
        found = _alternate({kind: lambda kind=kind: _upload(at[kind], data) for kind in kinds}, 5)
        rates = {kind: options.megabytes / seconds for kind, seconds in found.items()}
        for name, kind in (("upload", "writing"), ("upload, peer drops it", "bare")):
            row = {"bare": rates[kind], "harness": rates["ingest"], "ratio": rates["ingest"] / rates[kind]}
            results[name] = row
    print(f"{'':<22} {'bare':>9} {'harness':>9} {'ratio':>6}  bar")
    for (name, row), bar in zip(
        results.items(), ("<= 1.10 (ms)", "<= 1.25 (ms a call)", ">= 0.70 (MB/s)", "(MB/s)"), strict=True
    ):
        print(f"{name:<22} {row['bare']:>9.3f} {row['harness']:>9.3f} {row['ratio']:>6.3f}  {bar}")
    print(json.dumps({"bench": "rpc", **results}))


if __name__ == "__main__":
    main()
