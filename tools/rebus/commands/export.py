"""``rebus export``: a dataset version into files that other tools read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from rebus.errors import NotFoundError
from tools.rebus import names
from tools.rebus.output import Format, FormatOption, print_fields, print_json, stderr
from tools.rebus.session import Session, stored
from tools.rebus.settings import overlay

if TYPE_CHECKING:
    from rebus.data.sample import Sample
    from rebus.store import Store


@stored
def export(
    session: Session,
    version: Annotated[str, typer.Argument(help="NAME (its newest version), NAME/VERSION, or a full name.")],
    folder: Annotated[Path, typer.Argument(help="A new folder to write into.")],
    exporter: Annotated[str, typer.Option("--as", help="The format: parquet, webdataset, llava.")] = "webdataset",
    split: Annotated[str, typer.Option(help="Only rows of this split.")] = "",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the exporter; repeatable.")
    ] = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Writes a dataset version as files that `rebus ingest` and other tools read."""
    from rebus import registry
    from rebus.data import exporters
    from rebus.data.dataset import open_version
    from rebus.store import Store

    built = registry.build("exporter", {**overlay({}, changes or []), "name": exporter}, field="--set")
    store = Store.open(session.store_url)
    reader = open_version(store, _version(store, version))
    total = len(reader.row_ids(split))
    if not total:
        raise NotFoundError(f"{reader.version.name} has no rows of split {split!r}")
    with Progress(console=stderr(), transient=True, disable=not stderr().is_terminal) as progress:
        samples = _shown(reader.scan(split), progress, total)
        count = exporters.export(built, samples, folder.expanduser().absolute())
    done = {"dataset_version": reader.version.name, "samples": count, "format": exporter, "folder": str(folder)}
    if format is Format.JSON:
        print_json(done)
    else:
        print_fields((name.replace("_", " "), value) for name, value in done.items())


def _version(store: Store, name: str) -> str:
    """As ``names.version``, without a service to ask."""
    from rebus.store import documents
    from rebus.v1.dataset_pb2 import Dataset

    return names.version_name("datasets", name, lambda dataset: documents.get(store, Dataset, dataset).latest_version)


def _shown(samples: Iterator[Sample], progress: Progress, total: int) -> Iterable[Sample]:
    task = progress.add_task("exporting", total=total)
    for sample in samples:
        yield sample
        progress.advance(task)
