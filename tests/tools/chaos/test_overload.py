"""The overload driver on a real server: what is refused says when to come again, and what is taken on is answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.chaos.overload import MAX_GROWTH_BYTES, Result, measure

HELD = Result(
    seed=0,
    peak_per_second=80.0,
    offered_per_second=800.0,
    goodput_ratio=0.9,
    p99_seconds=0.5,
    p99_bound_seconds=1.0,
    codes={"OK": 9, "RESOURCE_EXHAUSTED": 90},
    refusals_without_retry_info=0,
    memory_growth_bytes=0,
)


@pytest.mark.slow
def test_what_is_too_much_is_refused_and_the_rest_is_answered() -> None:
    result = measure(work_seconds=0.1, seconds=2.0, factor=10.0, seed=1)
    assert result.codes.keys() == {"OK", "RESOURCE_EXHAUSTED"}
    assert result.codes["RESOURCE_EXHAUSTED"] > result.codes["OK"]
    assert result.refusals_without_retry_info == 0
    assert result.memory_growth_bytes <= MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"goodput_ratio": 0.79},
        {"p99_seconds": 1.01},
        {"codes": {"OK": 9, "UNAVAILABLE": 1}},
        {"refusals_without_retry_info": 1},
        {"memory_growth_bytes": MAX_GROWTH_BYTES + 1},
    ],
)
def test_every_bar_counts(change: dict[str, object]) -> None:
    assert HELD.holds
    assert not replace(HELD, **change).holds  # pyright: ignore[reportArgumentType]
