"""Ingestion and curation as jobs, and what a server refuses before it starts one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rebus.data import jobs, versions
from rebus.data.dataset import open_version
from rebus.data.quarantine import read_quarantine
from rebus.data.sources import ROOTS_ENV
from rebus.errors import CancelledError, InvalidArgumentError, NotFoundError, RebusError
from rebus.jobs import status
from rebus.jobs.context import JobContext
from rebus.jobs.events import EventLog
from rebus.store import Store, documents
from rebus.v1.dataset_pb2 import Curation, Curator, Dataset, DatasetVersion, Ingestion, Source


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Eight good pictures; a corrupt one, an empty caption and a missing file."""
    folder = tmp_path / "pets"
    folder.mkdir()
    lines = ["image,caption"]
    for i in range(8):
        (folder / f"{i}.png").write_bytes(png(i))
        lines.append(f"{i}.png,pet number {i}")
    (folder / "cut.png").write_bytes(png(9)[:100])
    lines[4:4] = ["cut.png,broken", "0.png,", "absent.png,gone"]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def source(reader: str, uri: str | Path = "", **settings: Any) -> Source:
    made = Source(reader=reader, uri=str(uri))
    made.settings.update(settings)
    return made


def ingestion(*sources: Source, share: float | None = None) -> Ingestion:
    return Ingestion(dataset="datasets/x", sources=sources, max_bad_share=share)


def start(store: Store, message: Any, tmp_path: Path) -> JobContext:
    document, _ = status.create(store, message)
    return JobContext(store, document.name, tmp_path / "cache")


def test_an_ingestion_keeps_the_good_and_lists_the_bad(store: Store, pets: Path, tmp_path: Path) -> None:
    ctx = start(store, ingestion(source("image-folder", pets), share=0.3), tmp_path)

    jobs.run_ingestion(ctx)
    ctx.flush()

    done = ctx.document(Ingestion)
    assert (done.num_samples, done.num_quarantined) == (8, 3)
    version = documents.get(store, DatasetVersion, done.dataset_version)
    assert (version.producer, version.num_media) == (ctx.name, 8)
    told = [(q.location, q.reason) for q in read_quarantine(store, ctx.name)]
    assert [location for location, _ in told] == ["captions.csv:5", "captions.csv:6", "captions.csv:7"]
    assert told[0][1].startswith("cut.png: corrupt or truncated PNG")
    assert [reason for _, reason in told[1:]] == ["caption: is empty", "absent.png: no such file"]
    events = [e for e in EventLog(store, ctx.name).read() if e.kind == "metrics"]
    assert dict(events[-1].values) == {"samples": 8, "quarantined": 3}


def test_too_many_bad_samples_fail_the_job_and_publish_nothing(store: Store, pets: Path, tmp_path: Path) -> None:
    ctx = start(store, ingestion(source("image-folder", pets)), tmp_path)

    with pytest.raises(InvalidArgumentError, match="3 of 11 samples are bad, more than max_bad_share=0.1.*cut.png"):
        jobs.run_ingestion(ctx)

    assert ctx.document(Ingestion).num_quarantined == 3
    assert len(list(read_quarantine(store, ctx.name))) == 3
    assert documents.list_page(store, DatasetVersion, parent="datasets/x")[0] == []


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_good_sample_is_an_error_whatever_the_share(store: Store, pets: Path, tmp_path: Path, share: float) -> None:
    (pets / "captions.csv").write_text("image,caption\ncut.png,x\n")
    ctx = start(store, ingestion(source("image-folder", pets), share=share), tmp_path)

    with pytest.raises(InvalidArgumentError, match="no good sample among 1: captions.csv:2: cut.png: corrupt"):
        jobs.run_ingestion(ctx)


def test_sources_join_in_order_and_an_id_is_taken_once(store: Store, pets: Path, tmp_path: Path) -> None:
    (pets / "captions.csv").write_text("image,caption\n0.png,a\n1.png,b\n")
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n\ntwo")
    sources = [source("text", texts.as_uri()), source("image-folder", pets), source("text", texts)]
    ctx = start(store, ingestion(*sources, share=0.5), tmp_path)

    jobs.run_ingestion(ctx)

    done = ctx.document(Ingestion)
    ids = [s.id for s in open_version(store, done.dataset_version).scan()]
    assert ids == ["texts/texts.txt:1", "texts/texts.txt:3", "pets/captions.csv:2", "pets/captions.csv:3"]
    assert [q.reason for q in read_quarantine(store, ctx.name)] == ["an earlier sample has this id"] * 2


