"""``--set`` and short names."""

from __future__ import annotations

import pytest

from rebus.errors import InvalidArgumentError
from tools.rebus.settings import overlay, pairs


def test_overlay_reads_yaml_values_and_walks_lists() -> None:
    values = {"seed": 0, "stages": [{"steps": 5}, {"steps": 6}]}
    changes = ["seed=3", "stages.1.steps=50", "model.width=64", "data.names=[a, b]", "flag=true", "url=a=b"]
    assert overlay(values, changes) == {
        "seed": 3,
        "stages": [{"steps": 5}, {"steps": 50}],
        "model": {"width": 64},
        "data": {"names": ["a", "b"]},
        "flag": True,
        "url": "a=b",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "--set: expected key=value, found 'seed'"),
        ("=3", "--set: expected key=value, found '=3'"),
        ("stages.7.steps=1", "--set: stages.7.steps: expected a position from 0 to 0, found '7'"),
        ("stages.x=1", "--set: stages.x: expected a position from 0 to 0, found 'x'"),
        ("seed.a=1", "--set: seed.a: 'a' lies below a plain value (0)"),
        ("seed=[1", "--set: seed: '[1' is not YAML; quote it"),
    ],
)
def test_a_bad_change_says_what_was_expected(change: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        overlay({"seed": 0, "stages": [{"steps": 1}]}, [change])
    assert str(caught.value) == message


def test_pairs_split_at_the_first_equals_sign() -> None:
    assert pairs(["a=b=c"], "--dataset") == [("a", "b=c")]
