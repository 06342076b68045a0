"""``rebus lineage``: the way back to the data."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.tree import Tree

from rebus.v1.model_pb2 import GetLineageRequest, Lineage, LineageEdge, LineageNode
from tools.rebus import names
from tools.rebus.output import Format, FormatOption, print_json, stdout
from tools.rebus.session import Session, connected

_DIGEST = 12


@connected
def lineage(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(help="A full name: evaluations/latest, runs/..., models/x/versions/1, datasets/x/versions/1"),
    ],
    format: FormatOption = Format.TABLE,
) -> None:
    """Walks from a resource back to all that it was made from, as a tree."""
    # Only to find the newest of a collection is its own service needed.
    services = ("training", names.service_of(name)) if name.endswith(f"/{names.LATEST}") else ("training",)
    with session.client(*services) as client:
        found: Lineage = client.models.GetLineage(GetLineageRequest(name=names.resolve(client, name)))
    if format is Format.JSON:
        print_json(found)
    else:
        stdout().print(tree(found))


def tree(lineage: Lineage) -> Tree:
    """The graph as a tree from its first node; a node met again is named, not unfolded."""
    nodes = {node.name: node for node in lineage.nodes}
    edges: dict[str, list[LineageEdge]] = defaultdict(list)
    for edge in lineage.edges:
        edges[getattr(edge, "from")].append(edge)
    first = lineage.nodes[0]
    root = Tree(_label(first))
    _grow(root, first.name, nodes, edges, {first.name})
    return root


def _grow(
    branch: Tree, name: str, nodes: dict[str, LineageNode], edges: dict[str, list[LineageEdge]], seen: set[str]
) -> None:
    for edge in edges[name]:
        relation = f"[dim]{edge.relation.replace('_', ' ')}[/] "
        if edge.to in seen:
            branch.add(f"{relation}{escape(edge.to)} [dim](above)[/]")
            continue
        seen.add(edge.to)
        node = nodes.get(edge.to, LineageNode(name=edge.to))
        _grow(branch.add(relation + _label(node)), edge.to, nodes, edges, seen)


def _label(node: LineageNode) -> str:
    """``models/x/versions/1  sha256 0123…  parameters 812000``, then a line for each attribute that is one of a group
    (``mixture/captions``)."""
    parts = [f"[bold]{escape(node.name)}[/]"]
    if node.digest and node.digest not in node.name:
        parts.append(f"[cyan]sha256 {escape(node.digest[:_DIGEST])}[/]")
    attributes = sorted(node.attributes.items())
    parts += [escape(f"{key} {value}") for key, value in attributes if "/" not in key]
    lines = [f"[dim]{escape(f'{key}: {value}')}[/]" for key, value in attributes if "/" in key]
    return "\n".join(["  ".join(parts), *lines])
