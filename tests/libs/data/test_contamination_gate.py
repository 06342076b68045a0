"""A benchmark against all that a model is trained on: what is found, kept, refused and not known."""

from __future__ import annotations

import pytest

from rebus.data import contamination_gate
from rebus.data.contamination_gate import TrainedRows, compare, require
from rebus.data.contamination_match import MatchConfig, match_from_message, match_to_message
from rebus.data.dataset import write_version
from rebus.data.sample import Sample, Segment
from rebus.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.store import Store, documents
from rebus.store.maintenance import fsck, garbage
from rebus.v1.contamination_pb2 import Contamination, ContaminationMatch
from rebus.v1.dataset_pb2 import DatasetVersion

TEXT = MatchConfig(by=("text",))


def sentence(number: int) -> str:
    return " ".join(f"w{number}x{at}" for at in range(12))


def stored(store: Store, dataset: str, *numbers: int, split: str = "train", source: str = "") -> TrainedRows:
    """A version of one sentence a number."""
    samples = [
        Sample(id=f"{dataset[9:]}-{at}", segments=[Segment(text=sentence(at))], split=split, source=source or "s")
        for at in numbers
    ]
    version = write_version(store, dataset, samples)
    return TrainedRows(version=version.name, digest=version.digest)


@pytest.fixture
def benchmark(store: Store) -> str:
    return stored(store, "datasets/bench", *range(10)).version


def test_what_any_of_the_training_data_holds_counts_once(store: Store, benchmark: str) -> None:
    rows = [stored(store, "datasets/one", 1, 2, 50), stored(store, "datasets/two", 2, 3, 60)]

    found = compare(store, benchmark, rows, TEXT)

    report = found.report
    assert found.seen == {"bench-1", "bench-2", "bench-3"}
    assert (report.num_items, report.num_seen, report.share) == (10, 3, 0.3)
    assert [(part.dataset_version, part.num_samples, part.num_seen) for part in report.training] == [
        ("datasets/one/versions/1", 3, 2),
        ("datasets/two/versions/1", 3, 2),
    ]
    assert [(seen.item, seen.sample) for seen in report.first_seen] == [
        ("bench-1", "one-1"),
        ("bench-2", "one-2"),
        ("bench-3", "two-3"),
    ]
    assert report.benchmark_digest == documents.get(store, DatasetVersion, benchmark).digest
    assert match_from_message(report.match, split="", field="match") == TEXT


def test_the_gate_names_the_benchmark_the_share_the_first_ids_and_the_cure(store: Store, benchmark: str) -> None:
    report = compare(store, benchmark, [stored(store, "datasets/one", 4, 7, 50)], TEXT).report

    require(report, 0.2)
    with pytest.raises(FailedPreconditionError) as error:
        require(report, 0.1)
    assert str(error.value) == (
        "the training data hold 20.0% of datasets/bench/versions/1, more than 10.0%: 2 of 10 items "
        "(bench-4: datasets/one/versions/1 sample one-4 has 100% of its 8-grams; "
        "bench-7: datasets/one/versions/1 sample one-7 has 100% of its 8-grams); "
        "the curator `contamination` drops the rows that hold them"
    )


def test_only_rows_of_the_split_and_the_sources_count(store: Store) -> None:
    samples = [
        Sample(id=f"r{at}", segments=[Segment(text=sentence(at))], split=split, source=source)
        for at, (split, source) in enumerate([("train", "a"), ("train", "b"), ("train", "c"), ("test", "a")])
    ]
    version = write_version(store, "datasets/mixed", samples)

    def seen(split: str, *sources: str) -> set[str]:
        rows = TrainedRows(version=version.name, digest=version.digest, split=split, sources=sources)
        return set(compare(store, version.name, [rows], TEXT).seen)

    assert seen("train") == {"r0", "r1", "r2"}
    assert seen("train", "a", "c") == {"r0", "r2"}
    assert seen("test") == {"r3"}
    assert set(compare(store, version.name, [], TEXT).seen) == set()


