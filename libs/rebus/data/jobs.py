"""Ingestion and curation as jobs, and the checks that a server makes before it accepts one."""

from __future__ import annotations

import json
import operator
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rebus import registry
from rebus.data.curation import Dropped, judge_rows, publish
from rebus.data.dataset import open_version, write_version
from rebus.data.readers.base import Quarantined, Reader
from rebus.data.sample import Sample
from rebus.data.sources import build_reader, plain
from rebus.data.versions import dataset_of
from rebus.errors import InvalidArgumentError, NotFoundError, invalid
from rebus.jobs.context import JobContext
from rebus.store import Store, documents
from rebus.v1.dataset_pb2 import Curation, DatasetVersion, Ingestion, QuarantinedSample

DEFAULT_MAX_BAD_SHARE = 0.1
QUARANTINE = "quarantine.jsonl"
_REPORT_SECONDS = 1.0
_REASONS_SHOWN = 3


def checked_ingestion(ingestion: Ingestion) -> Ingestion:
    """A new ``Ingestion`` ready to be queued: readers, settings and paths are checked without reading a sample.

    Raises ``InvalidArgumentError`` or ``NotFoundError`` naming the field, e.g. ``ingestion.sources[0].uri``.
    """
    if not ingestion.sources:
        raise invalid("ingestion.sources", "expected at least one source")
    for index, source in enumerate(ingestion.sources):
        build_reader(source, f"ingestion.sources[{index}]")
    checked = Ingestion(dataset=ingestion.dataset, sources=ingestion.sources)
    if ingestion.HasField("max_bad_share"):
        checked.max_bad_share = ingestion.max_bad_share
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


def read_quarantine(store: Store, name: str) -> list[QuarantinedSample]:
    """What a job left out, in the order in which it was met; empty before the job has ended."""
    try:
        lines = store.get(f"{name}/{QUARANTINE}").decode().split("\n")
    except NotFoundError:
        return []
    return [QuarantinedSample(**json.loads(line)) for line in lines if line]


def run_ingestion(ctx: JobContext) -> None:
    """Reads the ingestion's sources into a new version of its dataset.

    Fails with ``InvalidArgumentError`` when a source as a whole is wrong or too large a share of its samples is
    bad; the bad ones are listed in either case, and nothing is published in the latter.
    """
    ingestion = ctx.document(Ingestion)
    version = _published(ctx.store, ingestion.dataset, ctx.name) or _read_sources(ctx, ingestion)

    def finish(document: Ingestion) -> None:
        document.dataset_version = version.name
        document.num_samples = version.num_samples

    ctx.update(Ingestion, finish)


def _read_sources(ctx: JobContext, ingestion: Ingestion) -> DatasetVersion:
    intake = _Intake(ctx, ingestion)
    try:
        return write_version(ctx.store, ingestion.dataset, intake.samples(), producer=ctx.name)
    finally:
        intake.close()


def run_curation(ctx: JobContext) -> None:
    """Runs the curation's curators over its version and publishes the result; dropped rows are listed first."""
    curation = ctx.document(Curation)

    def on_rows(rows: int, total: int) -> None:
        ctx.check_cancelled()
        ctx.progress(0.9 * rows / total, f"judged {rows} of {total} rows")

    reader = open_version(ctx.store, curation.dataset_version)
    judged = judge_rows(reader, _curator_specs(curation), on_rows=on_rows)
    _list_dropped(ctx, judged.dropped)
    done = _published(ctx.store, dataset_of(curation.dataset_version), ctx.name)
    version = done or publish(ctx.store, reader, judged, producer=ctx.name)
    ctx.emit("metrics", {"samples": version.num_samples, "dropped": len(judged.dropped)})

    def finish(document: Curation) -> None:
        document.result_version = version.name
        for name, count in judged.dropped.counts().items():
            document.dropped[name] = count

    ctx.update(Curation, finish)


def _list_dropped(ctx: JobContext, dropped: Iterable[Dropped]) -> None:
    """Stores one line a dropped row beside the job, by way of a file: they may be most of a large version."""
    with tempfile.NamedTemporaryFile(prefix="rebus-dropped-", suffix=".jsonl") as file:
        for row in dropped:
            file.write(_line(Quarantined(row.sample_id, f"{row.curator}: {row.reason}")))
        file.flush()
        ctx.store.upload(Path(file.name), f"{ctx.name}/{QUARANTINE}")


