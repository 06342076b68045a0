"""Which calls are repeated, when, and when no more."""

from __future__ import annotations

import pytest

from rebus.client.retries import RetryPolicy, call_with_retries, is_idempotent
from rebus.errors import NotFoundError, RebusError, ResourceExhaustedError, UnavailableError
from rebus.status import from_status, to_status
from rebus.v1.evaluation_pb2 import CreateEvaluationRequest
from rebus.v1.model_pb2 import SetModelAliasRequest
from rebus.v1.training_pb2 import CreateRunRequest

POLICY = RetryPolicy(attempts=4, initial_seconds=1, multiplier=2, max_seconds=3)


class Calls:
    """A call that fails with the errors given, one after the other, and then succeeds; and a clock that only counts."""

    def __init__(self, *errors: RebusError) -> None:
        self.errors = list(errors)
        self.made = 0
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> str:
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def run(self, *, idempotent: bool = True, timeout: float = 60) -> str:
        return call_with_retries(
            self, POLICY, idempotent=idempotent, timeout=timeout, sleep=lambda seconds: self.slept.append(seconds)
        )


def gone() -> UnavailableError:
    return UnavailableError("gone")


def full(seconds: float = 1.5) -> ResourceExhaustedError:
    return ResourceExhaustedError("full", retry_seconds=seconds)


def test_an_idempotent_call_is_repeated_with_growing_bounded_delays() -> None:
    calls = Calls(gone(), gone(), gone())
    assert calls.run() == "done"
    assert calls.made == 4
    assert all(0 <= slept <= bound for slept, bound in zip(calls.slept, (1, 2, 3), strict=True))


def test_the_last_error_is_raised_when_the_attempts_are_used_up() -> None:
    calls = Calls(*[gone() for _ in range(9)])
    with pytest.raises(UnavailableError):
        calls.run()
    assert calls.made == 4


def test_a_call_that_may_have_changed_something_is_not_repeated() -> None:
    calls = Calls(gone())
    with pytest.raises(UnavailableError):
        calls.run(idempotent=False)
    assert calls.made == 1


def test_a_refused_call_is_repeated_after_the_time_that_the_server_names() -> None:
    calls = Calls(full(1.5))
    assert calls.run(idempotent=False) == "done"
    assert 1.5 <= calls.slept[0] <= 2.5


@pytest.mark.parametrize("error", [NotFoundError("no"), ResourceExhaustedError("a bound of the request itself")])
def test_a_final_error_is_not_repeated(error: RebusError) -> None:
    calls = Calls(error)
    with pytest.raises(type(error)):
        calls.run()
    assert calls.made == 1


def test_no_delay_reaches_beyond_the_deadline() -> None:
    calls = Calls(full(10))
    with pytest.raises(ResourceExhaustedError):
        calls.run(timeout=5)
    assert (calls.made, calls.slept) == (1, [])


def test_reads_and_requests_with_an_id_are_idempotent() -> None:
    assert is_idempotent("GetRun", None)
    assert is_idempotent("CreateRun", CreateRunRequest(request_id="x"))
    assert not is_idempotent("CreateRun", CreateRunRequest())
    assert not is_idempotent("CreateEvaluation", CreateEvaluationRequest())
    assert not is_idempotent("SetModelAlias", SetModelAliasRequest())


def test_the_retry_delay_survives_the_wire() -> None:
    found = from_status(to_status(full(1.25)))
    assert isinstance(found, ResourceExhaustedError)
    assert found.retry_seconds == 1.25
    assert from_status(to_status(gone())).retry_seconds is None
