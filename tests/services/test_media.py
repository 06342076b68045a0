"""Uploads: what arrives is whole and named by its bytes, or nothing arrives; requests refer to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from rebus.client import Client
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError, NotFoundError
from rebus.store import Store, maintenance, media
from rebus.v1 import common_pb2, generation_pb2, media_pb2, media_pb2_grpc, retrieval_pb2
from services.harness import converters
from services.harness.embedded import hosted
from services.harness.limits import Limits, PoolLimits

LIMITS = Limits(max_message_bytes=4 << 20, max_upload_bytes=6 << 20)


def blob(size: int) -> bytes:
    return hashlib.shake_128(b"blob").digest(size)


@pytest.fixture
def client(store: Store) -> Iterator[Client]:
    with hosted(store.url, ["ingest"], limits=LIMITS) as endpoint, Client(endpoint) as opened:
        yield opened


def test_an_upload_is_named_by_its_bytes_and_repeats_to_the_same(client: Client, store: Store, tmp_path: Path) -> None:
    data = blob(5_000_001)
    path = tmp_path / "blob"
    path.write_bytes(data)
    name = client.upload(path)
    assert name == f"media/{hashlib.sha256(data).hexdigest()}"
    assert client.upload(data) == name
    assert client.get(name).size_bytes == len(data)
    assert media.read(store, name) == data
    assert [info.path for info in store.list("media")] == [name]


def test_an_upload_over_the_limit_stores_nothing(client: Client, store: Store) -> None:
    with pytest.raises(InvalidArgumentError, match="chunk: more than the server's limit of 6291456 bytes"):
        client.upload(blob(7 << 20))
    assert list(store.list("media")) == []


def test_empty_and_unreadable_sources_are_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="chunk: no bytes"):
        client.upload(b"")
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        client.upload(tmp_path / "none")


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([media_pb2.UploadMediaRequest(chunk=b"abc")], "sha256"),
        ([media_pb2.UploadMediaRequest(chunk=b"abc", sha256="0" * 64)], "sha256"),
        ([media_pb2.UploadMediaRequest(chunk=b"abc", sha256="X")], "sha256"),
        ([media_pb2.UploadMediaRequest(sha256="0" * 64), media_pb2.UploadMediaRequest(chunk=b"a")], "sha256"),
        ([], "chunk"),
    ],
)
def test_a_broken_upload_names_the_field_and_stores_nothing(
    client: Client, store: Store, requests: list[media_pb2.UploadMediaRequest], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.media.UploadMedia(iter(requests))
    assert caught.value.violations[0].field == field
    assert list(store.list("media")) == []


def test_an_upload_that_breaks_off_leaves_nothing(client: Client, store: Store, tmp_path: Path) -> None:
    class BrokenOffError(Exception):
        pass

    def requests() -> Iterator[media_pb2.UploadMediaRequest]:
        yield media_pb2.UploadMediaRequest(chunk=blob(1 << 20))
        raise BrokenOffError

    with pytest.raises(grpc.RpcError):
        media_pb2_grpc.MediaServiceStub(client.channel).UploadMedia(requests(), timeout=30)
    data = blob(10)
    assert [info.path for info in store.list("media")] == []
    assert client.upload(data) == f"media/{hashlib.sha256(data).hexdigest()}"
    assert not [path for folder in (tmp_path / "cache").rglob("uploads") for path in folder.iterdir()]


def test_uploads_have_places_of_their_own(store: Store) -> None:
    limits = Limits(calls=PoolLimits(concurrent=1, concurrent_per_principal=1))
    with hosted(store.url, ["ingest"], limits=limits) as endpoint, Client(endpoint) as client:
        name = client.upload(blob(100))

        def requests() -> Iterator[media_pb2.UploadMediaRequest]:
            yield media_pb2.UploadMediaRequest(chunk=blob(100))
            assert client.get(name).size_bytes == 100  # while the upload runs
            yield media_pb2.UploadMediaRequest(sha256=name.removeprefix("media/"))

        assert client.media.UploadMedia(requests()).name == name


def test_gc_keeps_an_upload_for_its_grace_and_fsck_finds_a_flipped_byte(client: Client, store: Store) -> None:
    name = client.upload(blob(1000))
    later = datetime.now(UTC) + timedelta(hours=2)
    assert maintenance.garbage(store, grace=timedelta(hours=3), now=later) == []
    assert [info.path for info in maintenance.garbage(store, grace=timedelta(hours=1), now=later)] == [name]
    assert maintenance.fsck(store) == []
    store.put(name, b"x" + blob(1000)[1:])
    assert [problem.path for problem in maintenance.fsck(store)] == [name]


def test_a_message_over_the_limit_is_refused(client: Client) -> None:
    big = media_pb2.UploadMediaRequest(chunk=blob(5 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        media_pb2_grpc.MediaServiceStub(client.channel).UploadMedia(iter([big]), timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_prompt_reads_what_it_refers_to(client: Client, store: Store) -> None:
    first, second = blob(100), b"small"
    segments = [
        common_pb2.Segment(text="look"),
        common_pb2.Segment(image_ref=client.upload(first)),
        common_pb2.Segment(image=second),
    ]
    sample = converters.prompt_from_proto(segments, store)
    assert sample.media == [first, second]
    assert [(segment.type, segment.media) for segment in sample.segments[1:]] == [("image", 0), ("image", 1)]


def test_audio_and_video_pass_the_wire(store: Store) -> None:
    segments = [
        Segment(type="video", media=0, branch=1, start_seconds=0.25, end_seconds=1 / 3),
        Segment(type="audio", media=1, start_seconds=0.0),
        Segment(text="a door opens", end_seconds=2.0),
    ]
    sample = Sample(id="prompt", segments=segments, media=[b"film", b"sound"])

    assert converters.prompt_from_proto(converters.sample_to_proto(sample).segments, store) == sample


def test_references_are_checked_before_anything_is_read(
    client: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = common_pb2.Segment(image_ref=f"media/{'0' * 64}")
    with pytest.raises(NotFoundError, match=r"segments\[1\].image_ref: no media/0+; upload it"):
        converters.prompt_from_proto([common_pb2.Segment(text="a"), missing], store)
    large = common_pb2.Segment(image_ref=client.upload(blob(100)))
    monkeypatch.setattr(converters, "MAX_REFERRED_BYTES", 150)
    with pytest.raises(InvalidArgumentError, match=r"segments\[1\].image_ref: the request refers to more than 150"):
        converters.prompt_from_proto([large, large], store)
    monkeypatch.setattr(converters, "MAX_IMAGE_BYTES", 99)
    with pytest.raises(InvalidArgumentError, match="has 100 bytes; an image has at most 99"):
        converters.prompt_from_proto([large], store)


@pytest.mark.parametrize("name", ["media/x", "media/../runs/x", f"media/{'A' * 64}", f"runs/{'0' * 64}"])
def test_a_reference_to_anything_but_media_is_refused(store: Store, name: str) -> None:
    model = "models/x/versions/1"
    with hosted(store.url, ["retrieval", "generation"]) as endpoint, Client(endpoint) as client:
        query = retrieval_pb2.Query(image_ref=name)
        with pytest.raises(InvalidArgumentError) as caught:
            client.retrieval.Embed(retrieval_pb2.EmbedRequest(model_version=model, inputs=[query]))
        assert caught.value.violations[0].field == "inputs[0].image_ref"
        segment = common_pb2.Segment(image_ref=name)
        with pytest.raises(InvalidArgumentError) as caught:
            list(client.generation.Generate(generation_pb2.GenerateRequest(model_version=model, segments=[segment])))
        assert caught.value.violations[0].field == "segments[0].image_ref"


def test_media_that_an_answer_left_out_are_no_input(store: Store) -> None:
    sample = Sample(id="prompt", segments=[Segment(type="video", media=0)], media=[b"film"])

    with pytest.raises(InvalidArgumentError, match=r"segments\[0\].omitted"):
        converters.prompt_from_proto(converters.sample_to_proto(sample, room=3).segments, store)
