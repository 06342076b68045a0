"""``fsck`` finds what is damaged and names it; ``gc`` removes what nothing refers to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message

from rebus.config import digest, parse_yaml
from rebus.errors import DataLossError, NotFoundError, RebusError
from rebus.job_states import TERMINAL
from rebus.store import documents, manifests, media, requests
from rebus.store.objects import ObjectInfo, Store
from rebus.store.paths import is_staged
from rebus.store.sealed import unseal
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import Dataset, DatasetVersion
from rebus.v1.evaluation_pb2 import Evaluation
from rebus.v1.model_pb2 import Model, ModelVersion
from rebus.v1.retrieval_pb2 import Index
from rebus.v1.training_pb2 import Run

DEFAULT_GRACE = timedelta(hours=24)
# How far the clocks of the services' machines and that of the store may lie apart.
CLOCK_SKEW = timedelta(minutes=15)
# How long a repeat of a request is recognised. Clients repeat within minutes.
REQUESTS_KEPT = timedelta(days=30)
# The jobs are looked at again after this many removals.
_RECHECK_EVERY = 100
_SEALED = re.compile(r"(^(requests|leases|active|contamination)/.*|/events/\d+|/manifest|/claim)\.json$")
_EVENTS = re.compile(r"^(.+)/events/\d+\.json$")
_UNSEALED = re.compile(r"/(quarantine\.jsonl|logs/\d+\.txt)$")
# Lance's own records of its commits: small, and read by Lance itself even where no version of ours needs them.
_LANCE_METADATA = re.compile(r"/data\.lance/_(versions|transactions|refs)/")


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written: the object or resource, and what is wrong with it."""

    path: str
    description: str


def fsck(store: Store, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Problem]:
    """Reads everything and lists what was altered, is missing, or contradicts what refers to it."""
    paths = [info.path for info in store.scan()]
    problems: list[Problem] = []
    for done, path in enumerate(paths, start=1):
        problems += _check_object(store, path)
        on_progress(done, len(paths))
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
    except NotFoundError:
        return []  # removed since it was listed
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
    if isinstance(document, Dataset | Model):
        latest = document.latest_version
        if latest and not store.exists(documents.path_of(latest)):
            yield f"its latest version dangles: no {latest}"
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
    """Objects that no document, manifest or log accounts for and that are older than ``grace``; records of requests
    older than ``REQUESTS_KEPT``.

    Nothing written since the oldest job still active was accepted counts: that job may be about to refer to it.
    ``DataLossError`` if a document or a manifest cannot be read, since what it refers to is then unknown.
    """
    now = now or datetime.now(UTC)
    # In this order: a job that ends and publishes in between is still protected by having been seen active.
    cutoff = min(now - grace, _oldest_active(store))
    old: dict[str, ObjectInfo] = {}
    manifested: dict[str, ObjectInfo] = {}
    resources: set[str | None] = set()
    for info in store.scan():
        resources.add(_document_name(info.path))
        if info.path.endswith(f"/{manifests.MANIFEST}"):
            manifested[info.path.removesuffix(f"/{manifests.MANIFEST}")] = info
        elif info.path.startswith(f"{requests.FOLDER}/"):
            if info.last_modified < min(cutoff, now - REQUESTS_KEPT):
                old[info.path] = info
        elif info.last_modified < cutoff and not _accounts_for_itself(info.path):
            old[info.path] = info
    abandoned = {f: i for f, i in manifested.items() if i.last_modified < cutoff and _is_abandoned(f, resources)}
    for folder in manifested.keys() - abandoned.keys():
        for path in _parts_of(store, folder):
            old.pop(path, None)
    for path in [path for path in old if _job_of_events(path) in resources]:
        del old[path]
    # Manifests first, so that none outlives what it names.
    return [*abandoned.values(), *old.values(), *(info for info in store.staged() if info.last_modified < cutoff)]


def _is_abandoned(folder: str, resources: set[str | None]) -> bool:
    """Whether it is a dataset version whose writer died between its manifest and its document: nobody can see it."""
    return folder.startswith("datasets/") and folder not in resources


def _accounts_for_itself(path: str) -> bool:
    if _EVENTS.search(path):
        return False  # a log goes with its job
    kept = _SEALED.search(path) or _UNSEALED.search(path) or _LANCE_METADATA.search(path)
    return bool(kept) or _document_name(path) is not None


def _job_of_events(path: str) -> str:
    found = _EVENTS.search(path)
    return found[1] if found else ""


def _parts_of(store: Store, folder: str) -> list[str]:
    try:
        entries = manifests.read(store, folder).entries
    except NotFoundError:  # removed since it was listed
        return []
    base = _base(folder)
    return [f"{base}/{entry.path}" for entry in entries]


def _oldest_active(store: Store) -> datetime:
    """Since when jobs that have not ended may have written, by the clock of any machine; never, if there are none."""
    active = [datetime.max.replace(tzinfo=UTC)]
    for cls in documents.TYPES.values():
        if "job" in cls.DESCRIPTOR.fields_by_name:
            active += [since for document in documents.list_all(store, cls) if (since := _active_since(document))]
    return min(active)


def _active_since(document: Message) -> datetime | None:
    job: JobStatus = document.job  # pyright: ignore[reportAttributeAccessIssue]
    if job.state in TERMINAL:
        return None
    return job.create_time.ToDatetime(tzinfo=UTC) - CLOCK_SKEW


def collect(store: Store, infos: list[ObjectInfo]) -> int:
    """Removes what ``garbage`` found, and returns the bytes that were freed.

    Every object is looked at again before it goes. One that was written anew since is kept, and so is one that a job
    may use which was put back into the queue since.
    """
    since = _oldest_active(store)
    freed = 0
    for number, info in enumerate(infos):
        if number and number % _RECHECK_EVERY == 0:
            since = _oldest_active(store)
        if info.last_modified < since and _remove(store, info):
            freed += info.size
    return freed


def _remove(store: Store, info: ObjectInfo) -> bool:
    if is_staged(info.path):
        store.remove_staged(info.path)
        return True
    try:
        if store.info(info.path) != info:
            return False
    except NotFoundError:
        return False
    store.delete(info.path)
    return True