def test_settings_reach_the_reader_as_their_types(store: Store, tmp_path: Path) -> None:
    settings = {"num_scenes": 2, "num_pairs": 0, "num_texts": 0, "image_size": 32, "kind_weights": {"count": 3}}
    ctx = start(store, ingestion(source("scenes", **settings)), tmp_path)

    jobs.run_ingestion(ctx)

    assert ctx.document(Ingestion).num_samples == 2


def test_what_is_quarantined_may_hold_any_bytes(store: Store, pets: Path, tmp_path: Path) -> None:
    name = "a\u2028b\\x.png"
    lines = [json.dumps({"image": image, "caption": "x"}) for image in ("0.png", name, "\ud800")]
    (pets / "t.jsonl").write_text("\n".join(lines))
    ctx = start(store, ingestion(source("image-folder", pets / "t.jsonl"), share=0.9), tmp_path)

    jobs.run_ingestion(ctx)

    assert [q.location for q in read_quarantine(store, ctx.name)] == ["t.jsonl:2", "t.jsonl:3"]
    assert "a\u2028b" in next(read_quarantine(store, ctx.name)).reason


def test_a_cancelled_ingestion_publishes_nothing(store: Store, pets: Path, tmp_path: Path) -> None:
    ctx = start(store, ingestion(source("image-folder", pets)), tmp_path)
    ctx.stop()

    with pytest.raises(CancelledError):
        jobs.run_ingestion(ctx)
    assert documents.list_page(store, DatasetVersion, parent="datasets/x")[0] == []


