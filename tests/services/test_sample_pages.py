"""Listings of samples whose media are larger than a message, through a real server."""

from __future__ import annotations

import hashlib

import pytest

from rebus.client import Client
from rebus.data.dataset import write_version
from rebus.data.sample import Sample, Segment
from rebus.store import Store
from rebus.v1 import common_pb2 as pb
from rebus.v1.dataset_pb2 import ListSamplesRequest


def film(number: int, size: int, *, shown: int = 1) -> Sample:
    """A sample of one video, which its segments show ``shown`` times."""
    segments = [Segment(text="what happens?"), *[Segment(type="video", media=0)] * shown]
    return Sample(id=f"s{number}", segments=segments, media=[bytes([number]) * size])


def pages(client: Client, parent: str) -> list[list[pb.Sample]]:
    request = ListSamplesRequest(parent=parent, page_size=100)
    found = []
    while True:
        page = client.datasets.ListSamples(request)
        found.append(list(page.samples))
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def test_a_page_ends_before_it_exceeds_a_message(client: Client, store: Store) -> None:
    version = write_version(store, "datasets/films", [film(number, 10 << 20) for number in range(9)])

    found = pages(client, version.name)

    assert [len(page) for page in found] == [4, 4, 1]
    assert [sample.id for page in found for sample in page] == [f"s{number}" for number in range(9)]
    assert {len(sample.segments[1].video) for page in found for sample in page} == {10 << 20}


@pytest.mark.parametrize(("size", "shown"), [(70 << 20, 1), (20 << 20, 4)])
def test_media_that_exceed_a_message_are_named_and_left_out(
    client: Client, store: Store, size: int, shown: int
) -> None:
    large = film(1, size, shown=shown)
    version = write_version(store, "datasets/films", [film(0, 10), large, film(2, 10)])

    found = pages(client, version.name)
    sample = found[0][1]

    kinds = [segment.WhichOneof("content") for segment in sample.segments]
    assert kinds == ["text", *["video"] * (2 if shown == 4 else 0), *["omitted"] * (2 if shown == 4 else 1)]
    assert sample.segments[-1].omitted == pb.OmittedMedia(
        kind="video", size_bytes=size, sha256=hashlib.sha256(large.media[0]).hexdigest()
    )
    assert [len(page) for page in found] == [3]
