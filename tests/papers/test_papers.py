from __future__ import annotations

import re
from pathlib import Path

import pytest

from rebus import papers, registry
from rebus.errors import InvalidArgumentError
from rebus.papers import Status

MARKED = """
import pytest

@pytest.mark.slow
@pytest.mark.paper("mm1")
def test_one(): ...

@pytest.mark.paper("mm1", "mm1-5")
class TestMany:
    def test_inner(self): ...

    @pytest.mark.paper("vlmo")
    async def test_other(self): ...

def test_plain(): ...
"""


def component(name: str, *ids: str) -> registry.Component:
    return registry.Component("connector", name, dict, registry.NoSettings, ids)


def test_catalogue_is_well_formed() -> None:
    rows = papers.papers()
    assert len(rows) == 246
    assert len({paper.id for paper in rows}) == 246
    for paper in rows:
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", paper.id)
        assert paper.title.strip() == paper.title != ""
        assert re.fullmatch(r"(\d{4}\.\d{5})?", paper.arxiv)
        assert paper.family
        assert paper.block
    numbers = [paper.arxiv for paper in rows if paper.arxiv]
    assert len(numbers) == len(set(numbers))


def test_url() -> None:
    by_id = {paper.id: paper for paper in papers.papers()}
    assert by_id["mm1"].url == "https://arxiv.org/abs/2403.09611"
    assert {paper.url for paper in papers.papers() if not paper.arxiv} == {""}


def test_status_follows_components_and_marks(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_marked.py").write_text(MARKED)
    entries = papers.catalogue([component("mlp", "mm1"), component("avg", "mm1", "dense-connector")], tests)
    found = {entry.paper.id: entry for entry in entries}

    assert found["mm1"].status is Status.PROVED
    assert found["mm1"].components == ("connector/avg", "connector/mlp")
    assert found["mm1"].checks == ("tests/test_marked.py::TestMany", "tests/test_marked.py::test_one")
    assert found["mm1-5"].status is Status.BUILT
    assert found["vlmo"].checks == ("tests/test_marked.py::TestMany::test_other",)
    assert found["dense-connector"].status is Status.BUILT
    built = {"mm1", "mm1-5", "vlmo", "dense-connector"}
    assert {entry.paper.id for entry in entries if entry.status is not Status.CATALOGUED} == built


@pytest.mark.parametrize("where", ["component", "check"])
def test_an_unknown_paper_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "test_marked.py").write_text('@pytest.mark.paper("no-such")\ndef test_x(): ...\n')
    tests = tmp_path if where == "check" else tmp_path / "absent"
    built = [component("mlp", "no-such")] if where == "component" else []
    with pytest.raises(InvalidArgumentError, match=r"(connector/mlp|test_x) names paper 'no-such'"):
        papers.catalogue(built, tests)


def test_without_a_test_tree_nothing_is_proved(tmp_path: Path) -> None:
    entries = papers.catalogue([component("mlp", "mm1")], tmp_path / "absent")
    assert {entry.status for entry in entries} == {Status.BUILT, Status.CATALOGUED}


def test_every_paper_named_in_this_checkout_is_catalogued() -> None:
    """Loads every registered component and reads every mark: an id that the catalogue lacks raises."""
    assert len(papers.catalogue()) == 246
