"""Versions of datasets: round trips, random access, crashes between any two writes, concurrent writers."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebus.config import canonical_json
from rebus.data import versions
from rebus.data.dataset import derive_version, open_version, write_version
from rebus.data.rows import SCHEMA, from_table, to_batch
from rebus.data.sample import Sample, Segment
from rebus.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.store import Store, documents, maintenance
from rebus.v1.dataset_pb2 import Dataset, DatasetVersion

DATASET = "datasets/x"


def sample(number: int, tag: str = "s", split: str = "train") -> Sample:
    return Sample(
        id=f"{tag}{number}",
        family=f"{tag}{number // 2}",
        split=split,
        segments=[
            Segment(type="image", media=0, regions=((0.0, 0.1, 0.5, 1 / 3), (0.5, 0.5, 1.0, 1.0))),
            Segment(text=f"picture {number}", role="assistant", loss=True, branch=1, task="caption"),
        ],
        media=[bytes([number % 256]) * (number + 1)],
        source=f"source{number % 3}",
        license="CC0-1.0",
        metadata={"number": number, "nested": {"list": [1, None, "ü"]}},
    )


def samples(count: int, tag: str = "s") -> list[Sample]:
    return [sample(n, tag, ("train", "train", "validation", "test")[n % 4]) for n in range(count)]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
fractions = st.floats(0, 1)
segments = st.builds(
    Segment,
    type=st.sampled_from(["text", "image", "audio", "video"]),
    role=st.sampled_from(["system", "user", "assistant"]),
    text=texts,
    media=st.integers(-1, 3),
    loss=st.booleans(),
    branch=st.integers(0, 2**31 - 1),
    task=texts,
    regions=st.none() | st.lists(st.tuples(fractions, fractions, fractions, fractions), max_size=3).map(tuple),
    start_seconds=st.none() | fractions,
    end_seconds=st.none() | fractions,
)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
any_sample = st.builds(
    Sample,
    id=texts,
    family=texts,
    split=st.sampled_from(["train", "test"]),
    segments=st.lists(segments, max_size=4),
    media=st.lists(st.binary(max_size=50), max_size=3),
    source=texts,
    license=texts,
    metadata=st.dictionaries(texts, jsons, max_size=3),
)


def row(s: Sample) -> dict[str, Any]:
    """One sample as a row, as the schema says it, without a thought for speed."""
    texts = [[t.role, t.branch, t.text] for t in s.segments if t.type == "text"]
    return {
        **{name: getattr(s, name) for name in ("id", "family", "split", "source", "license", "media")},
        "metadata": canonical_json(s.metadata).decode(),
        "segments": [asdict(segment) for segment in s.segments],
        "num_segments": len(s.segments),
        "num_media": len(s.media),
        "num_chars": sum(len(text) for _, _, text in texts),
        "text_sha256": hashlib.sha256(canonical_json(texts)).hexdigest(),
        "media_sha256": [hashlib.sha256(data).hexdigest() for data in s.media],
    }


@given(st.lists(any_sample, max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_samples_survive_arrow(originals: list[Sample]) -> None:
    batch = to_batch(originals)

    assert from_table(batch) == originals
    assert batch == pa.RecordBatch.from_pylist([row(s) for s in originals], schema=SCHEMA)


@given(st.lists(any_sample, min_size=1, max_size=6))
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_valid_samples_survive_the_store(store: Store, drawn: list[Sample]) -> None:
    valid = [replace(s, id=str(i), segments=[Segment(text="a"), *_valid(s)]) for i, s in enumerate(drawn)]

    version = write_version(store, DATASET, valid, batch_rows=2)

    assert list(open_version(store, version.name).scan()) == valid


def _valid(s: Sample) -> Iterator[Segment]:
    for segment in s.segments:
        with contextlib.suppress(InvalidArgumentError):
            replace(s, id="x", segments=[segment]).validate()
            yield segment


def test_random_access_equals_the_scan(store: Store) -> None:
    version = write_version(store, DATASET, samples(50), batch_rows=7)
    reader = open_version(store, version.name)
    scanned = list(reader.scan(batch_rows=11))
    rows = np.random.default_rng(0).integers(0, 50, 40)  # unordered, with repeats

    assert scanned == samples(50)
    assert reader.take(rows) == [scanned[r] for r in rows]
    assert reader.take([]) == []
    assert [s for s in scanned if s.split == "validation"] == list(reader.scan("validation"))
    assert reader.take(reader.row_ids("test")) == [s for s in scanned if s.split == "test"]
    assert reader.row_ids().tolist() == list(range(50))
    assert reader.row_ids("no-such").tolist() == []
    for bad in (-1, 50):
        with pytest.raises(InvalidArgumentError, match=f"row {bad} is outside the 50 rows"):
            reader.take([0, bad])


def test_the_version_counts_what_it_holds(store: Store) -> None:
    version = write_version(store, DATASET, samples(10), producer="ingestions/i")

    assert version.name == "datasets/x/versions/1"
    assert dict(version.splits) == {"train": 6, "validation": 2, "test": 2}
    assert dict(version.sources) == {"source0": 4, "source1": 3, "source2": 3}
    assert (version.num_samples, version.num_media, version.producer) == (10, 10, "ingestions/i")
    assert documents.get(store, DatasetVersion, version.name) == version
    assert documents.get(store, Dataset, DATASET).latest_version == version.name


def test_a_later_version_leaves_the_earlier_ones_alone(store: Store) -> None:
    first = write_version(store, DATASET, samples(6, "a"))
    reader = open_version(store, first.name)
    second = write_version(store, DATASET, samples(4, "b"))

    assert second.name == "datasets/x/versions/2"
    assert [s.id for s in reader.scan()] == [f"a{i}" for i in range(6)]
    assert [s.id for s in open_version(store, first.name).scan()] == [f"a{i}" for i in range(6)]
    assert [s.id for s in open_version(store, second.name).scan()] == [f"b{i}" for i in range(4)]
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (Sample(id="z", segments=[Segment(text=" ")]), "sample[z].segments[0].text"),
        (Sample(id="z", segments=[Segment(type="image", media=0)]), "sample[z].segments[0].media"),
        (Sample(id="z", segments=[]), "sample[z].segments"),
        (Sample(id="z", split="dev", segments=[Segment(text="a")]), "sample[z].split"),
        (Sample(id="s1", segments=[Segment(text="a")]), "sample[s1].id"),
    ],
)
def test_a_bad_sample_stops_the_write_and_names_the_field(store: Store, bad: Sample, field: str) -> None:
    for position in (0, 5):  # in the first batch, and while Lance pulls from native code
        rows = samples(5)
        rows.insert(position, bad)
        with pytest.raises(InvalidArgumentError) as caught:
            write_version(store, DATASET, rows, batch_rows=2)
        assert caught.value.violations[0].field.replace("[z]", "[s1]") == field.replace("[z]", "[s1]")
    _assert_no_version(store)


def test_no_samples_are_an_error(store: Store) -> None:
    with pytest.raises(InvalidArgumentError, match="no samples"):
        write_version(store, DATASET, [])
    _assert_no_version(store)


def _assert_no_version(store: Store) -> None:
    assert documents.list_page(store, DatasetVersion, parent=DATASET) == ([], "")
    assert documents.get(store, Dataset, DATASET).latest_version == ""


def test_a_version_extends_another_without_writing_it_again(store: Store) -> None:
    first = write_version(store, DATASET, samples(6, "a"), batch_rows=4)
    scored = derive_version(store, first.name, drop=[1], columns={"score": pa.array(range(6), pa.int32())})
    write_version(store, DATASET, samples(3, "other"))  # the base need not be the newest
    files = {i.path for i in store.list(DATASET) if "/data/" in i.path}

    longer = write_version(store, DATASET, samples(3, "b"), base=scored.name)

    kept = [s for n, s in enumerate(samples(6, "a")) if n != 1]
    reader = open_version(store, longer.name)
    assert list(reader.scan()) == kept + samples(3, "b")
    assert reader.take([6, 0]) == [samples(3, "b")[1], kept[0]]
    assert reader.table(["score"]).column(0).to_pylist() == [0, 2, 3, 4, 5, None, None, None]
    assert (longer.num_samples, longer.num_media, longer.parent) == (8, 8, scored.name)
    assert len({i.path for i in store.list(DATASET) if "/data/" in i.path} - files) == 1
    assert reader.verify() == []
    assert list(open_version(store, scored.name).scan()) == kept
    with pytest.raises(InvalidArgumentError, match=r"sample\[a3\].id: is taken by an earlier sample"):
        write_version(store, DATASET, samples(4, "a")[3:], base=longer.name)
    write_version(store, DATASET, [samples(2, "a")[1]], base=longer.name)  # its row was dropped, so its id is free
    with pytest.raises(InvalidArgumentError, match="base: datasets/x/versions/1 is no version of datasets/y"):
        write_version(store, "datasets/y", samples(1), base=first.name)


def test_a_version_whose_columns_were_rewritten_is_extended_by_name(store: Store) -> None:
    first = write_version(store, DATASET, samples(5))
    rewritten = versions.restore(store, DATASET, first.lance_version)
    columns = rewritten.to_table(columns=["segments", "license"])
    rewritten.drop_columns(["segments", "license"])
    rewritten.add_columns(columns.to_reader())
    base = versions.publish(store, versions.counts(rewritten), DATASET, rewritten)

    longer = write_version(store, DATASET, samples(4, "b"), base=base.name)

    assert list(open_version(store, longer.name).scan()) == samples(5) + samples(4, "b")


def test_rows_written_with_other_columns_are_not_extended(store: Store) -> None:
    first = write_version(store, DATASET, samples(5))
    older = versions.restore(store, DATASET, first.lance_version)
    older.drop_columns(["license"])
    base = versions.publish(store, versions.counts(older), DATASET, older)

    with pytest.raises(FailedPreconditionError, match="written with other columns"):
        write_version(store, DATASET, samples(4, "b"), base=base.name)


def test_concurrent_extensions_do_not_mix(store: Store) -> None:
    base = write_version(store, DATASET, samples(4))
    made: dict[str, DatasetVersion] = {}

    def extend(tag: str) -> None:
        made[tag] = write_version(store, DATASET, samples(3, tag), base=base.name)

    threads = [threading.Thread(target=extend, args=(tag,)) for tag in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for tag in "abc":
        assert list(open_version(store, made[tag].name).scan()) == samples(4) + samples(3, tag)
    assert len({version.name for version in made.values()}) == 3


class KilledError(Exception):
    """Stands for a process that dies at this point."""


# Every call through which a version's publication passes, in order.
_STEPS = [
    (versions, "_objects"),
    (versions.manifests, "publish"),
    (versions, "_check_inherited"),
    (versions.documents, "create"),
    (versions.documents, "update"),
]


@pytest.mark.parametrize("derive", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("module", "function"), _STEPS)
def test_a_crash_at_any_step_leaves_the_old_version_or_the_new(
    store: Store, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, after: bool, derive: bool
) -> None:
    old = write_version(store, DATASET, samples(4, "old"))
    real = getattr(module, function)

    def dies(*args: Any, **kwargs: Any) -> None:
        if after:
            real(*args, **kwargs)
        raise KilledError

    def write() -> DatasetVersion:
        if derive:
            return derive_version(store, old.name, drop=[0])
        return write_version(store, DATASET, samples(3, "new"))

    with monkeypatch.context() as patch:
        patch.setattr(module, function, dies)
        with pytest.raises(KilledError):
            write()

    assert [s.id for s in open_version(store, old.name).scan()] == [f"old{i}" for i in range(4)]
    published = documents.list_page(store, DatasetVersion, parent=DATASET)[0]
    for version in published:
        assert open_version(store, version.name).verify() == []
        assert len(list(open_version(store, version.name).scan())) == version.num_samples
    assert documents.get(store, Dataset, DATASET).latest_version in {v.name for v in published}

    again = write()
    assert again.name not in {v.name for v in published}
    assert documents.get(store, Dataset, DATASET).latest_version == again.name
    assert len(list(open_version(store, again.name).scan())) == 3


def test_dropped_rows_and_added_columns_share_the_media(store: Store) -> None:
    parent = write_version(store, DATASET, samples(20), batch_rows=6)
    write_version(store, DATASET, samples(3, "later"))  # the parent need not be the newest
    files = {i.path for i in store.list(DATASET) if "/data/" in i.path}

    dropped = derive_version(store, parent.name, drop=[0, 7, 7, 19], producer="curations/c")
    scored = derive_version(store, dropped.name, columns={"score": pa.array(range(17), pa.int32())})

    kept = [s for i, s in enumerate(samples(20)) if i not in (0, 7, 19)]
    assert list(open_version(store, dropped.name).scan()) == kept
    assert (dropped.parent, dropped.producer, dropped.num_samples) == (parent.name, "curations/c", 17)
    assert {i.path for i in store.list(DATASET) if "/data/" in i.path} >= files
    reader = open_version(store, scored.name)
    assert reader.take([16, 3, 3]) == [kept[16], kept[3], kept[3]]
    assert reader.table(["score"], [16, 3]).column("score").to_pylist() == [16, 3]
    assert "score" not in open_version(store, dropped.name).column_names
    assert list(open_version(store, parent.name).scan()) == samples(20)
    new = [i for i in store.list(DATASET) if "/data/" in i.path and i.path not in files]
    assert len(new) == 1  # the file of the added column alone
    for version in (parent, dropped, scored):
        assert open_version(store, version.name).verify() == []


def test_columns_and_drops_in_one_version(store: Store) -> None:
    parent = write_version(store, DATASET, samples(5))

    version = derive_version(store, parent.name, drop=[1], columns={"k": pa.array([10, 11, 12, 13, 14])})

    assert open_version(store, version.name).table(["id", "k"]).to_pydict() == {
        "id": ["s0", "s2", "s3", "s4"],
        "k": [10, 12, 13, 14],
    }


def test_derivations_that_cannot_be_are_refused(store: Store) -> None:
    parent = write_version(store, DATASET, samples(3)).name

    with pytest.raises(InvalidArgumentError, match="no row would remain"):
        derive_version(store, parent, drop=[0, 1, 2])
    with pytest.raises(InvalidArgumentError, match="outside the 3 rows"):
        derive_version(store, parent, drop=[3])
    with pytest.raises(InvalidArgumentError, match="has a column of that name"):
        derive_version(store, parent, columns={"id": pa.array([1, 2, 3])})
    with pytest.raises(InvalidArgumentError, match="2 values for 3 rows"):
        derive_version(store, parent, columns={"k": pa.array([1, 2])})


def test_concurrent_writers_each_get_their_own_version(store: Store) -> None:
    _write_concurrently(store)


@pytest.mark.slow
def test_concurrent_writers_each_get_their_own_version_on_s3(s3_store: Store) -> None:
    _write_concurrently(s3_store)


def _write_concurrently(store: Store) -> None:
    parent = write_version(store, DATASET, samples(12))
    barrier = threading.Barrier(6)
    made: dict[int, DatasetVersion] = {}

    def work(index: int) -> None:
        barrier.wait()
        if index % 2:
            made[index] = write_version(store, DATASET, samples(4, f"t{index}-"), batch_rows=3)
        else:
            column = {"mine": pa.array([index] * 12)} if index else None
            made[index] = derive_version(store, parent.name, drop=[index, index + 1], columns=column)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(int(v.name.rpartition("/")[2]) for v in made.values()) == [2, 3, 4, 5, 6, 7]
    for index, version in made.items():
        found = [s.id for s in open_version(store, version.name).scan()]
        if index % 2:
            assert found == [f"t{index}-{i}" for i in range(4)]
        else:
            assert found == [f"s{i}" for i in range(12) if i not in (index, index + 1)]
        assert open_version(store, version.name).verify() == []
    assert documents.get(store, Dataset, DATASET).latest_version == "datasets/x/versions/7"


@pytest.mark.parametrize("rival", ["write", "derive"])
@pytest.mark.parametrize("method", ["commit", "add_columns"])
def test_a_rival_between_two_commits_of_a_derivation_is_noticed(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str, rival: str
) -> None:
    parent = write_version(store, DATASET, samples(6)).name
    real = getattr(lance.LanceDataset, method)
    won: list[DatasetVersion] = []

    def late(*args: Any, **kwargs: Any) -> Any:
        """Lets a rival publish right before the second commit."""
        is_restore = any(isinstance(a, lance.LanceOperation.Restore) for a in args)
        if not won and not is_restore:
            won.append(DatasetVersion())
            other = derive_version(store, parent, drop=[5]) if rival == "derive" else None
            won[0] = other or write_version(store, DATASET, samples(2, "new"))
        return real(*args, **kwargs)

    wrapper: Any = staticmethod(late) if method == "commit" else late
    monkeypatch.setattr(lance.LanceDataset, method, wrapper)

    mine = derive_version(store, parent, drop=[0], columns={"k": pa.array(range(6))})

    assert open_version(store, mine.name).table(["id", "k"]).to_pydict() == {
        "id": [f"s{i}" for i in range(1, 6)],
        "k": [1, 2, 3, 4, 5],
    }
    expected = [f"s{i}" for i in range(5)] if rival == "derive" else ["new0", "new1"]
    assert [s.id for s in open_version(store, won[0].name).scan()] == expected
    assert [won[0].name, mine.name] == [f"{DATASET}/versions/{n}" for n in (2, 3)]


def test_the_latest_version_never_moves_back(store: Store) -> None:
    dataset = Dataset(name=DATASET)
    for number, latest in [(2, 2), (1, 2), (10, 10), (9, 10)]:
        versions._advance(dataset, f"{DATASET}/versions/{number}")
        assert dataset.latest_version == f"{DATASET}/versions/{latest}"


def test_one_altered_byte_of_any_object_is_found(store: Store) -> None:
    parent = write_version(store, DATASET, samples(4)).name
    version = derive_version(store, parent, drop=[1], columns={"k": pa.array(range(4))})
    reader = open_version(store, version.name)
    paths = [f"{DATASET}/{entry.path}" for entry in versions.manifests.read(store, version.name).entries]
    assert len(paths) == 4  # the Lance manifest, the rows, the added column, the deletions

    for path in paths:
        original = store.get(path)
        for at in (0, len(original) // 2, len(original) - 1):
            store.put(path, original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
            assert reader.verify() == [f"{path}: stored bytes were altered"]
            if "/_versions/" in path:
                with pytest.raises(DataLossError, match="altered"):
                    open_version(store, version.name)
        store.delete(path)
        assert reader.verify() == [f"{path}: missing"]
        store.put(path, original)
    assert reader.verify() == []


def test_damaged_bytes_are_reported_and_never_blessed(store: Store) -> None:
    parent = write_version(store, DATASET, samples(4)).name
    path = next(i.path for i in store.list(DATASET) if "/data/" in i.path)
    original = store.get(path)
    for at in range(0, len(original), max(1, len(original) // 24)):
        store.put(path, original[:at] + bytes([original[at] ^ 0x55]) + original[at + 1 :])
        with pytest.raises(DataLossError, match=f"{path}: stored bytes were altered"):
            derive_version(store, parent, drop=[0])
        with contextlib.suppress(DataLossError):  # a flipped pixel is for ``verify`` to find; a broken page is not
            list(open_version(store, parent).scan())
    assert documents.get(store, Dataset, DATASET).latest_version == parent


@pytest.mark.parametrize("name", ["datasets/x", "runs/x/versions/1", "datasets/x/versions/latest", ""])
def test_a_name_that_is_no_version_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        open_version(store, name)


def test_an_absent_version_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError, match="datasets/x/versions/1"):
        open_version(store, "datasets/x/versions/1")


def test_a_reader_travels_to_another_process_by_name(store: Store) -> None:
    reader = open_version(store, write_version(store, DATASET, samples(3)).name)

    assert pickle.loads(pickle.dumps(reader)).take([2]) == reader.take([2])  # noqa: S301


def test_a_reader_refuses_to_work_after_a_fork(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_version(store, write_version(store, DATASET, samples(3)).name)
    monkeypatch.setattr(os, "getpid", lambda: -1)

    with pytest.raises(FailedPreconditionError, match="fork"):
        reader.take([0])


def _first_id(url: str, name: str) -> str:
    return open_version(Store.open(url), name).take([0])[0].id


@pytest.mark.slow
def test_a_spawned_worker_reads(store: Store) -> None:
    name = write_version(store, DATASET, samples(3)).name
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_first_id, (store.url, name)) == "s0"


@pytest.mark.parametrize(("module", "function"), [(versions.manifests, "publish"), (versions, "_tag")])
@pytest.mark.parametrize("later", [False, True])
def test_gc_removes_a_version_whose_writer_died_behind_its_claim(
    store: Store, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, later: bool
) -> None:
    first = write_version(store, DATASET, samples(4, "old"))
    kept = {info.path for info in store.scan() if "/data/" in info.path}
    real = getattr(module, function)

    def dies(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(module, function, dies)
        with pytest.raises(KilledError):
            write_version(store, DATASET, samples(3, "dead"))
    if later:  # its number is taken
        assert write_version(store, DATASET, samples(2, "new")).name == f"{DATASET}/versions/3"
        data = [info.path for info in store.scan() if "/data/" in info.path]
        kept = {path for path in data if b"dead" not in store.get(path)}
    published = [version.name for version in documents.list_all(store, DatasetVersion, parent=DATASET)]
    assert published == [first.name, f"{DATASET}/versions/3"][: 1 + later]
    assert maintenance.fsck(store) == []
    assert not [i for i in maintenance.garbage(store) if "/versions/2" in i.path]  # its writer may be alive

    maintenance.collect(store, maintenance.garbage(store, now=datetime.now(UTC) + timedelta(days=3)))

    assert {info.path for info in store.scan() if "/data/" in info.path} == kept
    assert not store.exists(f"{DATASET}/versions/2/manifest.json")
    assert maintenance.fsck(store) == []
    assert documents.get(store, Dataset, DATASET).latest_version == published[-1]
    # An object store has no empty folders: there the number is free again.
    shutil.rmtree(Path(store.url.removeprefix("file://")) / DATASET / "versions/2", ignore_errors=True)
    again = write_version(store, DATASET, samples(5, "again"))
    assert again.name == f"{DATASET}/versions/{4 if later else 2}"
    assert [s.id for s in open_version(store, again.name).scan()] == [s.id for s in samples(5, "again")]
