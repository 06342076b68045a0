"""Ticks, thinning and the layout of lineages against what they promise."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.v1.model_pb2 import Lineage, LineageEdge, LineageNode
from tools.report.curves import thin, ticks
from tools.report.lineage import lay_out, lineage_graph

finite = st.floats(min_value=-1e6, max_value=1e6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 4.2, [0, 1, 2, 3, 4]),
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 1380.0, [0, 500, 1000]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
        (2.0, 2.0, [2.0]),
    ],
)
def test_ticks_by_hand(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=400), st.integers(1, 50))
def test_thinning_keeps_the_extremes_and_the_mean(points: list[tuple[float, float]], bins: int) -> None:
    thinned = thin(points, bins)
    values = [value for _, value in points]
    assert len(thinned) <= bins
    assert min(low for _, _, low, _ in thinned) == min(values)
    assert max(high for _, _, _, high in thinned) == max(values)
    assert all(low - 1e-6 <= mean <= high + 1e-6 for _, mean, low, high in thinned)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    names = [f"n{at}" for at in range(draw(st.integers(1, 9)))]
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names))
    return names, draw(st.lists(pairs, max_size=20))


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_boxes_never_overlap_and_older_ones_lie_lower(graph: tuple[list[str], list[tuple[str, str]]]) -> None:
    names, edges = graph
    layout = lay_out(names, edges)
    assert set(names) <= set(layout.places)
    for one, other in itertools.combinations(names, 2):
        (x1, y1), (x2, y2) = layout.places[one], layout.places[other]
        assert y1 != y2 or abs(x1 - x2) >= 240
    for (newer, older), route in layout.routes.items():
        assert (newer, older) in edges
        rows = [layout.places[name][1] for name in route]
        assert all(b - a == rows[1] - rows[0] > 0 for a, b in itertools.pairwise(rows))
    for x, y in layout.places.values():
        assert 0 <= x <= layout.width
        assert 0 <= y <= layout.height


def test_an_edge_over_several_layers_bends_once_a_layer() -> None:
    layout = lay_out(["a", "b", "c"], [("a", "b"), ("b", "c"), ("a", "c")])
    assert [len(layout.routes[edge]) for edge in (("a", "b"), ("b", "c"), ("a", "c"))] == [2, 2, 3]


def test_every_edge_of_an_acyclic_lineage_is_drawn() -> None:
    nodes = [LineageNode(name=name, kind="run") for name in "abcd"]
    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "d")]
    drawn = lineage_graph(
        Lineage(nodes=nodes, edges=[LineageEdge(**{"from": f, "to": t, "relation": "used"}) for f, t in edges])
    )
    assert drawn.count('class="edge"') == 5
    assert drawn.count('class="node') == 4


def test_a_lineage_of_nothing_is_drawn_empty() -> None:
    assert "Empty lineage" in lineage_graph(Lineage())
