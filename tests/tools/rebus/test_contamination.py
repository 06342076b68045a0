"""``rebus contamination``: a table for people, JSON for programs, and an exit code for scripts."""

from __future__ import annotations

import json

import pytest

from rebus.data.dataset import write_version
from rebus.data.sample import Sample, Segment
from rebus.store import Store
from tests.tools.rebus.conftest import Command


@pytest.fixture
def versions(store: Store) -> Store:
    """A benchmark of ten sentences, two of which are in the training data."""

    def sample(name: str, number: int, split: str) -> Sample:
        return Sample(
            id=f"{name}{number}", split=split, segments=[Segment(text=f"number {number} is {number * 7} " * 5)]
        )

    write_version(store, "datasets/bench", [sample("q", at, "test") for at in range(10)])
    write_version(store, "datasets/web", [sample("w", at, "train") for at in (3, 5, 90)])
    return store


def test_a_table_names_the_share_and_the_items(rebus: Command, versions: Store) -> None:
    done = rebus("contamination", "web", "bench", "--by", "text")

    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["share", "20.0%"] in lines
    assert ["q3", "w3", "100%", "of", "its", "8-grams"] in lines
    assert ["benchmark", "datasets/bench/versions/1"] in lines


def test_over_the_limit_the_exit_code_tells(rebus: Command, versions: Store) -> None:
    assert rebus("contamination", "web", "bench", "--by", "text", "--max-share", 0.2).exit_code == 0
    over = rebus("contamination", "web", "bench", "--by", "text", "--max-share", 0.1, "--json")
    assert over.exit_code == 1
    assert "hold 20.0% of datasets/bench/versions/1, more than 10.0%" in over.stderr
    told = json.loads(over.stdout)
    assert (told["num_seen"], told["max_share"], told["first_seen"][0]["item"]) == ("2", 0.1, "q3")


def test_splits_narrow_both_sides(rebus: Command, versions: Store) -> None:
    done = rebus("contamination", "web/1", "bench/1", "--split", "test", "--benchmark-split", "test", "--json")
    assert json.loads(done.stdout)["num_seen"] == "0"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("none", "bench"), "datasets/none"),
        (("web", "none"), "datasets/none"),
        (("web", "bench", "--by", "texts"), "expected some of text, image, embedding"),
        (("web", "bench", "--by", "embedding"), "has no column 'image_embeddings'"),
        (("web", "bench", "--benchmark-split", "dev"), "no rows of split 'dev'"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(
    rebus: Command, versions: Store, arguments: tuple[str, ...], reason: str
) -> None:
    done = rebus("contamination", *arguments)
    assert done.exit_code == 1
    assert reason in done.stderr.splitlines()[-1]
