"""The catalogue of papers behind Rebus, and how far each is built.

``papers.tsv`` lists the papers. What stands behind each is derived, never written down: the registered components
that name the paper (``@register(..., paper="mm1")``), and the checks of the test tree that carry
``@pytest.mark.paper("mm1")``. The checks are read, not run, here; a change whose checks fail does not land.
"""

from __future__ import annotations

import ast
import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path

from rebus import registry
from rebus.errors import invalid

COLUMNS = ("id", "title", "arxiv", "family", "block")
# The test tree of a source checkout; an installed package has none, and then no paper counts as proved.
TESTS = Path(__file__).resolve().parents[2] / "tests"


class Status(StrEnum):
    """How far a paper is built."""

    PROVED = "proved"  # a component and a check
    BUILT = "built"  # a component without a check, or a check of something that is not a component
    CATALOGUED = "catalogued"  # known, not built


@dataclass(frozen=True)
class Paper:
    """One row of the catalogue."""

    id: str
    title: str
    arxiv: str  # arXiv number, e.g. "2403.09611"; empty where there is none
    family: str
    block: str

    @property
    def url(self) -> str:
        """Where to read it; empty for a paper that is not on arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


@dataclass(frozen=True)
class Entry:
    """A paper with what is built of it."""

    paper: Paper
    components: tuple[str, ...]  # "kind/name", sorted
    checks: tuple[str, ...]  # pytest node ids relative to the checkout, sorted

    @property
    def status(self) -> Status:
        if self.components and self.checks:
            return Status.PROVED
        return Status.BUILT if self.components or self.checks else Status.CATALOGUED


@cache
def papers() -> tuple[Paper, ...]:
    """All papers, in the order of ``papers.tsv``."""
    lines = files("rebus").joinpath("papers.tsv").read_text(encoding="utf-8").splitlines()
    header, *rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if tuple(header) != COLUMNS:
        raise ValueError(f"papers.tsv: expected columns {COLUMNS}, found {header}")
    return tuple(Paper(*row) for row in rows)


def catalogue(components: Iterable[registry.Component] | None = None, tests: Path = TESTS) -> list[Entry]:
    """Every paper with its components (default: all that are registered) and the checks found below ``tests``.

    Raises InvalidArgumentError if a component or a check names a paper that the catalogue lacks.
    """
    built: dict[str, list[str]] = defaultdict(list)
    for component in registry.components() if components is None else components:
        for paper in component.papers:
            built[paper].append(f"{component.kind}/{component.name}")
    checks: dict[str, list[str]] = defaultdict(list)
    for paper, node in marked_checks(tests):
        checks[paper].append(node)
    known = {paper.id for paper in papers()}
    for paper in sorted((built.keys() | checks.keys()) - known):
        where = ", ".join(built.get(paper, []) + checks.get(paper, []))
        raise invalid("paper", f"{where} names paper {paper!r}, which papers.tsv does not list")
    return [
        Entry(paper, tuple(sorted(built.get(paper.id, ()))), tuple(sorted(checks.get(paper.id, ()))))
        for paper in papers()
    ]


def marked_checks(tests: Path) -> Iterator[tuple[str, str]]:
    """Yields ``(paper id, pytest node id)`` for each ``@pytest.mark.paper(...)`` on a test or a test class."""
    for path in sorted(tests.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.paper" not in text:
            continue
        file = path.relative_to(tests.parent).as_posix()
        for names, definition in _definitions(ast.parse(text, filename=str(path)).body, ()):
            for decorator in definition.decorator_list:
                for paper in _paper_ids(decorator):
                    yield paper, "::".join((file, *names))


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(body: list[ast.stmt], outer: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Definition]]:
    for statement in body:
        if isinstance(statement, _Definition):
            names = (*outer, statement.name)
            yield names, statement
            if isinstance(statement, ast.ClassDef):
                yield from _definitions(statement.body, names)


def _paper_ids(decorator: ast.expr) -> list[str]:
    """The ids in ``pytest.mark.paper("a", "b")``; none for any other decorator."""
    if not (isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.paper"):
        return []
    return [ast.literal_eval(argument) for argument in decorator.args]
