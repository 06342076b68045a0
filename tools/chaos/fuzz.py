"""Sends generated requests to every RPC of a real server: ``python -m tools.chaos.fuzz --requests 100000 --seed 1``.

Requests come from the descriptors (see ``tools.chaos.strategies``) and are sent as bytes, so that what is no message
can be sent too. What must hold: the server lives and its store is undamaged, no call ends with INTERNAL or UNKNOWN or
with a code that its RPC does not document, no unary call hangs, every INVALID_ARGUMENT names a field, and no job fails
with an unexpected error. What does not hold is printed as the smallest request that shows it.

The server runs ``--jobs`` jobs of each kind for real and cancels the others at once (``tools.chaos.host``).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from rebus.store import Store, documents, maintenance
from rebus.v1 import dataset_pb2, evaluation_pb2, generation_pb2, media_pb2, model_pb2, retrieval_pb2, training_pb2
from rebus.v1.common_pb2 import JobStatus
from tools.chaos import strategies, world
from tools.chaos.host import hosting
from tools.chaos.strategies import NEWEST, World
from tools.protos import compile
from tools.protos.comments import documented_codes

MODULES = (dataset_pb2, training_pb2, model_pb2, retrieval_pb2, generation_pb2, evaluation_pb2, media_pb2)
UNARY_SECONDS = 60.0
STREAM_SECONDS = 5.0
# Datasets and indexes that nothing else needs, for requests that remove some.
SPARES = 3
# A request is shown whole up to this many characters.
SHOWN_CHARACTERS = 2000
_NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}


class BrokenPromiseError(AssertionError):
    """A call did what no call may do."""


@dataclass
class Findings:
    """Calls by method and code, and what did not hold."""

    codes: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Calls made."""
        return sum(sum(counter.values()) for counter in self.codes.values())


def methods() -> list[MethodDescriptor]:
    """Every RPC of the contract, in order of name."""
    services: list[ServiceDescriptor] = [s for m in MODULES for s in m.DESCRIPTOR.services_by_name.values()]
    return sorted((method for s in services for method in s.methods), key=lambda method: method.full_name)


class Caller:
    """Sends bytes to methods and checks what every answer owes its caller."""

    def __init__(self, channel: grpc.Channel, documented: Callable[[MethodDescriptor], Iterable[str]]) -> None:
        self._channel = channel
        self._documented = documented
        self._newest: dict[str, str] = {}
        self.codes: dict[str, Counter[str]] = {}

    def call(self, method: MethodDescriptor, request: bytes) -> None:
        """One call; ``BrokenPromiseError`` says what it did wrong."""
        code, error = self._send(method, self._with_newest(request))
        self.codes.setdefault(_short(method), Counter())[code.name] += 1
        if code is grpc.StatusCode.OK or (method.server_streaming and code is grpc.StatusCode.DEADLINE_EXCEEDED):
            return
        if code in _NEVER or code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise BrokenPromiseError(f"{code.name}: {error.details() if error else ''}")
        if code is grpc.StatusCode.INVALID_ARGUMENT and not _names_a_field(error):
            raise BrokenPromiseError(f"INVALID_ARGUMENT names no field: {error.details() if error else ''}")
        if code.name not in self._documented(method):
            raise BrokenPromiseError(f"{code.name} is not documented: {error.details() if error else ''}")

    def _send(self, method: MethodDescriptor, request: bytes) -> tuple[grpc.StatusCode, grpc.Call | None]:
        path = f"/{method.containing_service.full_name}/{method.name}"
        response_class = GetMessageClass(method.output_type)
        try:
            if method.server_streaming:
                stream = self._channel.unary_stream(path, None, response_class.FromString)
                for _ in stream(request, timeout=STREAM_SECONDS):
                    pass
            elif method.client_streaming:  # an upload of one message
                upload = self._channel.stream_unary(path, None, response_class.FromString)
                upload(iter([request]), timeout=UNARY_SECONDS)
            else:
                call = self._channel.unary_unary(path, None, response_class.FromString)
                self._remember(call(request, timeout=UNARY_SECONDS))
        except grpc.RpcError as error:
            return error.code(), error  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]
        return grpc.StatusCode.OK, None

    def _remember(self, response: Message) -> None:
        collection, _, identifier = getattr(response, "name", "").partition("/")
        if hasattr(response, "job") and len(identifier) == len(NEWEST):
            self._newest[collection] = identifier

    def _with_newest(self, request: bytes) -> bytes:
        for collection, identifier in self._newest.items():
            request = request.replace(f"{collection}/{NEWEST}".encode(), f"{collection}/{identifier}".encode())
        return request


def _names_a_field(error: grpc.Call | None) -> bool:
    status = rpc_status.from_call(error) if error is not None else None  # pyright: ignore[reportArgumentType]
    request = error_details_pb2.BadRequest()
    found = any(detail.Unpack(request) for detail in status.details) if status is not None else False
    return found and bool(request.field_violations) and all(v.field for v in request.field_violations)


