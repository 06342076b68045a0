"""``fsck`` finds what is damaged and names it; ``gc`` removes what nothing refers to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message

from rebus.config import digest, parse_yaml
from rebus.errors import DataLossError, NotFoundError, RebusError
from rebus.store import documents, manifests, media
from rebus.store.objects import ObjectInfo, Store
from rebus.store.sealed import unseal
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.evaluation_pb2 import Evaluation
from rebus.v1.model_pb2 import Model, ModelVersion
from rebus.v1.retrieval_pb2 import Index
from rebus.v1.training_pb2 import Run

DEFAULT_GRACE = timedelta(hours=24)
_SEALED = re.compile(r"(^requests/.*|/events/\d+|/manifest|/claim)\.json$")
# Lance's own records of its commits: small, and read by Lance itself even where no version of ours needs them.
_LANCE_METADATA = re.compile(r"/data\.lance/_(versions|transactions|refs)/")
_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written: the object or resource, and what is wrong with it."""

    path: str
    description: str


def fsck(store: Store, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Problem]:
    """Reads everything and lists what was altered, is missing, or contradicts what refers to it."""
    infos = list(store.list())
    problems: list[Problem] = []
    for done, info in enumerate(infos, start=1):
        problems += _check_object(store, info.path)
        on_progress(done, len(infos))
    return sorted(set(problems), key=lambda problem: problem.path)


def _check_object(store: Store, path: str) -> list[Problem]:
    name = _document_name(path)
    try:
        if name is not None:
            return _check_document(store, documents.get(store, documents.type_of(name), name))
        if path.endswith(f"/{manifests.MANIFEST}"):
            return _check_manifest(store, path)
        if _SEALED.search(path):
            unseal(store.get(path), path)
        if path.startswith(f"{media.COLLECTION}/"):
            media.read(store, path)
    except DataLossError as error:
        return [Problem(path, str(error))]
    return []


def _check_manifest(store: Store, path: str) -> list[Problem]:
    folder = path.removesuffix(f"/{manifests.MANIFEST}")
    lines = manifests.verify(store, folder, base=_base(folder))
    return [Problem(*line.split(": ", 1)) for line in lines]


def _base(folder: str) -> str:
    """A dataset's versions share their objects, so their manifests are relative to the dataset."""
    return folder.partition("/versions/")[0] if folder.startswith("datasets/") else folder


def _document_name(path: str) -> str | None:
    """The resource whose document lies at ``path``, if one does."""
    name = path.rpartition("/")[0]
    try:
        return name if documents.path_of(name) == path else None
    except RebusError:
        return None


def _check_document(store: Store, document: Message) -> list[Problem]:
    name: str = document.name  # pyright: ignore[reportAttributeAccessIssue]
    return [Problem(name, text) for text in _contradictions(store, document)]


def _contradictions(store: Store, document: Message) -> Iterator[str]:
    if isinstance(document, DatasetVersion | ModelVersion | Index | Evaluation) and document.digest:
        yield from _digest_matches(store, document.name, document.digest)
    if isinstance(document, Run):
        if digest(parse_yaml(document.recipe)) != document.recipe_digest:
            yield "the recipe does not match its digest"
        if document.checkpoint:
            yield from _published(store, document.checkpoint)
    if isinstance(document, Run | ModelVersion):
        for share in document.mixture:
            yield from _refers(store, DatasetVersion, share.dataset_version, share.dataset_digest)
    if isinstance(document, Evaluation) and document.model_digest:
        yield from _refers(store, ModelVersion, document.model_version, document.model_digest)
    if isinstance(document, Model):
        for alias, version in document.aliases.items():
            if not store.exists(documents.path_of(version)):
                yield f"alias {alias} dangles: no {version}"


def _digest_matches(store: Store, folder: str, expected: str) -> Iterator[str]:
    try:
        found = manifests.read(store, folder).digest
    except (NotFoundError, DataLossError) as error:
        yield str(error)
        return
    if found != expected:
        yield "its digest is not that of its manifest"


def _published(store: Store, folder: str) -> Iterator[str]:
    if not store.exists(f"{folder}/{manifests.MANIFEST}"):
        yield f"{folder} is not published"


def _refers(store: Store, cls: type[DatasetVersion] | type[ModelVersion], name: str, expected: str) -> Iterator[str]:
    try:
        found = documents.get(store, cls, name).digest
    except (NotFoundError, DataLossError) as error:
        yield str(error)
        return
    if found != expected:
        yield f"{name} is not the one recorded: its digest differs"


def garbage(store: Store, *, grace: timedelta = DEFAULT_GRACE, now: datetime | None = None) -> list[ObjectInfo]:
    """Objects that no document, manifest or log accounts for and that are older than ``grace``.

    Nothing written since the oldest job still active was accepted counts: that job may be about to refer to it.
    """
    cutoff = (now or datetime.now(UTC)) - grace
    infos = list(store.list())
    kept: set[str] = set()
    for info in infos:
        name = _document_name(info.path)
        if name is not None:
            cutoff = min(cutoff, _active_since(store, name) or cutoff)
        if name is not None or _SEALED.search(info.path) or info.path.endswith(("/log.txt", "/quarantine.jsonl")):
            kept.add(info.path)
        if info.path.endswith(f"/{manifests.MANIFEST}"):
            folder = info.path.removesuffix(f"/{manifests.MANIFEST}")
            base = _base(folder)
            kept.update(f"{base}/{entry.path}" for entry in manifests.read(store, folder).entries)
    return [i for i in infos if i.path not in kept and i.last_modified < cutoff and not _LANCE_METADATA.search(i.path)]


def _active_since(store: Store, name: str) -> datetime | None:
    document = documents.get(store, documents.type_of(name), name)
    job: JobStatus | None = getattr(document, "job", None)
    if job is None or job.state in _ENDED:
        return None
    return job.create_time.ToDatetime(tzinfo=UTC)


def collect(store: Store, infos: list[ObjectInfo]) -> int:
    """Removes what ``garbage`` found; the bytes that were freed."""
    for info in infos:
        store.delete(info.path)
    return sum(info.size for info in infos)
