"""``rebus datasets``: what there is, what is in it, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from rebus.v1.dataset_pb2 import (
    CreateCurationRequest,
    Curation,
    Curator,
    DeleteDatasetRequest,
    ListDatasetsRequest,
    ListDatasetVersionsRequest,
    ListQuarantineRequest,
    ListSamplesRequest,
    ResumeIngestionRequest,
)
from tools.rebus import listing, names
from tools.rebus.commands.ingest import finish
from tools.rebus.files import caption_of, save_images
from tools.rebus.follow import follow
from tools.rebus.output import Format, FormatOption, LimitOption, ago, print_fields, print_json, print_table, say
from tools.rebus.session import Session, connected

app = typer.Typer(no_args_is_help=True, help="Datasets: list, show, curate, delete.")
VersionArgument = Annotated[str, typer.Argument(help="NAME (its newest version), NAME/VERSION, or a full name.")]
DatasetArgument = Annotated[str, typer.Argument(help="The dataset.")]


@app.command("list")
@connected
def list_datasets(session: Session, limit: LimitOption = 50, format: FormatOption = Format.TABLE) -> None:
    """Lists the datasets."""
    with session.client("ingest") as client:
        found = listing.items(client.datasets.ListDatasets, ListDatasetsRequest(), "datasets", limit)
    if format is Format.JSON:
        print_json(found)
        return
    rows = ((d.name, d.latest_version.rpartition("/")[2], ago(d.create_time), d.description) for d in found)
    print_table(("name", "newest", "age", "description"), rows)


@app.command()
@connected
def versions(
    session: Session, dataset: DatasetArgument, limit: LimitOption = 50, format: FormatOption = Format.TABLE
) -> None:
    """Lists the versions of a dataset."""
    request = ListDatasetVersionsRequest(parent=names.full("datasets", dataset))
    with session.client("ingest") as client:
        found = listing.items(client.datasets.ListDatasetVersions, request, "dataset_versions", limit)
    if format is Format.JSON:
        print_json(found)
        return
    rows = ((v.name, v.num_samples, v.num_media, _counts(v.splits), v.producer, ago(v.create_time)) for v in found)
    print_table(("name", "samples", "pictures", "splits", "made by", "age"), rows)


@app.command()
@connected
def show(session: Session, version: VersionArgument, format: FormatOption = Format.TABLE) -> None:
    """Shows one version: its rows, splits, sources, digest, and where it comes from."""
    with session.client("ingest") as client:
        found = client.get(names.version(client, "datasets", version))
    if format is Format.JSON:
        print_json(found)
        return
    print_fields(
        (
            ("name", found.name),
            ("samples", found.num_samples),
            ("pictures", found.num_media),
            ("splits", _counts(found.splits)),
            ("sources", _counts(found.sources)),
            ("made by", found.producer),
            ("parent", found.parent),
            ("digest", found.digest),
        )
    )


@app.command()
@connected
def samples(
    session: Session,
    version: VersionArgument,
    split: Annotated[str, typer.Option(help="Only rows of this split.")] = "",
    save: Annotated[Path | None, typer.Option(help="Folder to save the samples' pictures in.")] = None,
    limit: LimitOption = 10,
    format: FormatOption = Format.TABLE,
) -> None:
    """Prints rows of a version."""
    with session.client("ingest") as client:
        request = ListSamplesRequest(parent=names.version(client, "datasets", version), split=split)
        found = listing.items(client.datasets.ListSamples, request, "samples", limit)
    for sample in found:
        for path in save_images(sample, save, "") if save else ():
            say(f"saved {path}")
    if format is Format.JSON:
        print_json(found)
        return
    rows = ((s.id, s.split, len(s.segments), s.source, caption_of(s)) for s in found)
    print_table(("id", "split", "segments", "source", "text"), rows)


@app.command()
@connected
def quarantine(
    session: Session,
    ingestion: Annotated[str, typer.Argument(help="The ingestion; latest is the newest.")],
    limit: LimitOption = 1000,
    format: FormatOption = Format.TABLE,
) -> None:
    """Lists the bad samples that an ingestion left out, with the reasons."""
    with session.client("ingest") as client:
        request = ListQuarantineRequest(parent=names.job(client, "ingestions", ingestion))
        found = listing.items(client.ingestions.ListQuarantine, request, "samples", limit)
    if format is Format.JSON:
        print_json(found)
        return
    print_table(("location", "reason"), ((s.location, s.reason) for s in found))


@app.command()
@connected
def resume(
    session: Session,
    ingestion: Annotated[str, typer.Argument(help="The ingestion; latest is the newest.")],
    format: FormatOption = Format.TABLE,
) -> None:
    """Lets an ingestion that failed or was cancelled go on from what it had read."""
    with session.client("ingest") as client:
        request = ResumeIngestionRequest(name=names.job(client, "ingestions", ingestion))
        finish(client, client.ingestions.ResumeIngestion(request).name, format)


@app.command()
@connected
def curate(
    session: Session,
    version: VersionArgument,
    curators: Annotated[
        list[str], typer.Option("--curator", "-c", help="A curator, e.g. exact-dedup; repeatable, applied in order.")
    ],
    format: FormatOption = Format.TABLE,
) -> None:
    """Makes a new version without the rows that curators drop."""
    with session.client("ingest") as client:
        wanted = Curation(
            dataset_version=names.version(client, "datasets", version), curators=[Curator(curator=c) for c in curators]
        )
        started = client.ingestions.CreateCuration(CreateCurationRequest(curation=wanted))
        done: Curation = follow(client, started.name)
    if format is Format.JSON:
        print_json(done)
        return
    print_fields((("dataset version", done.result_version), ("dropped", _counts(done.dropped)), ("name", done.name)))


@app.command()
@connected
def delete(
    session: Session,
    dataset: DatasetArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Removes a dataset with all its versions."""
    name = names.full("datasets", dataset)
    if not yes:
        typer.confirm(f"Remove {name} with all its versions?", abort=True)
    with session.client("ingest") as client:
        client.datasets.DeleteDataset(DeleteDatasetRequest(name=name))
    say(f"removed {name}")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(counts.items()))
