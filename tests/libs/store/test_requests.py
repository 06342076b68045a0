"""A request with an id is carried out once, and its id stands for nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from rebus.errors import AbortedError, AlreadyExistsError, InvalidArgumentError, NotFoundError
from rebus.store import Store, documents, requests
from rebus.v1.dataset_pb2 import CreateDatasetRequest, Dataset, DeleteDatasetRequest
from rebus.v1.model_pb2 import SetModelAliasRequest
from rebus.v1.training_pb2 import Run


def _create(store: Store, dataset: str, request_id: str, description: str = "") -> Dataset:
    wanted = Dataset(name=f"datasets/{dataset}", description=description)
    request = CreateDatasetRequest(dataset_id=dataset, dataset=wanted, request_id=request_id)
    return documents.create(store, wanted, request_key=requests.claim(store, request, wanted.name).key)


def test_a_resource_is_created_once_a_request(any_store: Store) -> None:
    first = _create(any_store, "a", "r", "mine")
    documents.update(any_store, Dataset, "datasets/a", lambda dataset: setattr(dataset, "latest_version", "later"))
    assert _create(any_store, "a", "r", "mine") == Dataset(
        name="datasets/a", description=first.description, latest_version="later"
    )
    for request_id in ("", "other", "other"):  # the name is another caller's: repeating must not look like a success
        with pytest.raises(AlreadyExistsError):
            _create(any_store, "a", request_id, "mine")


def test_an_id_stands_for_one_body_and_one_method(store: Store) -> None:
    _create(store, "a", "r")
    with pytest.raises(InvalidArgumentError, match="request_id: was used for another request") as caught:
        _create(store, "b", "r")
    assert [violation.field for violation in caught.value.violations] == ["request_id"]
    with pytest.raises(NotFoundError):
        documents.get(store, Dataset, "datasets/b")
    requests.delete(store, DeleteDatasetRequest(name="datasets/a", request_id="r"))  # another method


def test_a_change_is_made_once_a_request(any_store: Store) -> None:
    documents.create(any_store, Run(name="runs/a"))

    def add(key: str) -> tuple[int, bool]:
        run, changed = documents.update_once(
            any_store, Run, "runs/a", lambda run: setattr(run, "step", run.step + 1), request_key=key
        )
        return run.step, changed

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, ["k"] * 8)) == [(1, False)] * 7 + [(1, True)]
    assert [add("other"), add("k"), add(""), add("")] == [(2, True), (2, False), (3, True), (4, True)]


def test_a_change_that_failed_is_made_by_a_repeat(store: Store) -> None:
    documents.create(store, Run(name="runs/a"))

    def refuse(_: Run) -> None:
        raise AbortedError("not now")

    with pytest.raises(AbortedError):
        documents.update_once(store, Run, "runs/a", refuse, request_key="k")
    run, changed = documents.update_once(store, Run, "runs/a", lambda run: setattr(run, "step", 1), request_key="k")
    assert (run.step, changed) == (1, True)


def test_the_keys_kept_in_a_document_are_bounded(store: Store) -> None:
    documents.create(store, Run(name="runs/a"))
    sizes: list[int] = []
    for number in range(140):
        documents.update_once(store, Run, "runs/a", lambda run: None, request_key=f"{number:064d}")
        sizes.append(len(store.get(documents.path_of("runs/a"))))
    assert sizes[-1] == sizes[70] > sizes[30]


def test_a_deletion_is_carried_out_once(any_store: Store) -> None:
    request = DeleteDatasetRequest(name="datasets/a", request_id="r")
    with pytest.raises(NotFoundError):
        requests.delete(any_store, request)
    with pytest.raises(NotFoundError):  # the first was no success, so its repeat is none
        requests.delete(any_store, request)
    _create(any_store, "a", "")
    requests.delete(any_store, request)
    _create(any_store, "a", "")
    requests.delete(any_store, request)
    assert documents.get(any_store, Dataset, "datasets/a").name == "datasets/a"
    requests.delete(any_store, DeleteDatasetRequest(name="datasets/a"))
    with pytest.raises(NotFoundError):
        documents.get(any_store, Dataset, "datasets/a")


def test_a_deletion_that_died_before_its_record_was_closed_is_finished_by_a_repeat(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _create(store, "a", "")
    request = DeleteDatasetRequest(name="datasets/a", request_id="r")
    with monkeypatch.context() as patched:
        patched.setattr(store, "put", _crash)
        with pytest.raises(KeyboardInterrupt):
            requests.delete(store, request)
    requests.delete(store, request)


def test_requests_differ_in_every_field(store: Store) -> None:
    first = SetModelAliasRequest(name="models/m", alias="a", model_version="models/m/versions/1", request_id="r")
    assert not requests.claim(store, first, "models/m").repeated
    assert requests.claim(store, first, "models/m").repeated
    for changed in ({"alias": "b"}, {"model_version": "models/m/versions/2"}, {"expected_version": ""}):
        other = SetModelAliasRequest()
        other.CopyFrom(first)
        for field, value in changed.items():
            setattr(other, field, value)
        with pytest.raises(InvalidArgumentError, match="request_id"):
            requests.claim(store, other, "models/m")


def _crash(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_deletion_that_its_repeat_overtook_succeeds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _create(store, "a", "")
    request = DeleteDatasetRequest(name="datasets/a", request_id="r")
    remove = documents.delete

    def overtaken(store: Store, name: str) -> None:
        monkeypatch.undo()
        requests.delete(store, request)
        remove(store, name)

    monkeypatch.setattr(documents, "delete", overtaken)
    requests.delete(store, request)
    with pytest.raises(NotFoundError):
        documents.get(store, Dataset, "datasets/a")
