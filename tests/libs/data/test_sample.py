"""The shape of a sample: what validation refuses, and which field it names."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError

TEXT = Segment(text="what is said?")


@pytest.mark.parametrize(
    "segment",
    [
        Segment(type="audio", media=0),
        Segment(type="video", media=0, start_seconds=1.5, end_seconds=2.0),
        Segment(type="video", media=0, end_seconds=2.0),
        Segment(text="a door opens", media=0, start_seconds=0.0, end_seconds=0.5),
    ],
)
def test_audio_and_video_stand_beside_text(segment: Segment) -> None:
    Sample(id="a", segments=[segment, TEXT], media=[b"x"]).validate()


@pytest.mark.parametrize(
    ("values", "field", "reason"),
    [
        ({"type": "audio", "media": 1}, "media", "index 1 is outside the sample's 1 media"),
        ({"type": "video"}, "media", "index -1 is outside"),
        ({"type": "image", "media": 0, "start_seconds": 0.0}, "start_seconds", "an image has no time"),
        ({"type": "image", "media": 0, "end_seconds": 1.0}, "end_seconds", "an image has no time"),
        ({"type": "video", "media": 0, "start_seconds": -0.1}, "start_seconds", "at least 0, found -0.1"),
        ({"type": "video", "media": 0, "start_seconds": math.nan}, "start_seconds", "found nan"),
        ({"type": "video", "media": 0, "end_seconds": 0.0}, "end_seconds", "after 0 s, found 0.0"),
        ({"text": "x", "start_seconds": 2.0, "end_seconds": 2.0}, "end_seconds", "after 2 s, found 2.0"),
        ({"text": "x", "end_seconds": math.inf}, "end_seconds", "found inf"),
    ],
)
def test_a_bad_segment_is_named(values: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        Sample(id="a", segments=[TEXT, Segment(**values)], media=[b"x"]).validate()
    assert caught.value.violations[0].field == f"sample[a].segments[1].{field}"