def test_an_attempt_after_the_publication_takes_up_its_version(
    store: Store, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = start(store, ingestion(source("image-folder", pets), share=0.3), tmp_path)
    with monkeypatch.context() as patch:  # the process dies after publishing, before it can say so
        patch.setattr(ctx, "update", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            jobs.run_ingestion(ctx)
    assert ctx.document(Ingestion).dataset_version == ""

    jobs.run_ingestion(ctx)

    assert ctx.document(Ingestion).dataset_version == "datasets/x/versions/1"
    assert len(documents.list_page(store, DatasetVersion, parent="datasets/x")[0]) == 1


def test_a_curation_drops_rows_and_counts_them_by_curator(store: Store, pets: Path, tmp_path: Path) -> None:
    (pets / "captions.csv").write_text("image,caption\n0.png,same\n0.png,same\n1.png,ok\n2.png,x\n3.png,fine\n")
    first = start(store, ingestion(source("image-folder", pets)), tmp_path)
    jobs.run_ingestion(first)
    parent = first.document(Ingestion).dataset_version
    length = Curator(curator="text-length")
    length.settings.update({"min_chars": 2})
    curation = Curation(dataset_version=parent, curators=[Curator(curator="exact-dedup"), length])
    jobs.checked_curation(store, curation)
    ctx = start(store, curation, tmp_path)

    for _ in range(2):  # a second attempt finds the published version
        jobs.run_curation(ctx)

        done = ctx.document(Curation)
        assert dict(done.dropped) == {"exact-dedup": 1, "text-length": 1}
        assert done.result_version == "datasets/x/versions/2"
        kept = open_version(store, done.result_version)
        assert [s.segments[1].text for s in kept.scan()] == ["same", "ok", "fine"]
        assert (kept.version.parent, kept.version.producer) == (parent, ctx.name)
        assert [(q.location, q.reason) for q in read_quarantine(store, ctx.name)] == [
            ("pets/captions.csv:3", "exact-dedup: repeats pets/captions.csv:2"),
            ("pets/captions.csv:5", "text-length: 1 characters of text, fewer than 2"),
        ]


def test_refusals_name_the_field(pets: Path, tmp_path: Path) -> None:
    cases: list[tuple[Source, type[RebusError], str, str]] = [
        (source("image-foldr", pets), InvalidArgumentError, "reader", "did you mean 'image-folder'"),
        (source("image-folder", pets, captoins="x"), InvalidArgumentError, "settings.captoins", "unknown key"),
        (source("image-folder", pets, task=3), InvalidArgumentError, "settings.task", "valid string"),
        (source("image-folder", tmp_path / "no"), NotFoundError, "uri", "no such path"),
        (source("image-folder", pets, captions="no.csv"), NotFoundError, "", "no.csv: no such file"),
        (source("image-folder", pets, caption_column="c"), InvalidArgumentError, "settings", "no column 'c'"),
        (source("image-folder", "pets"), InvalidArgumentError, "uri", "absolute path"),
        (source("image-folder"), InvalidArgumentError, "uri", "absolute path"),
        (source("image-folder", "https://example.org/x"), InvalidArgumentError, "uri", "not a host that may be"),
        (source("image-folder", "file://host/x"), InvalidArgumentError, "uri", "absolute path"),
        (source("scenes", pets), InvalidArgumentError, "uri", "leave it empty"),
        (source("scenes", num_scenes=1.5), InvalidArgumentError, "settings.num_scenes", "integer"),
    ]
    good = source("image-folder", pets)
    jobs.checked_ingestion(ingestion(good))
    for bad, error, field, text in cases:
        with pytest.raises(error, match=text) as caught:
            jobs.checked_ingestion(ingestion(good, bad))
        assert caught.value.violations[0].field == f"ingestion.sources[1].{field}".rstrip("."), bad
        assert "\n" not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="at least one source"):
        jobs.checked_ingestion(ingestion())


def test_sources_must_lie_below_the_allowed_roots(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (pets / "way-out").symlink_to(tmp_path)
    (other / "captions.csv").write_text("image,caption\n")
    outside = [other, pets / ".." / "other", pets / "way-out" / "other", tmp_path / "absent", f"file://{other}"]
    for uri in outside[:3]:
        jobs.checked_ingestion(ingestion(source("image-folder", uri)))

    monkeypatch.setenv(ROOTS_ENV, f"{tmp_path / 'elsewhere'}:{pets}")
    jobs.checked_ingestion(ingestion(source("image-folder", pets)))
    jobs.checked_ingestion(ingestion(source("image-folder", pets / "captions.csv")))
    for uri in outside:
        with pytest.raises(InvalidArgumentError, match="outside the folders") as caught:
            jobs.checked_ingestion(ingestion(source("image-folder", uri)))
        assert caught.value.violations[0].field == "ingestion.sources[0].uri"
    monkeypatch.setenv(ROOTS_ENV, "")
    with pytest.raises(InvalidArgumentError, match="outside the folders"):
        jobs.checked_ingestion(ingestion(source("image-folder", pets)))


def test_curations_are_checked_before_they_start(store: Store, pets: Path, tmp_path: Path) -> None:
    ctx = start(store, ingestion(source("image-folder", pets), share=0.5), tmp_path)
    jobs.run_ingestion(ctx)
    version = ctx.document(Ingestion).dataset_version
    wrong = Curator(curator="text-length")
    wrong.settings.update({"min_char": 2})

    with pytest.raises(NotFoundError, match="datasets/x/versions/9"):
        jobs.checked_curation(store, Curation(dataset_version="datasets/x/versions/9", curators=[wrong]))
    for curators, field in [
        ([Curator(curator="nope")], "curation.curators[0].curator"),
        ([Curator(curator="exact-dedup"), wrong], "curation.curators[1].settings.min_char"),
        ([], "curation.curators"),
    ]:
        with pytest.raises(InvalidArgumentError) as caught:
            jobs.checked_curation(store, Curation(dataset_version=version, curators=curators))
        assert caught.value.violations[0].field == field


@pytest.mark.slow
def test_ingest_and_curate_on_s3(s3_store: Store, pets: Path, tmp_path: Path) -> None:
    ctx = start(s3_store, ingestion(source("image-folder", pets), share=0.3), tmp_path)
    jobs.run_ingestion(ctx)
    parent = ctx.document(Ingestion).dataset_version
    ids = [f"pets/captions.csv:{line}" for line in (2, 3, 4, 8, 9, 10, 11, 12)]
    reader = open_version(s3_store, parent)
    assert [s.id for s in reader.take([7, 0, 3])] == [ids[7], ids[0], ids[3]]

    length = Curator(curator="image-size")
    curation = start(s3_store, Curation(dataset_version=parent, curators=[length]), tmp_path)
    jobs.run_curation(curation)

    result = open_version(s3_store, curation.document(Curation).result_version)
    assert [s.id for s in result.scan()] == ids
    assert result.table(["min_image_side"]).column(0).to_pylist() == [40] * 8
    assert versions.verify(s3_store, parent) == result.verify() == []


@pytest.mark.parametrize("reader", ["image-folder", "text"])
def test_a_source_of_more_samples_than_its_limit_fails_the_job(
    store: Store, pets: Path, tmp_path: Path, reader: str
) -> None:
    (pets / "notes.txt").write_text("\n\n".join(["a note"] * 4))
    uri = pets / "notes.txt" if reader == "text" else pets
    count = 4 if reader == "text" else 11
    jobs.run_ingestion(start(store, ingestion(source(reader, uri, limits={"max_samples": count}), share=0.9), tmp_path))
    version = documents.get(store, Dataset, "datasets/x").latest_version

    ctx = start(store, ingestion(source(reader, uri, limits={"max_samples": count - 1}), share=0.9), tmp_path)
    with pytest.raises(InvalidArgumentError, match=rf"max_samples: more than {count - 1} samples"):
        jobs.run_ingestion(ctx)
    assert documents.get(store, Dataset, "datasets/x").latest_version == version
