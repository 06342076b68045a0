"""``rebus contamination``: how much of a benchmark a dataset version holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from rebus.errors import invalid
from rebus.v1.contamination_pb2 import Contamination, ContaminationMatch
from tools.rebus import names
from tools.rebus.output import Format, FormatOption, print_fields, print_json, print_table, say, stderr
from tools.rebus.session import Session, stored

if TYPE_CHECKING:
    from rebus.store import Store
    from rebus.v1.dataset_pb2 import DatasetVersion


@stored
def contamination(
    session: Session,
    dataset: Annotated[str, typer.Argument(help="What is trained on: NAME (its newest version), NAME/VERSION.")],
    benchmark: Annotated[str, typer.Argument(help="What must not be in it: NAME or NAME/VERSION.")],
    by: Annotated[str, typer.Option(help="How items are found: text, image, embedding, with commas.")] = "text,image",
    split: Annotated[str, typer.Option(help="Only rows of this split are trained on.")] = "",
    benchmark_split: Annotated[str, typer.Option(help="Only rows of this split are items of the benchmark.")] = "",
    max_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit code 1 if more than this share of the items is found.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Looks for the items of a benchmark in a dataset version."""
    from rebus.data.contamination_gate import TrainedRows, compare, require
    from rebus.data.contamination_match import match_from_message
    from rebus.store import Store

    store = Store.open(session.store_url)
    match = match_from_message(ContaminationMatch(by=ways(by)), split=benchmark_split, field="--by")
    trained = _version(store, dataset)
    rows = TrainedRows(version=trained.name, digest=trained.digest, split=split)
    with Progress(console=stderr(), transient=True, disable=not stderr().is_terminal) as progress:
        task = progress.add_task("looking", total=1.0)
        report = compare(
            store,
            _version(store, benchmark).name,
            [rows],
            match,
            progress=lambda done, message: progress.update(task, completed=done, description=message),
        ).report
    if max_share is not None:
        report.max_share = max_share
    _print(report, Format.JSON if json else format)
    if report.unknown and max_share is None:
        raise invalid("contamination", "; ".join(report.unknown))
    if max_share is not None:
        require(report, max_share)


def ways(text: str) -> list[str]:
    """``text,image`` as names of the contract's values; ``InvalidArgumentError`` names the word that is none."""
    known = {name.lower(): name for name, value in ContaminationMatch.By.items() if value}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise invalid("--by", f"expected some of {', '.join(known)}, with commas between; found {word!r}")
    return [known[word] for word in words]


def _version(store: Store, name: str) -> DatasetVersion:
    from rebus.store import documents
    from rebus.v1.dataset_pb2 import Dataset, DatasetVersion

    full = names.version_name("datasets", name, lambda dataset: documents.get(store, Dataset, dataset).latest_version)
    return documents.get(store, DatasetVersion, full)


def _print(report: Contamination, format: Format) -> None:
    if format is Format.JSON:
        print_json(report)
        return
    (rows,) = report.training
    print_fields(
        (
            ("benchmark", " ".join(part for part in (report.benchmark_version, report.split) if part)),
            ("dataset", " ".join(part for part in (rows.dataset_version, rows.split) if part)),
            ("by", ", ".join(ContaminationMatch.By.Name(way).lower() for way in report.match.by)),
            ("rows", rows.num_samples),
            ("items", report.num_items),
            ("seen", report.num_seen),
            ("share", f"{report.share:.1%}"),
            ("limit", f"{report.max_share:.1%}" if report.HasField("max_share") else ""),
            ("unknown", rows.unknown),
        )
    )
    if report.first_seen:
        print_table(("item", "sample", "what it has"), ((s.item, s.sample, s.reason) for s in report.first_seen))
    if report.num_seen > len(report.first_seen):
        say(f"the first {len(report.first_seen)} of {report.num_seen} items")
