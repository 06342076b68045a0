"""A small HTTP server that speaks the part of the Kubernetes API that the executor uses. It is not Kubernetes.

It keeps objects in memory with resource versions, lists and watches them by label, answers 409 to a name that is taken
and to a precondition that does not hold, 410 to a version it has forgotten, 422 to an object that breaks its schema and
403 to what a Role does not allow; it serves pods' logs from files. Nothing in it runs pods: the tests do what the
cluster's controllers and kubelets would, over the same API with a token of their own.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
ADMIN, EXECUTOR = "admin-token", "executor-token"
_REASONS = {403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 422: "Invalid", 503: "Unavailable"}
FINALIZER = "foregroundDeletion"


class Refused(Exception):
    """Answered as a ``Status`` object."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code, self.reason = code, reason or _REASONS.get(code, "InternalError")


@dataclass
class Event:
    version: int
    collection: str
    kind: str
    item: Object


@dataclass
class State:
    """What the server knows: objects by collection and name, and the history that watches read."""

    validate: Callable[[Object], None]
    rules: Sequence[Object]
    logs: Path
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)
    forgotten: int = 0
    refusals: list[int] = field(default_factory=list)
    creations: int = 0
    calls: list[tuple[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False
    _versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    version: int = 0

    def put(self, collection: str, kind: str, item: Object) -> Object:
        """Makes a change visible under a new resource version."""
        self.version = next(self._versions)
        item["metadata"]["resourceVersion"] = str(self.version)
        key = (collection, item["metadata"]["name"])
        if kind == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = item
        self.history.append(Event(self.version, collection, kind, copy.deepcopy(item)))
        self.changed.notify_all()
        return item

    def find(self, collection: str, name: str) -> Object:
        if (collection, name) not in self.objects:
            raise Refused(404, f'{collection} "{name}" not found')
        return self.objects[collection, name]


def _matches(item: Object, selector: str) -> bool:
    labels = item["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, _, value in (p.partition("=") for p in selector.split(",") if p))


def _merge(base: Any, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return patch
    merged = {**base, **{key: _merge(base.get(key), value) for key, value in patch.items()}}
    return {key: value for key, value in merged.items() if value is not None}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_GET

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        collection, *rest = parts[parts.index("namespaces") + 2 :]
        name, subresource = (*rest, "", "")[:2]
        group = parts[1] if parts[0] == "apis" else ""
        try:
            self._authorize(group, collection, subresource, name, query)
            if subresource == "log":
                self._log(name, query)
            elif query.get("watch") in ("true", "True", "1"):
                self._watch(collection, query)
            else:
                self._send(200, self._call(collection, name, query, body, group))
        except Refused as refused:
            status = {"kind": "Status", "code": refused.code, "reason": refused.reason, "message": str(refused)}
            self._send(refused.code, status)

    def _authorize(self, group: str, collection: str, subresource: str, name: str, query: Object) -> None:
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(self.command, "get" if name else "list")
        verb = "watch" if "watch" in query else verb
        resource = f"{collection}/{subresource}" if subresource else collection
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == ADMIN:
            return
        if token != EXECUTOR:
            raise Refused(401, "Unauthorized")
        self.state.calls.append((verb, resource))
        allowed = any(
            group in r["apiGroups"] and resource in r["resources"] and verb in r["verbs"] for r in self.state.rules
        )
        if not allowed:
            raise Refused(403, f"{resource}.{group} is forbidden: cannot {verb}")
        if self.state.refusals:
            raise Refused(self.state.refusals.pop(0), "asked for by the test")

    def _call(self, collection: str, name: str, query: Object, body: Object, group: str) -> Object:
        with self.state.changed:
            if self.command == "POST":
                return self._create(collection, body)
            if self.command == "DELETE":
                return self._delete(collection, name, body)
            if self.command == "PATCH":
                return self._patch(collection, name, body)
            if name:
                return self.state.find(collection, name)
            items = [i for (c, _), i in self.state.objects.items() if c == collection]
            found = [i for i in items if _matches(i, query.get("labelSelector", ""))]
            return {"kind": "List", "metadata": {"resourceVersion": str(self.state.version)}, "items": found}

    def _create(self, collection: str, body: Object) -> Object:
        try:
            self.state.validate(body)
        except Exception as error:
            raise Refused(422, f"{collection} is invalid: {error}") from None
        name = body["metadata"]["name"]
        if (collection, name) in self.state.objects:
            raise Refused(409, f'{collection} "{name}" already exists', "AlreadyExists")
        self.state.creations += 1
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        body["metadata"] |= {"uid": f"uid-{self.state.creations}", "creationTimestamp": now}
        return self.state.put(collection, "ADDED", body)

    def _patch(self, collection: str, name: str, body: Object) -> Object:
        item = _merge(copy.deepcopy(self.state.find(collection, name)), body)
        metadata = item["metadata"]
        gone = "deletionTimestamp" in metadata and not metadata.get("finalizers")
        return self.state.put(collection, "DELETED" if gone else "MODIFIED", item)

    def _delete(self, collection: str, name: str, body: Object) -> Object:
        item = copy.deepcopy(self.state.find(collection, name))
        expected = (body.get("preconditions") or {}).get("uid")
        if expected not in (None, item["metadata"]["uid"]):
            raise Refused(409, f"the UID in the precondition ({expected}) does not match")
        if body.get("propagationPolicy") != "Foreground":
            return self.state.put(collection, "DELETED", item)
        if "deletionTimestamp" not in item["metadata"]:
            item["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]}
            self.state.put(collection, "MODIFIED", item)
        return item

    def _watch(self, collection: str, query: Object) -> None:
        """Streams the changes after a version until the asked time is over, each selected by its labels."""
        state, version = self.state, int(query["resourceVersion"])
        deadline = time.monotonic() + float(query.get("timeoutSeconds", 60))
        self._begin_stream()
        while not state.closed and (left := deadline - time.monotonic()) > 0:
            with state.changed:
                if version < state.forgotten:
                    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                    self._chunk(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                    break
                events = [e for e in state.history if e.version > version]
                if not events:
                    state.changed.wait(min(left, 0.5))
                    continue
            for event in events:
                version = event.version
                if event.collection == collection and _matches(event.item, query.get("labelSelector", "")):
                    self._chunk(json.dumps({"type": event.kind, "object": event.item}).encode() + b"\n")
        self._chunk(b"")

    def _log(self, pod: str, query: Object) -> None:
        """A file's bytes; with ``follow`` until the pod's container has terminated and all was sent."""
        path = self.state.logs / f"{pod}.log"
        if not path.exists():
            raise Refused(400, "the container is waiting to start", "BadRequest")
        lines = path.read_bytes().splitlines(keepends=True)
        if "tailLines" in query:
            lines = lines[-int(query["tailLines"]) :]
        self._begin_stream()
        self._chunk(b"".join(lines)) if lines else None
        sent = path.stat().st_size
        while query.get("follow") in ("true", "True") and not self.state.closed:
            ended = self._terminated(pod)
            with path.open("rb") as file:
                file.seek(sent)
                more = file.read()
            if more:
                sent += len(more)
                self._chunk(more)
            if ended:
                break
            time.sleep(0.02)
        self._chunk(b"")

    def _terminated(self, pod: str) -> bool:
        item = self.state.objects.get(("pods", pod), {})
        statuses = item.get("status", {}).get("containerStatuses", [])
        return not item or any("terminated" in status["state"] for status in statuses)

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:  # the client went away
            self.close_connection = True

    def _send(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class ApiServer:
    """A running server, and what tests do behind its back."""

    def __init__(self, url: str, state: State) -> None:
        self.url, self.state = url, state

    def forget_history(self) -> None:
        """Makes every version known so far too old to watch from, as etcd's compaction does."""
        with self.state.changed:
            self.state.version = self.state.forgotten = next(self.state._versions)
            self.state.history.clear()
            self.state.changed.notify_all()

    def refuse_next(self, *codes: int) -> None:
        """Answers the executor's next calls with these codes."""
        with self.state.changed:
            self.state.refusals.extend(codes)


@contextmanager
def running(validate: Callable[[Object], None], rules: Sequence[Object], logs: Path) -> Iterator[ApiServer]:
    """Serves on a loopback port until the block ends."""
    state = State(validate, rules, logs)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ApiServer(f"http://127.0.0.1:{server.server_address[1]}", state)
    finally:
        with state.changed:
            state.closed = True
            state.changed.notify_all()
        server.shutdown()
        server.server_close()
        thread.join()
