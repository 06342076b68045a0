"""A short run of the fuzz driver: every RPC gets some requests, and what would be wrong is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from rebus.store import Store
from services.harness.embedded import hosted
from tools.chaos import fuzz
from tools.chaos.strategies import World
from tools.protos import compile
from tools.protos.comments import documented_codes

Documented = Callable[[MethodDescriptor], Iterable[str]]


@pytest.fixture(scope="module")
def documented() -> Documented:
    codes = documented_codes(compile.descriptors())
    return lambda method: codes[method.full_name]


def test_a_few_requests_to_every_rpc(tmp_path: Path, documented: Documented) -> None:
    store = (tmp_path / "store").as_uri()
    findings = fuzz.fuzz(store, tmp_path, requests=420, number=7, max_jobs=0, documented=documented)
    assert findings.problems == []
    assert len(findings.codes) == len(fuzz.methods()) > 35
    assert findings.requests >= 400
    assert sum(counter["OK"] for counter in findings.codes.values()) > 40


def test_a_code_that_is_not_documented_is_a_problem_shown_by_its_smallest_request(store: Store) -> None:
    (method,) = [method for method in fuzz.methods() if method.name == "GetModel"]
    places = World(names=["models/m"], spare=[], root="/none")
    with hosted(store.url, ["training"]) as endpoint, grpc.insecure_channel(endpoint) as channel:
        caller = fuzz.Caller(channel, lambda method: {"INVALID_ARGUMENT"})
        problem = fuzz.fuzz_method(caller, method, places, 60, number=7)
    assert problem.startswith("ModelService.GetModel: BrokenPromiseError: NOT_FOUND is not documented: no models/m\n")
    assert 'name: "models/m"' in problem


def test_a_server_that_is_gone_is_a_problem() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        caller = fuzz.Caller(channel, lambda method: ())
        with pytest.raises(fuzz.BrokenPromiseError, match="UNAVAILABLE"):
            caller.call(fuzz.methods()[0], b"")
    assert fuzz.table(fuzz.Findings(caller.codes)).splitlines()[-1] == "| all | 1 | 1 |"
