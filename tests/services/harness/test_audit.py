"""The audit log: one line for each mutation, none for a read, nothing of what a request carries."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from rebus.client import Client, Credentials
from rebus.errors import AlreadyExistsError, InvalidArgumentError, PermissionDeniedError
from rebus.v1 import dataset_pb2, dataset_pb2_grpc
from rebus.v1.options_pb2 import Access
from services.harness.auth import AccessControl, audit
from services.harness.auth.roles import declared_role
from tests.services.harness.calls import METHODS, bearer, call_all
from tests.services.harness.conftest import Secured

CREATE = "/rebus.v1.DatasetService/CreateDataset"
DELETE = "/rebus.v1.DatasetService/DeleteDataset"
FIELDS = {"time", "principal", "role", "method", "resource", "request_id", "code", "trace_id"}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The audit log in a file of its own."""
    logger = logging.getLogger(audit.LOGGER)
    level = logger.level
    logger.setLevel(logging.INFO)
    handler = audit.write_to(tmp_path / "audit.jsonl")
    yield tmp_path / "audit.jsonl"
    logger.removeHandler(handler)
    handler.close()
    logger.propagate = True
    logger.setLevel(level)


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def client(secured: Secured, role: str) -> Client:
    return Client(secured.endpoint, credentials=Credentials(token=secured.tokens[role]))


def test_a_mutation_is_one_line_however_it_ends(secured: Secured, log: Path) -> None:
    request = dataset_pb2.CreateDatasetRequest(
        dataset_id="audited", dataset=dataset_pb2.Dataset(description="a payload"), request_id="once"
    )
    with client(secured, "editor") as editor, client(secured, "operator") as operator:
        editor.datasets.CreateDataset(request)
        editor.get("datasets/audited")
        editor.datasets.ListDatasets(dataset_pb2.ListDatasetsRequest())
        with pytest.raises(AlreadyExistsError):
            editor.datasets.CreateDataset(dataset_pb2.CreateDatasetRequest(dataset_id="audited"))
        with pytest.raises(InvalidArgumentError):
            editor.datasets.CreateDataset(dataset_pb2.CreateDatasetRequest(dataset_id="No Good", request_id="x" * 300))
        with pytest.raises(PermissionDeniedError):
            editor.datasets.DeleteDataset(dataset_pb2.DeleteDatasetRequest(name="datasets/audited"))
        operator.datasets.DeleteDataset(dataset_pb2.DeleteDatasetRequest(name="datasets/audited"))
    found = lines(log)
    assert [(line["principal"], line["role"], line["method"], line["code"]) for line in found] == [
        ("token:editor", "editor", CREATE, "OK"),
        ("token:editor", "editor", CREATE, "ALREADY_EXISTS"),
        ("token:editor", "editor", CREATE, "INVALID_ARGUMENT"),
        ("token:editor", "editor", DELETE, "PERMISSION_DENIED"),
        ("token:operator", "operator", DELETE, "OK"),
    ]
    assert all(line.keys() == FIELDS for line in found)
    assert [line["resource"] for line in found] == ["datasets/audited", "", "", "", "datasets/audited"]
    assert [line["request_id"] for line in found] == ["once", "", "x" * 256, "", ""]
    assert "payload" not in log.read_text()


def test_every_mutation_and_no_read_is_written(secured: Secured, guarded: grpc.Channel, log: Path) -> None:
    codes = {path: code.name for path, code, _, _ in call_all(guarded, bearer(secured.tokens["operator"]))}
    found = lines(log)
    mutations = {
        path for path, method in METHODS.items() if declared_role(method) > Access.VIEWER or method.client_streaming
    }
    assert len(mutations) > 10
    assert Counter(line["method"] for line in found) == dict.fromkeys(mutations, 1)
    assert {line["method"]: line["code"] for line in found} == {path: codes[path] for path in mutations}


def test_strangers_leave_no_line(guarded: grpc.Channel, log: Path) -> None:
    list(call_all(guarded, bearer("unknown")))
    assert lines(log) == []


@pytest.mark.parametrize(
    ("header", "trace_id"),
    # A call that is part of no trace begins one: its line and the log share the id.
    [(f"00-{'ab' * 16}-{'cd' * 8}-01", "ab" * 16), ("00-nonsense-01", "[0-9a-f]{32}"), (None, "[0-9a-f]{32}")],
)
def test_a_line_names_the_trace(guarded: grpc.Channel, secured: Secured, log: Path, header: str, trace_id: str) -> None:
    metadata = [bearer(secured.key.sign(sub="bob", role="editor")), *([("traceparent", header)] if header else [])]
    stub = dataset_pb2_grpc.DatasetServiceStub(guarded)
    with pytest.raises(grpc.RpcError):
        stub.CreateDataset(dataset_pb2.CreateDatasetRequest(), metadata=metadata)
    (line,) = lines(log)
    assert line["principal"] == "oidc:bob"
    assert re.fullmatch(trace_id, line["trace_id"])


def test_a_log_that_was_moved_away_goes_on_in_a_new_file(secured: Secured, log: Path) -> None:
    with client(secured, "editor") as editor:
        for name in ("before", "after"):
            with pytest.raises(InvalidArgumentError):
                editor.datasets.CreateDataset(dataset_pb2.CreateDatasetRequest(request_id=name))
            if name == "before":
                log.rename(log.with_suffix(".1"))
    assert [line["request_id"] for line in lines(log.with_suffix(".1"))] == ["before"]
    assert [line["request_id"] for line in lines(log)] == ["after"]


@pytest.mark.parametrize(
    ("error", "code"), [(asyncio.CancelledError(), "CANCELLED"), (OSError("a detail"), "INTERNAL"), (None, "OK")]
)
def test_a_call_that_is_cut_off_or_fails_is_written_too(log: Path, error: BaseException | None, code: str) -> None:
    written = audit.AuditLog(AccessControl({CREATE: Access.EDITOR}))
    with (
        suppress(asyncio.CancelledError, OSError),
        written.recorded(CREATE, dataset_pb2.CreateDatasetRequest(request_id="r")),
    ):
        if error:
            raise error
    (line,) = lines(log)
    assert (line["principal"], line["request_id"], line["code"]) == ("anonymous", "r", code)
