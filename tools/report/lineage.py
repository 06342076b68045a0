"""A lineage drawn as a graph: newer above older, edges downwards (a small Sugiyama layout)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rebus.v1.model_pb2 import Lineage, LineageNode

_BOX_WIDTH, _BOX_HEIGHT = 240, 62
_GAP_X, _GAP_Y = 26, 56
_BEND_WIDTH = 96  # room that an edge and its label take where it passes a layer
_SWEEPS = 8
# What fits into a box in the bold and in the light face.
_NAME_CHARACTERS, _DETAIL_CHARACTERS = 27, 34

Layers = list[list[str]]


@dataclass(frozen=True)
class Layout:
    """Centre of every node, and the size of the drawing, in pixels."""

    places: Mapping[str, tuple[float, float]]
    # The nodes that each edge passes: its ends, and a bend in every layer between.
    routes: Mapping[tuple[str, str], Sequence[str]]
    width: float
    height: float


def lineage_graph(lineage: Lineage) -> Markup:
    """The graph as inline SVG."""
    edges = [(getattr(edge, "from"), edge.to, edge.relation) for edge in lineage.edges]
    layout = lay_out([node.name for node in lineage.nodes], [(newer, older) for newer, older, _ in edges])
    title = f"Lineage of {lineage.nodes[0].name}" if lineage.nodes else "Empty lineage"
    parts = [
        Markup(
            '<svg class="chart lineage" viewBox="0 0 {w} {h}" style="max-width: {w}px; min-width: min({w}px, 640px)" '
            'role="img" aria-label="{t}"><title>{t}</title>'
        ).format(w=round(layout.width), h=round(layout.height), t=title),
        *(_edge(layout, newer, older, relation) for newer, older, relation in edges),
        *(_box(layout, node) for node in lineage.nodes),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def lay_out(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> Layout:
    """Places ``names``; ``edges`` are (newer, older). An edge that closes a cycle is left out."""
    known = set(names)
    links = [(newer, older) for newer, older in dict.fromkeys(edges) if older in known and newer in known]
    depth = _depths(names, links)
    links = [(newer, older) for newer, older in links if depth[newer] < depth[older]]
    layers: Layers = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in names:
        layers[depth[name]].append(name)
    routes = {(newer, older): _route(newer, older, depth, layers) for newer, older in links}
    _order(layers, list(routes.values()))
    return _place(layers, routes, known)


def _depths(names: Sequence[str], links: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Longest way from a newest node; bounded by the number of nodes, so that a cycle cannot run on."""
    depth = dict.fromkeys(names, 0)
    for _ in range(len(names)):
        changed = False
        for newer, older in links:
            if depth[older] < depth[newer] + 1 < len(names):
                depth[older], changed = depth[newer] + 1, True
        if not changed:
            break
    return depth


def _route(newer: str, older: str, depth: Mapping[str, int], layers: Layers) -> list[str]:
    """The edge's nodes; adds a bend to every layer that it crosses."""
    bends = []
    for layer in range(depth[newer] + 1, depth[older]):
        bend = f"\0{newer}\0{older}\0{layer}"
        layers[layer].append(bend)
        bends.append(bend)
    return [newer, *bends, older]


def _order(layers: Layers, routes: Sequence[Sequence[str]]) -> None:
    """Sorts every layer by the mean place of its neighbours, downwards and upwards in turn."""
    above, below = defaultdict(list), defaultdict(list)
    for route in routes:
        for upper, lower in itertools.pairwise(route):
            below[upper].append(lower)
            above[lower].append(upper)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers[1:] if down else layers[-2::-1]:
            neighbours = above if down else below
            place = {name: at for other in layers for at, name in enumerate(other)}
            mean = {name: _mean([place[n] for n in neighbours[name]] or [place[name]]) for name in layer}
            layer.sort(key=lambda name, mean=mean: mean[name])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _place(layers: Layers, routes: Mapping[tuple[str, str], list[str]], boxes: set[str]) -> Layout:
    """Centres every layer in the widest one."""
    widths = {name: _BOX_WIDTH if name in boxes else _BEND_WIDTH for layer in layers for name in layer}
    totals = [sum(widths[name] for name in layer) + _GAP_X * (len(layer) - 1) for layer in layers]
    width = max(totals, default=0) + 2
    places: dict[str, tuple[float, float]] = {}
    for at, (layer, total) in enumerate(zip(layers, totals, strict=True)):
        x = (width - total) / 2
        for name in layer:
            places[name] = (round(x + widths[name] / 2, 1), 1 + _BOX_HEIGHT / 2 + at * (_BOX_HEIGHT + _GAP_Y))
            x += widths[name] + _GAP_X
    height = len(layers) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y + 2
    return Layout(places, routes, width, max(height, 0))


def _edge(layout: Layout, newer: str, older: str, relation: str) -> Markup:
    route = layout.routes.get((newer, older))
    if route is None:
        return Markup("")
    (x, y), (next_x, _) = layout.places[route[0]], layout.places[route[1]]
    label = relation.replace("_", " ")
    label_x, label_y = round(x + (next_x - x) * 0.68, 1), round(y + _BOX_HEIGHT / 2 + _GAP_Y * 0.62, 1)
    return Markup(
        '<g><title>{} {} {}</title><path class="edge" d="{}"/>'
        '<text class="relation" x="{}" y="{}" text-anchor="middle">{}</text></g>'
    ).format(newer, label, older, _curve([layout.places[name] for name in route]), label_x, label_y, label)


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """A path from below the first place to above the last, straight down where it passes a layer."""
    x, y = points[0][0], points[0][1] + _BOX_HEIGHT / 2
    path = [f"M{x} {y}"]
    for place_x, place_y in points[1:]:
        top, bottom = place_y - _BOX_HEIGHT / 2, place_y + _BOX_HEIGHT / 2
        middle = (y + top) / 2
        path.append(f"C{x} {middle} {place_x} {middle} {place_x} {top}V{bottom}")
        x, y = place_x, bottom
    return "".join(path).rpartition("V")[0]


def _box(layout: Layout, node: LineageNode) -> Markup:
    x, y = layout.places[node.name]
    left, top = x - _BOX_WIDTH / 2, y - _BOX_HEIGHT / 2
    attributes = "; ".join(f"{key}: {value}" for key, value in sorted(node.attributes.items()))
    detail = _short(_detail(node), _DETAIL_CHARACTERS)
    lines = [node.kind.replace("_", " "), _short(node.name, _NAME_CHARACTERS), detail]
    texts = Markup("").join(
        Markup('<text class="{}" x="{}" y="{}" text-anchor="middle">{}</text>').format(style, x, top + offset, line)
        for style, offset, line in zip(("axis", "name", "axis"), (17, 35, 52), lines, strict=True)
    )
    digest = f"digest {node.digest}" if node.digest else ""
    tooltip = "\n".join(part for part in (node.name, digest, attributes) if part)
    return Markup(
        '<g class="node kind-{}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="8"/>{}</g>'
    ).format(node.kind.replace("_", "-"), tooltip, left, top, _BOX_WIDTH, _BOX_HEIGHT, texts)


def _detail(node: LineageNode) -> str:
    """The start of the digest and the first attribute."""
    first = next((f"{value} {key}" for key, value in sorted(node.attributes.items()) if "/" not in key), "")
    return " · ".join(part for part in (node.digest[:10], first) if part)


def _short(text: str, room: int) -> str:
    """Keeps both ends: the middle of a digest or of a generated id says least."""
    return text if len(text) <= room else f"{text[: room - 9]}…{text[-8:]}"