def fuzz_method(caller: Caller, method: MethodDescriptor, places: World, count: int, number: int) -> str:
    """Sends ``count`` requests to one method; what did not hold, with the smallest request found, or nothing."""
    last = b""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @given(strategies.requests(method, places))
    def send(request: bytes) -> None:
        nonlocal last
        last = request
        caller.call(method, request)

    try:
        send()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return (
            f"{_short(method)}: {type(error).__name__}: {error}\n  {_shown(method, last)}\n  bytes: {last[:500].hex()}"
        )
    return ""


def fuzz(
    store_url: str,
    folder: Path,
    *,
    requests: int,
    number: int,
    max_jobs: int,
    documented: Callable[[MethodDescriptor], Iterable[str]],
    only: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> Findings:
    """Builds a small world in the store, hosts all services over it, and sends the requests, method by method."""
    store = Store.open(store_url)
    names = world.build(store)
    root = _ingest_root(folder / "ingest")
    places = World(names=names, spare=_spares(store), root=str(root))
    chosen = [method for method in methods() if not only or _short(method) in only]
    findings = Findings()
    with hosting(store_url, str(folder / "cache"), max_jobs=max_jobs, ingest_root=str(root)) as server:
        with grpc.insecure_channel(server.endpoint, options=[("grpc.max_receive_message_length", -1)]) as channel:
            caller = Caller(channel, documented)
            for at, method in enumerate(chosen):
                share = requests * (at + 1) // len(chosen) - requests * at // len(chosen)
                problem = fuzz_method(caller, method, places, share, number + at)
                findings.problems += [problem] if problem else []
                progress(f"{_short(method)}: {dict(caller.codes.get(_short(method), {}))}")
        findings.codes = caller.codes
        if not server.process.is_alive():
            findings.problems.append(f"the server ended with exit code {server.process.exitcode}")
    findings.problems += _damage(store)
    return findings


def _spares(store: Store) -> list[str]:
    """Names that requests may create and remove."""
    for number in range(SPARES):
        documents.create(store, retrieval_pb2.Index(name=f"indexes/spare-{number}"))
    return [f"indexes/spare-{number}" for number in range(SPARES)] + ["datasets/a", "datasets/b"]


def _ingest_root(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("a red cube\n\na blue sphere\n")
    (folder / "captions.csv").write_text("image,caption\nnone.png,a cube\n")
    return folder


def _damage(store: Store) -> list[str]:
    """What ``fsck`` finds, and jobs that failed for a reason that their requests cannot explain."""
    problems = [f"{problem.path}: {problem.description}" for problem in maintenance.fsck(store)]
    for cls in (
        dataset_pb2.Ingestion,
        dataset_pb2.Curation,
        training_pb2.Run,
        retrieval_pb2.Index,
        evaluation_pb2.Evaluation,
    ):
        for document in documents.list_all(store, cls):
            error = document.job.error
            if document.job.state == JobStatus.FAILED and error.code in (code_pb2.INTERNAL, code_pb2.UNKNOWN):
                problems.append(f"{document.name} failed unexpectedly: {error.message}")
    return problems


def _shown(method: MethodDescriptor, request: bytes) -> str:
    try:
        message = GetMessageClass(method.input_type).FromString(request)
    except DecodeError:
        return "(not a message)"
    return text_format.MessageToString(message, as_one_line=True)[:SHOWN_CHARACTERS]


def _short(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def table(findings: Findings) -> str:
    """Calls by method and code, as a Markdown table."""
    codes = sorted(
        {code for counter in findings.codes.values() for code in counter}, key=lambda code: (code != "OK", code)
    )
    rows = [["RPC", "requests", *codes]]
    for name, counter in findings.codes.items():
        rows.append([name, str(sum(counter.values())), *(str(counter[code]) for code in codes)])
    totals = [sum(counter[code] for counter in findings.codes.values()) for code in codes]
    rows.append(["all", str(findings.requests), *map(str, totals)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the requests (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=4, help="jobs of a kind that really run (default: %(default)s)")
    parser.add_argument("--only", nargs="*", default=(), metavar="SERVICE.METHOD", help="these methods only")
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    documented = documented_codes(compile.descriptors())
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rebus-fuzz-") as folder:
        findings = fuzz(
            (Path(folder) / "store").as_uri(),
            Path(folder),
            requests=args.requests,
            number=args.seed,
            max_jobs=args.jobs,
            documented=lambda method: documented[method.full_name],
            only=args.only,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    print(table(findings))
    for problem in findings.problems:
        print(f"PROBLEM {problem}")
    seconds = round(time.monotonic() - started, 1)
    summary = {"seed": args.seed, "requests": findings.requests, "problems": len(findings.problems), "seconds": seconds}
    print(json.dumps(summary))
    return 1 if findings.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
