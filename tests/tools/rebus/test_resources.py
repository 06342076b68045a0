"""Listing and showing what a store holds, as tables and as JSON."""

from __future__ import annotations

import json

import pytest

from rebus.client import Client
from rebus.errors import NotFoundError
from rebus.jobs.logs import LogWriter
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobExit, JobStatus
from rebus.v1.dataset_pb2 import Dataset, ListDatasetsRequest
from rebus.v1.training_pb2 import Run
from services.harness.embedded import hosted
from tests.tools.rebus.conftest import Command
from tools.rebus import listing, names
from tools.rebus.output import duration, size


def test_lists_and_shows_in_tables(rebus: Command, history: Store) -> None:
    assert "datasets/d" in rebus("datasets", "list").stdout
    assert "datasets/d/versions/1" in rebus("datasets", "versions", "d").stdout
    shown = rebus("models", "show", "m/champion").stdout
    assert "models/m/versions/1" in shown
    assert "9 samples of datasets/d/versions/1" in shown
    scores = rebus("eval", "show", "e").stdout.split()
    assert scores[-7:] == ["b", "count", "exact_match", "0.750", "0.500-1.000", "0.250", "4"]


def test_a_bare_name_is_the_newest_version(rebus: Command, history: Store) -> None:
    assert json.loads(rebus("models", "show", "m", "--format", "json").stdout)["name"] == "models/m/versions/1"
    assert json.loads(rebus("datasets", "show", "d", "-f", "json").stdout)["num_samples"] == "4"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("datasets", "list"), "datasets/d"),
        (("datasets", "versions", "datasets/d"), "datasets/d/versions/1"),
        (("runs", "list"), "runs/r"),
        (("models", "list"), "models/m"),
        (("models", "versions", "m"), "models/m/versions/1"),
        (("eval", "list"), "evaluations/e"),
    ],
)
def test_listings_are_json_arrays_of_resources(
    rebus: Command, history: Store, arguments: tuple[str, ...], name: str
) -> None:
    assert [item["name"] for item in json.loads(rebus(*arguments, "--format", "json").stdout)] == [name]


def test_latest_is_the_newest_job(rebus: Command, history: Store) -> None:
    documents.create(history, Run(name="runs/z", recipe="name: z", job=JobStatus(state=JobStatus.FAILED)))
    assert json.loads(rebus("runs", "show", "latest", "-f", "json").stdout)["name"] == "runs/z"
    assert (
        json.loads(rebus("lineage", "evaluations/latest", "-f", "json").stdout)["nodes"][0]["name"] == "evaluations/e"
    )
    refused = rebus("models", "register", "m", "latest")
    assert refused.stderr == "error: runs/z is FAILED; only a run that SUCCEEDED can be registered\n"


def test_latest_of_nothing_is_one_line(rebus: Command) -> None:
    assert rebus("runs", "show", "latest").stderr == "error: there are no runs yet\n"


def test_an_empty_listing_is_an_empty_array(rebus: Command) -> None:
    assert json.loads(rebus("runs", "list", "--format", "json").stdout) == []


def test_a_pipe_never_cuts_a_name(rebus: Command, store: Store) -> None:
    name = f"datasets/{'long-' * 12}name"
    documents.create(store, Dataset(name=name, description="words " * 100))
    assert f"{name} " in rebus("datasets", "list").stdout


def test_markup_in_names_is_printed_as_it_is(rebus: Command, store: Store) -> None:
    documents.create(store, Dataset(name="datasets/x", description="[red]not red[/red] [0, 1]"))
    assert "[red]not red[/red] [0, 1]" in rebus("datasets", "list").stdout


def test_an_alias_moves_only_from_where_it_is_expected(rebus: Command, history: Store) -> None:
    refused = rebus("models", "alias", "m/1", "champion", "--expected", "")
    assert refused.stderr == ("error: models/m: champion points at models/m/versions/1, not at nothing\n")
    assert rebus("models", "alias", "m/1", "best", "--expected", "").exit_code == 0
    assert json.loads(rebus("models", "list", "-f", "json").stdout)[0]["aliases"]["best"] == "models/m/versions/1"


def test_deleting_asks_first(rebus: Command, history: Store) -> None:
    assert rebus("datasets", "delete", "d").exit_code == 1
    assert rebus("datasets", "delete", "d", "--yes").exit_code == 0
    assert "error: no datasets/d\n" in rebus("datasets", "show", "d").stderr


def test_a_server_is_called_when_one_is_named(rebus: Command, history: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REBUS_STORE")
    with hosted(history.url, ["training"]) as endpoint:
        monkeypatch.setenv("REBUS_ENDPOINT", endpoint)
        assert "models/m" in rebus("models", "list").stdout
        result = rebus("datasets", "list")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


def test_listing_walks_pages_and_stops_at_the_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        documents.create(store, Dataset(name=f"datasets/d{number}"))
    monkeypatch.setattr(listing, "PAGE_SIZE", 3)
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client:
        call = client.datasets.ListDatasets
        assert len(listing.items(call, ListDatasetsRequest(), "datasets", 100)) == 7
        assert len(listing.items(call, ListDatasetsRequest(), "datasets", 5)) == 5
        odd = listing.matching(call, ListDatasetsRequest(), "datasets", 2, lambda d: int(d.name[-1]) % 2 == 1)
        assert [d.name for d in odd] == ["datasets/d1", "datasets/d3"]
        documents.create(store, Dataset(name="datasets/empty"))
        with pytest.raises(NotFoundError, match="datasets/empty has no version yet"):
            names.version(client, "datasets", "empty")


def test_durations_and_sizes_read_well() -> None:
    assert [duration(s) for s in (-1, 5, 119, 120, 7200, 200_000)] == ["0s", "5s", "119s", "2m", "2h", "2d"]
    assert [size(n) for n in (0, 1023, 1536, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]


def test_logs_are_read_from_the_store(rebus: Command, history: Store) -> None:
    writer = LogWriter(history, "runs/r", chunk_bytes=100, chunks=2)
    writer.write("epoch 1\nloss 0.5 très bien\n".encode())
    writer.flush()
    for name in ("r", "runs/r", "runs/latest", "latest"):
        assert rebus("runs", "logs", name).stdout == "epoch 1\nloss 0.5 très bien\n"
    assert rebus("runs", "logs", "evaluations/e").stdout == ""
    assert "is not the name of a job" in rebus("runs", "logs", "datasets/d").stderr
    assert rebus("runs", "logs", "nothing").stderr == "error: no runs/nothing\n"


def test_a_run_shows_what_ended_it(rebus: Command, history: Store) -> None:
    job = JobStatus(state=JobStatus.FAILED, exit=JobExit(reason=JobExit.OUT_OF_MEMORY, signal="SIGKILL"))
    documents.create(history, Run(name="runs/z", recipe="name: z", job=job))
    line = next(line for line in rebus("runs", "show", "z").stdout.splitlines() if line.startswith("ended by"))
    assert line.split(maxsplit=2)[2] == "out of memory (SIGKILL)"