class _Intake:
    """Drains an ingestion's readers: lets good samples through, writes bad ones down, keeps count of both."""

    def __init__(self, ctx: JobContext, ingestion: Ingestion) -> None:
        self._ctx = ctx
        self._max_bad_share = ingestion.max_bad_share if ingestion.HasField("max_bad_share") else DEFAULT_MAX_BAD_SHARE
        self._readers = [
            build_reader(source, f"ingestion.sources[{index}]") for index, source in enumerate(ingestion.sources)
        ]
        self._file = tempfile.NamedTemporaryFile(prefix="rebus-quarantine-", suffix=".jsonl")  # noqa: SIM115
        self._first_reasons: list[str] = []
        self._seen: set[str] = set()
        self._good = self._bad = 0
        self._reported = time.monotonic()

    def samples(self) -> Iterator[Sample]:
        """The good samples of all sources in order; raises at the end if too many were bad."""
        for index, reader in enumerate(self._readers):
            for count, item in enumerate(reader, start=1):
                self._ctx.check_cancelled()
                item = self._unique(item)
                if isinstance(item, Quarantined):
                    self._quarantine(item)
                else:
                    self._good += 1
                    yield item
                if time.monotonic() - self._reported >= _REPORT_SECONDS:
                    self._report(index, count, reader)
            self._report(index + 1, 0, ())
        self._check_share()

    def close(self) -> None:
        """Stores the list of bad samples and their number, whether or not the ingestion went well."""
        self._file.flush()
        count = self._bad
        with self._file:
            self._ctx.store.upload(Path(self._file.name), f"{self._ctx.name}/{QUARANTINE}")
        self._ctx.update(Ingestion, lambda document: setattr(document, "num_quarantined", count))

    def _unique(self, item: Sample | Quarantined) -> Sample | Quarantined:
        if isinstance(item, Quarantined):
            return item
        if item.id in self._seen:
            return Quarantined(item.id, "an earlier sample has this id")
        self._seen.add(item.id)
        return item

    def _quarantine(self, item: Quarantined) -> None:
        self._bad += 1
        self._file.write(_line(item))
        if len(self._first_reasons) < _REASONS_SHOWN:
            self._first_reasons.append(f"{item.location}: {item.reason}")

    def _report(self, done_readers: int, count: int, reader: Reader | Sequence[Any]) -> None:
        """Progress counts sources as equally long; within one it is known only where the reader can tell."""
        self._reported = time.monotonic()
        total = operator.length_hint(reader, 0)
        within = min(count / total, 1.0) if total else 0.0
        self._ctx.progress(0.9 * (done_readers + within) / len(self._readers), f"read {self._good} samples")
        self._ctx.emit("metrics", {"samples": self._good, "quarantined": self._bad})

    def _check_share(self) -> None:
        total = self._good + self._bad
        first = "; ".join(self._first_reasons)
        if not self._good:
            raise InvalidArgumentError(f"no good sample among {total}: {first or 'the sources are empty'}")
        if self._bad > self._max_bad_share * total:
            limit = f"max_bad_share={self._max_bad_share:g}"
            raise InvalidArgumentError(f"{self._bad} of {total} samples are bad, more than {limit} allows: {first}")


def _published(store: Store, dataset: str, producer: str) -> DatasetVersion | None:
    """The version that an earlier attempt of this job published before it could say so."""
    versions: Iterable[DatasetVersion] = documents.list_all(store, DatasetVersion, parent=dataset)
    return next((version for version in versions if version.producer == producer), None)


def _curator_specs(curation: Curation) -> list[dict[str, Any]]:
    fields = [f"curation.curators[{index}].settings" for index in range(len(curation.curators))]
    specs = zip(curation.curators, fields, strict=True)
    return [{**plain(spec.settings, field), "name": spec.curator} for spec, field in specs]


def _line(item: Quarantined) -> bytes:
    """One line of a quarantine file. What is no text in a reason (it may quote bad input) is escaped."""
    text = json.dumps({"location": _printable(item.location), "reason": _printable(item.reason)}, ensure_ascii=False)
    return f"{text}\n".encode()


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
