"""The lineage as a tree and as JSON."""

from __future__ import annotations

import json

import pytest

from rebus.store import Store
from rebus.v1.model_pb2 import Lineage, LineageEdge, LineageNode
from tests.tools.rebus.conftest import Command
from tools.rebus.commands.lineage import tree
from tools.rebus.output import stdout


def test_the_tree_leads_from_the_evaluation_to_the_source(rebus: Command, history: Store) -> None:
    lines = rebus("lineage", "evaluations/e").stdout.splitlines()
    order = [
        "evaluations/e", "evaluated models/m/versions/1", "trained by runs/r", "used recipe recipe:",
        "used code code:abc", "consumed datasets/d/versions/1", "produced by ingestions/i",
        "read source:image-folder /pictures [old]", "used code code:abc (above)",
        "evaluated on datasets/d/versions/1 (above)",
    ]  # fmt: skip
    mixture = [line for line in lines if "mixture/pairs: 9 samples" in line]
    assert len(mixture) == 2
    lines = [line for line in lines if line not in mixture]
    assert len(lines) == len(order)
    assert all(part in line for part, line in zip(order, lines, strict=True)), "\n".join(lines)


def test_json_holds_every_node_and_edge(rebus: Command, history: Store) -> None:
    found = json.loads(rebus("lineage", "evaluations/e", "--format", "json").stdout)
    assert found["nodes"][0]["name"] == "evaluations/e"
    assert {edge["relation"] for edge in found["edges"]} == {
        "evaluated", "evaluated_on", "used_code", "trained_by", "used_recipe", "consumed", "produced_by", "read",
    }  # fmt: skip


def test_a_cycle_is_named_not_followed(capsys: pytest.CaptureFixture[str]) -> None:
    edges = [LineageEdge(**{"from": a, "to": b, "relation": "r"}) for a, b in (("a", "b"), ("b", "a"))]
    stdout().print(tree(Lineage(nodes=[LineageNode(name="a"), LineageNode(name="b")], edges=edges)))
    assert capsys.readouterr().out.split() == ["a", "└──", "r", "b", "└──", "r", "a", "(above)"]
