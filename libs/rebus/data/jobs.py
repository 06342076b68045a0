"""Ingestion and curation as jobs, and the checks that a server makes before it accepts one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from rebus import registry
from rebus.data.curation import judge_rows, publish
from rebus.data.curation_on_ray import ADDRESS_ENV, StageOnRay
from rebus.data.dataset import ensure_dataset, open_base, open_version, publish_staged
from rebus.data.ingest_settings import IngestSettings
from rebus.data.intake import Intake, SourceChangedError
from rebus.data.journal import Journal
from rebus.data.quarantine import write_quarantine
from rebus.data.readers.base import Quarantined
from rebus.data.seen import SeenIds
from rebus.data.sources import build_reader, plain
from rebus.data.versions import dataset_of
from rebus.errors import InvalidArgumentError, invalid
from rebus.jobs.context import JobContext
from rebus.store import Store, documents
from rebus.v1.dataset_pb2 import Curation, DatasetVersion, Ingestion


def checked_ingestion(ingestion: Ingestion) -> Ingestion:
    """A new ``Ingestion`` ready to be queued: readers, settings and paths are checked without reading a sample.

    Raises ``InvalidArgumentError`` or ``NotFoundError`` naming the field, e.g. ``ingestion.sources[0].uri``.
    """
    if not ingestion.sources:
        raise invalid("ingestion.sources", "expected at least one source")
    for index, source in enumerate(ingestion.sources):
        build_reader(source, f"ingestion.sources[{index}]")
    checked = Ingestion(dataset=ingestion.dataset, sources=ingestion.sources, append=ingestion.append)
    if ingestion.HasField("max_bad_share"):
        checked.max_bad_share = ingestion.max_bad_share
    if ingestion.HasField("max_bad_samples"):
        checked.max_bad_samples = ingestion.max_bad_samples
    return checked


def checked_curation(store: Store, curation: Curation) -> Curation:
    """A new ``Curation`` ready to be queued: version, curators and settings checked, as ``checked_ingestion`` does."""
    documents.get(store, DatasetVersion, curation.dataset_version)
    if not curation.curators:
        raise invalid("curation.curators", "expected at least one curator")
    for index, spec in enumerate(_curator_specs(curation)):
        field = f"curation.curators[{index}]"
        registry.get("curator", spec["name"], field=f"{field}.curator")
        registry.settings("curator", spec, field=f"{field}.settings")
    return Curation(dataset_version=curation.dataset_version, curators=curation.curators)


def run_ingestion(ctx: JobContext) -> None:
    """Reads the ingestion's sources into a new version of its dataset, on from where an earlier attempt got.

    Fails with ``InvalidArgumentError`` when a source as a whole is wrong or too many of its samples are bad; the bad
    ones are listed in either case, and nothing is published in the latter.
    """
    journal = Journal(ctx.store, ctx.name, ctx.document(Ingestion).dataset)
    ingestion = _with_base(ctx, journal)
    if not ingestion.dataset_version:
        try:
            version = _published(ctx.store, ingestion.dataset, ctx.name) or _ingest(ctx, ingestion, journal)
        except Exception as error:
            _conclude(ctx, journal, DatasetVersion())
            if isinstance(error, InvalidArgumentError):  # whoever resumes the job has mended the sources
                journal.close(keep_rows=False)
            raise
        _conclude(ctx, journal, version)
    journal.close(keep_rows=True)


def _with_base(ctx: JobContext, journal: Journal) -> Ingestion:
    """The ingestion; one that appends has the dataset's latest version noted before anything is read."""
    ingestion = ctx.document(Ingestion)
    if not ingestion.append or ingestion.base_version or journal.count:
        return ingestion
    latest = ensure_dataset(ctx.store, ingestion.dataset).latest_version
    return ctx.update(Ingestion, lambda document: setattr(document, "base_version", latest))


def _ingest(ctx: JobContext, ingestion: Ingestion, journal: Journal) -> DatasetVersion:
    ensure_dataset(ctx.store, ingestion.dataset)
    if not journal.are_stored():
        journal.close(keep_rows=False)
    try:
        _read_sources(ctx, ingestion, journal)
    except SourceChangedError:
        ctx.progress(0.0, "the sources have changed since the last attempt: reading them from the beginning")
        journal.close(keep_rows=False)
        _read_sources(ctx, ingestion, journal)
    ctx.flush()  # raises if another attempt has begun meanwhile
    return publish_staged(
        ctx.store, ingestion.dataset, journal.fragments, base=ingestion.base_version, producer=ctx.name
    )


def _read_sources(ctx: JobContext, ingestion: Ingestion, journal: Journal) -> None:
    """Reads what ``journal`` does not hold yet."""
    readers = [build_reader(source, f"ingestion.sources[{index}]") for index, source in enumerate(ingestion.sources)]
    intake = Intake(ctx, ingestion, readers, journal, IngestSettings.from_environment())
    base = open_base(ctx.store, ingestion.dataset, ingestion.base_version) if ingestion.base_version else None
    with closing(SeenIds()) as seen:
        if base:
            seen.update(base.ids())
        seen.update(journal.ids())
        intake.run(seen, base.version.lance_version if base else None)


def _conclude(ctx: JobContext, journal: Journal, version: DatasetVersion) -> None:
    """Lists the bad samples and notes the counts; ``version`` is empty where none was published."""
    write_quarantine(ctx.store, ctx.name, journal.quarantined())

    def finish(document: Ingestion) -> None:
        document.dataset_version = version.name
        document.num_samples = journal.last.good if version.name else 0
        document.num_quarantined = journal.last.bad

    ctx.update(Ingestion, finish)


def run_curation(ctx: JobContext) -> None:
    """Runs the curation's curators over its version and publishes the result; dropped rows are listed first."""
    curation = ctx.document(Curation)

    def on_rows(rows: int, total: int) -> None:
        ctx.check_cancelled()
        ctx.progress(0.9 * rows / total, f"judged {rows} of {total} rows")

    reader = open_version(ctx.store, curation.dataset_version)
    address = os.environ.get(ADDRESS_ENV)
    runner = StageOnRay(address) if address else None
    judged = judge_rows(reader, _curator_specs(curation), on_rows=on_rows, runner=runner)
    left_out = (Quarantined(row.sample_id, f"{row.curator}: {row.reason}") for row in judged.dropped)
    write_quarantine(ctx.store, ctx.name, left_out)
    done = _published(ctx.store, dataset_of(curation.dataset_version), ctx.name)
    version = done or publish(ctx.store, reader, judged, producer=ctx.name)
    ctx.emit("metrics", {"samples": version.num_samples, "dropped": len(judged.dropped)})

    def finish(document: Curation) -> None:
        document.result_version = version.name
        for name, count in judged.dropped.counts().items():
            document.dropped[name] = count

    ctx.update(Curation, finish)


def _published(store: Store, dataset: str, producer: str) -> DatasetVersion | None:
    """The version that an earlier attempt of this job published before it could say so."""
    versions: Iterable[DatasetVersion] = documents.list_all(store, DatasetVersion, parent=dataset)
    return next((version for version in versions if version.producer == producer), None)


def _curator_specs(curation: Curation) -> list[dict[str, Any]]:
    fields = [f"curation.curators[{index}].settings" for index in range(len(curation.curators))]
    specs = zip(curation.curators, fields, strict=True)
    return [{**plain(spec.settings, field), "name": spec.curator} for spec, field in specs]
