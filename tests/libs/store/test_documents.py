from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.errors import AlreadyExistsError, DataLossError, InvalidArgumentError, NotFoundError
from rebus.store import Store, documents
from rebus.store.sealed import seal, unseal
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.training_pb2 import Run


def test_round_trip_keeps_every_field(any_store: Store) -> None:
    run = Run(name="runs/a", recipe="name: x", datasets={"d": "datasets/d/versions/1"}, seed=0, metrics={"loss": 0.1})
    run.job.create_time.GetCurrentTime()
    documents.create(any_store, run)
    assert documents.get(any_store, Run, "runs/a") == run
    with pytest.raises(AlreadyExistsError, match="runs/a exists"):
        documents.create(any_store, run)


def test_update_loses_no_concurrent_change(any_store: Store) -> None:
    documents.create(any_store, Run(name="runs/a"))

    def add(_: int) -> None:
        documents.update(any_store, Run, "runs/a", lambda run: setattr(run, "step", run.step + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(32)))
    assert documents.get(any_store, Run, "runs/a").step == 32


def test_pages_cover_everything_once_newest_first(store: Store) -> None:
    names = [f"runs/{i:03d}" for i in range(7)]
    for name in names:
        documents.create(store, Run(name=name))
    seen: list[str] = []
    token = ""
    while True:
        items, token = documents.list_page(store, Run, page_size=3, page_token=token, newest_first=True)
        assert len(items) <= 3
        seen += [item.name for item in items]
        if not token:
            break
    assert seen == names[::-1]
    with pytest.raises(InvalidArgumentError, match="page_token"):
        documents.list_page(store, Run, page_token="nonsense")


def test_a_page_of_exactly_all_has_no_next(store: Store) -> None:
    for i in range(3):
        documents.create(store, Run(name=f"runs/{i}"))
    assert documents.list_page(store, Run, page_size=3)[1] == ""


def test_versions_are_ordered_as_numbers(store: Store) -> None:
    for number in (10, 9, 2):
        documents.create(store, DatasetVersion(name=f"datasets/d/versions/{number}"))
    items, _ = documents.list_page(store, DatasetVersion, parent="datasets/d")
    assert [int(item.name.rpartition("/")[2]) for item in items] == [2, 9, 10]


def test_delete_removes_document_and_all_below(store: Store) -> None:
    documents.create(store, Run(name="runs/a"))
    store.put("runs/a/events/1.json", b"")
    documents.delete(store, "runs/a")
    assert list(store.list("runs")) == []
    with pytest.raises(NotFoundError, match="no runs/a"):
        documents.delete(store, "runs/a")


@pytest.mark.parametrize("name", ["", "runs", "nothing/x", "runs/a/b", "datasets/a/versions"])
def test_a_name_of_no_collection_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not the name of a resource"):
        documents.path_of(name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8
)


@given(content=st.dictionaries(st.text(), JSON), position=st.integers(min_value=0), change=st.integers(1, 255))
def test_seal_notices_any_flipped_byte(content: dict[str, object], position: int, change: int) -> None:
    data = seal(content)
    assert unseal(data, "x") == content
    altered = bytearray(data)
    altered[position % len(data)] ^= change
    with pytest.raises(DataLossError, match="x: stored bytes were altered"):
        unseal(bytes(altered), "x")
