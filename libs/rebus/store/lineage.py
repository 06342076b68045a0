"""Lineage: from a resource back to all that it was made from, read from the documents alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from rebus.errors import NotFoundError
from rebus.store import documents
from rebus.store.objects import Store
from rebus.v1.contamination_pb2 import Contamination, ContaminationMatch
from rebus.v1.dataset_pb2 import Curation, DatasetVersion, Ingestion
from rebus.v1.evaluation_pb2 import Evaluation
from rebus.v1.model_pb2 import Lineage, LineageEdge, LineageNode, ModelVersion
from rebus.v1.retrieval_pb2 import Index
from rebus.v1.training_pb2 import MixtureShare, Run

# What a resource was made from: (relation, name of the older node).
Links = Iterator[tuple[str, str]]
MAX_NODES = 10_000


def walk(store: Store, name: str) -> Lineage:
    """The graph below ``name``, which is its first node; ``NotFoundError`` names a link that is missing."""
    lineage = Lineage()
    pending, seen = [name], {name}
    while pending and len(lineage.nodes) < MAX_NODES:
        current = pending.pop(0)
        node, links = _visit(store, current)
        lineage.nodes.append(node)
        for relation, older in links:
            lineage.edges.append(LineageEdge(**{"from": current, "to": older, "relation": relation}))
            if older not in seen:
                seen.add(older)
                pending.append(older)
    return lineage


def _visit(store: Store, name: str) -> tuple[LineageNode, list[tuple[str, str]]]:
    kind, colon, value = name.partition(":")
    if colon and kind in ("recipe", "code", "source"):
        return LineageNode(name=name, kind=kind, digest=value if kind == "recipe" else ""), []
    cls = documents.type_of(name)
    if cls not in _VISITORS:
        raise NotFoundError(f"{name} has no lineage; ask for one of its versions", metadata={"name": name})
    kind, links, attributes = _VISITORS[cls]
    document = documents.get(store, cls, name)
    node = LineageNode(name=name, kind=kind, digest=getattr(document, "digest", ""))
    node.attributes.update({key: str(value) for key, value in attributes(document).items()})
    return node, list(links(document))


def _of_evaluation(evaluation: Evaluation) -> Links:
    yield "evaluated", evaluation.model_version
    yield "used_code", f"code:{evaluation.code_revision}"
    for benchmark in evaluation.benchmarks:
        yield "evaluated_on", benchmark.dataset_version


def _of_index(index: Index) -> Links:
    yield "embedded_by", index.model_version
    yield "indexed", index.dataset_version


def _of_model_version(version: ModelVersion) -> Links:
    if version.run:
        yield "trained_by", version.run
    if version.imported_from:
        yield "imported_from", f"source:{version.imported_from}"
    for parent in version.parents:
        yield "started_from", parent


def _of_run(run: Run) -> Links:
    yield "used_recipe", f"recipe:{run.recipe_digest}"
    yield "used_code", f"code:{run.code_revision}"
    for version in sorted(set(run.model_versions.values())):
        yield "started_from", version
    consumed = {share.dataset_version for share in run.mixture} or set(run.datasets.values())
    for dataset_version in sorted(consumed):
        yield "consumed", dataset_version


def _of_dataset_version(version: DatasetVersion) -> Links:
    if version.producer:
        yield "produced_by", version.producer
    if version.parent:
        yield "extends" if version.producer.startswith("ingestions/") else "curated_from", version.parent


def _of_ingestion(ingestion: Ingestion) -> Links:
    for source in ingestion.sources:
        yield "read", f"source:{source.reader} {source.uri}".rstrip()


def _of_curation(curation: Curation) -> Links:
    yield "read", curation.dataset_version


def _mixture(shares: list[MixtureShare]) -> dict[str, Any]:
    return {
        f"mixture/{share.source}": f"{share.num_samples} samples, {share.num_tokens} tokens, {share.num_images} images"
        for share in shares
    }


def _contamination(reports: Iterable[Contamination]) -> dict[str, Any]:
    """What the training data hold of each benchmark, by its version and split."""
    return {
        f"contamination/{report.benchmark_version}{f' {report.split}' if report.split else ''}": contaminated(report)
        for report in reports
    }


def contaminated(report: Contamination) -> str:
    """``1.2% of 80 items seen (1), by text, image``, and what is not known."""
    ways = ", ".join(ContaminationMatch.By.Name(way).lower() for way in report.match.by)
    told = f"{report.share:.1%} of {report.num_items} items seen ({report.num_seen}), by {ways}"
    return "; ".join([told, *(f"unknown: {why}" for why in report.unknown)])


_VISITORS: dict[type[Message], tuple[str, Callable[[Any], Links], Callable[[Any], dict[str, Any]]]] = {
    Evaluation: ("evaluation", _of_evaluation, lambda e: {"scores": len(e.scores), **_contamination(e.contamination)}),
    Index: ("index", _of_index, lambda i: {"vectors": i.num_vectors}),
    ModelVersion: (
        "model_version",
        _of_model_version,
        lambda v: {
            "architecture": v.architecture,
            "parameters": v.num_parameters,
            **_mixture(v.mixture),
            **_contamination(v.contamination),
        },
    ),
    Run: (
        "run",
        _of_run,
        lambda r: {"seed": r.seed, "steps": r.step, **_mixture(r.mixture), **_contamination(r.contamination)},
    ),
    DatasetVersion: ("dataset_version", _of_dataset_version, lambda v: {"samples": v.num_samples}),
    Ingestion: ("ingestion", _of_ingestion, lambda i: {"quarantined": i.num_quarantined}),
    Curation: ("curation", _of_curation, lambda c: {f"dropped/{k}": v for k, v in sorted(c.dropped.items())}),
}