def test_what_was_computed_is_kept_even_when_the_data_are_gone(
    store: Store, benchmark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = stored(store, "datasets/one", 4)
    first = compare(store, benchmark, [rows], TEXT)
    documents.delete(store, "datasets/one")
    monkeypatch.setattr(contamination_gate, "held_items", None)

    assert compare(store, benchmark, [rows], TEXT) == first
    assert garbage(store) == fsck(store) == []

    (path,) = (info.path for info in store.scan("contamination"))
    store.put(path, store.get(path).replace(b"one-4", b"one-5"))
    assert [problem.path for problem in fsck(store)] == [path]
    assert compare(store, benchmark, [rows], TEXT).report.unknown == ["no datasets/one/versions/1"]


def test_another_match_is_another_record(store: Store, benchmark: str) -> None:
    rows = stored(store, "datasets/one", 4)
    compare(store, benchmark, [rows], TEXT)
    compare(store, benchmark, [rows], MatchConfig(by=("text",), ngram=3))
    assert len(list(store.scan("contamination"))) == 2


def test_what_cannot_be_told_is_said_and_does_not_pass_a_gate(store: Store, benchmark: str) -> None:
    gone = TrainedRows(version="datasets/none/versions/1", digest="d")
    large, small = stored(store, "datasets/large", *range(50, 61)), stored(store, "datasets/small", 1)
    other = TrainedRows(version=small.version, digest="another")

    report = compare(store, benchmark, [gone, large, other, small], TEXT, max_samples=10).report

    assert [part.unknown for part in report.training] == [
        "no datasets/none/versions/1",
        "datasets/large/versions/1 has 11 rows to look through, over max_samples=10",
        "datasets/small/versions/1 is not the one that was trained on: its digest differs",
        "",
    ]
    assert (len(report.unknown), report.num_seen) == (3, 1)
    (why,) = compare(store, benchmark, [stored(store, "datasets/narrow", 2)], TEXT, max_samples=9).report.unknown
    assert why == "datasets/bench/versions/1 has 10 items, over max_samples=9"
    with pytest.raises(
        FailedPreconditionError, match=r"more than 50.0% of .* is unknown: no datasets/none/versions/1; "
    ):
        require(report, 0.5)


def test_a_column_that_is_not_there_is_named(store: Store, benchmark: str) -> None:
    config = MatchConfig(by=("embedding",), embedding_column="it's")
    (why,) = compare(store, benchmark, [stored(store, "datasets/one", 1)], config).report.unknown
    assert why == 'embedding_column: datasets/bench/versions/1 has no column "it\'s"'


def test_a_benchmark_that_is_gone_or_empty_is_an_error(store: Store, benchmark: str) -> None:
    with pytest.raises(NotFoundError, match="datasets/gone/versions/1"):
        compare(store, "datasets/gone/versions/1", [], TEXT)
    with pytest.raises(InvalidArgumentError, match="no rows of split 'dev'"):
        compare(store, benchmark, [], MatchConfig(split="dev"))


def test_progress_may_stop_it_and_then_nothing_is_kept(store: Store, benchmark: str) -> None:
    def stop(fraction: float, message: str) -> None:
        assert message == f"looking for items of {benchmark} in datasets/one/versions/1"
        if fraction:
            raise CancelledError("stop")

    with pytest.raises(CancelledError):
        compare(store, benchmark, [stored(store, "datasets/one", 1)], TEXT, progress=stop)
    assert list(store.scan("contamination")) == []


def test_settings_survive_the_message() -> None:
    config = MatchConfig(by=("image", "embedding"), ngram=5, unit="characters", max_distance=0, min_cosine=0.5)
    assert match_from_message(match_to_message(config), split="", field="match") == config
    usual = match_from_message(ContaminationMatch(by=["BY_UNSPECIFIED", "TEXT", "TEXT"]), split="test", field="match")
    assert usual == MatchConfig(by=("text",), split="test")
    assert match_to_message(usual).max_distance == Contamination(match=match_to_message(usual)).match.max_distance == 10
