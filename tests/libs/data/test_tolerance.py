"""When bad samples end an ingestion."""

from __future__ import annotations

import pytest

from rebus.data.tolerance import JUDGED_FROM, Tolerance
from rebus.errors import InvalidArgumentError
from rebus.v1.dataset_pb2 import Ingestion


@pytest.mark.parametrize(
    ("fields", "good", "bad", "early", "refused"),
    [
        ({}, 90, 10, False, False),
        ({}, 89, 11, False, True),
        ({"max_bad_share": 0.0}, 99, 1, False, True),
        ({"max_bad_share": 1.0}, 1, 99, False, False),
        ({"max_bad_share": 1.0}, 0, 99, False, True),  # no good sample at all
        ({"max_bad_share": 1.0, "max_bad_samples": 5}, 1, 5, False, False),
        ({"max_bad_share": 1.0, "max_bad_samples": 5}, 1, 6, True, True),
        ({"max_bad_samples": 0}, 1, 1, True, True),
        # Halfway between 0.1 and 1, but only once enough was seen to judge.
        ({}, JUDGED_FROM * 9 // 20, JUDGED_FROM * 11 // 20, False, True),
        ({}, JUDGED_FROM * 9 // 20, JUDGED_FROM * 11 // 20 + 1, True, True),
        ({}, JUDGED_FROM * 9 // 20 - 2, JUDGED_FROM * 11 // 20 + 1, False, True),
    ],
)
def test_limits(fields: dict[str, float], good: int, bad: int, early: bool, refused: bool) -> None:
    tolerance = Tolerance(Ingestion(**fields))  # pyright: ignore[reportArgumentType]

    assert tolerance.is_hopeless(good, bad) == early
    for check, expected in ((tolerance.check_early, early), (tolerance.check, refused)):
        if expected:
            with pytest.raises(InvalidArgumentError, match="a.png: cut"):
                check(good, bad, ["a.png: cut"])
        else:
            check(good, bad, ["a.png: cut"])
