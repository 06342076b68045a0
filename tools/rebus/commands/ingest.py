"""``rebus ingest``: files into a dataset version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebus.client import Client
from rebus.v1.dataset_pb2 import CreateIngestionRequest, Ingestion, ListQuarantineRequest, Source
from tools.rebus import listing, names
from tools.rebus.follow import follow
from tools.rebus.output import Format, FormatOption, print_fields, print_json, say
from tools.rebus.session import Session, connected
from tools.rebus.settings import overlay

SHOWN_BAD = 20
DEFAULT_BAD_SHARE = 0.1


@connected
def ingest(
    session: Session,
    reader: Annotated[str, typer.Argument(help="How to read: image-folder, llava, text, emoji, scenes, ...")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="The dataset to write a new version of.")],
    path: Annotated[
        str,
        typer.Argument(
            help="What to read: a path on the server's machine, s3://bucket/prefix, or a web address; "
            "none for readers that make samples."
        ),
    ] = "",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the reader; repeatable.")
    ] = None,
    max_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fail if more than this share of the samples is bad.")
    ] = DEFAULT_BAD_SHARE,
    max_bad_samples: Annotated[
        int | None, typer.Option(min=0, help="Stop as soon as more samples than these are bad.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Begin the version with the rows of the dataset's latest one.")
    ] = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Reads a source into a new version of a dataset; bad samples are left out and listed."""
    source = Source(reader=reader, uri=_uri(path))
    source.settings.update(overlay({}, changes or []))
    wanted = Ingestion(
        dataset=names.full("datasets", dataset),
        sources=[source],
        max_bad_share=max_bad_share,
        max_bad_samples=max_bad_samples,
        append=append,
    )
    with session.client("ingest") as client:
        started = client.ingestions.CreateIngestion(CreateIngestionRequest(ingestion=wanted))
        finish(client, started.name, format)


def finish(client: Client, name: str, format: Format) -> None:
    """Follows an ingestion to its end and shows what came of it."""
    try:
        done: Ingestion = follow(client, name)
    finally:
        _report_bad(client, name)
    if format is Format.JSON:
        print_json(done)
        return
    fields = ("dataset_version", "num_samples", "num_quarantined", "name")
    print_fields((field.replace("_", " "), getattr(done, field)) for field in fields)


def _uri(path: str) -> str:
    """A path becomes absolute; addresses and the empty path stay as they are."""
    return path if "://" in path or not path else str(Path(path).expanduser().absolute())


def _report_bad(client: Client, name: str) -> None:
    """One line a bad sample, for the first of them; also after an ingestion that failed for too many."""
    request = ListQuarantineRequest(parent=name)
    bad = listing.items(client.ingestions.ListQuarantine, request, "samples", SHOWN_BAD + 1)
    for sample in bad[:SHOWN_BAD]:
        say(f"left out: {sample.location}: {sample.reason}", style="yellow")
    if len(bad) > SHOWN_BAD:
        say(f"and more; list all: rebus datasets quarantine {name}", style="yellow")
