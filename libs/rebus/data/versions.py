"""How a Lance version becomes a published dataset version.

A dataset is one Lance dataset at ``datasets/<id>/data.lance``. Versions that readers may see are published beside
it, in this order: the Lance commit; ``versions/<n>/manifest.json``, which names every object of that Lance version
with its SHA-256 and, being created only if absent, claims the number; a Lance tag, which keeps the version from
being cleaned up; ``versions/<n>/dataset_version.json``; the dataset's ``latest_version``. A process that dies
between two of these leaves the earlier versions as they were. A manifest without a document is a version that nobody
sees: its number is passed over, so that numbers may have gaps, until ``gc`` removes it with what it alone names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lance
from lance.commit import CommitConflictError

from rebus.data.rows import SCHEMA
from rebus.errors import AlreadyExistsError, DataLossError, NotFoundError, RebusError, UnavailableError, invalid
from rebus.store import Store, documents, manifests
from rebus.v1.common_pb2 import Manifest
from rebus.v1.dataset_pb2 import Dataset, DatasetVersion

LANCE_FOLDER = "data.lance"
_CLAIM_ATTEMPTS = 64
_COUNTED_ROWS = 8192


def dataset_of(version: str) -> str:
    """``datasets/x`` of ``datasets/x/versions/3``; ``InvalidArgumentError`` for anything else."""
    parts = version.split("/")
    if len(parts) != 4 or parts[0] != "datasets" or parts[2] != "versions" or not parts[3].isdigit():
        raise invalid("dataset_version", f"{version!r}: expected datasets/<dataset>/versions/<number>")
    return f"{parts[0]}/{parts[1]}"


def ensure_dataset(store: Store, name: str, *, description: str = "") -> Dataset:
    """The dataset of that name, created if it does not exist."""
    try:
        return documents.get(store, Dataset, name)
    except NotFoundError:
        dataset = Dataset(name=name, description=description)
        dataset.create_time.GetCurrentTime()
    try:
        return documents.create(store, dataset)
    except AlreadyExistsError:
        return documents.get(store, Dataset, name)


def open_lance(store: Store, dataset: str, version: int | None = None) -> Any:
    """The ``lance.LanceDataset`` at one of its versions (``None``: the newest commit, published or not)."""
    uri = store.lance_uri(f"{dataset}/{LANCE_FOLDER}")
    return lance.dataset(uri, version=version, storage_options=store.lance_options)


def restore(store: Store, dataset: str, lance_version: int) -> Any:
    """Makes an earlier Lance version the newest one, for a writer to build upon."""
    uri = store.lance_uri(f"{dataset}/{LANCE_FOLDER}")
    operation = lance.LanceOperation.Restore(lance_version)
    return lance.LanceDataset.commit(uri, operation, storage_options=store.lance_options)


def ensure_lance(store: Store, dataset: str) -> Any:
    """The Lance dataset, created empty if there is none; its first commit is never published."""
    uri = store.lance_uri(f"{dataset}/{LANCE_FOLDER}")
    if not store.folders(f"{dataset}/{LANCE_FOLDER}"):
        try:
            return lance.write_dataset(SCHEMA.empty_table(), uri, mode="create", storage_options=store.lance_options)
        except OSError:  # another writer was first; a real failure shows when the dataset is opened
            pass
    return open_lance(store, dataset)


def publish(store: Store, version: DatasetVersion, dataset: str, lance_dataset: Any) -> DatasetVersion:
    """Publishes a Lance commit as the next version of ``dataset``; ``version`` holds its counts.

    Fills ``name``, ``lance_version``, ``digest`` and ``create_time``. ``DataLossError`` if an object shared with
    the parent version is not what the parent's manifest says, so that damage is never blessed by a new digest.
    """
    paths = _objects(lance_dataset)
    number, manifest = _claim(store, dataset, paths)
    version.name = f"{dataset}/versions/{number}"
    version.lance_version = lance_dataset.version
    version.digest = manifest.digest
    version.create_time.GetCurrentTime()
    _check_inherited(store, version, manifest)
    _tag(lance_dataset, f"v{number}")
    documents.create(store, version)
    documents.update(store, Dataset, dataset, lambda document: _advance(document, version.name))
    return version


def check_published(store: Store, version: DatasetVersion) -> None:
    """Cheap proof that the version's table of contents is intact; ``DataLossError`` if it is not.

    Hashes the Lance manifest, which names every data file; hashing those too is ``verify``'s work.
    """
    manifest = manifests.read(store, version.name)
    if manifest.digest != version.digest:
        raise DataLossError(f"{version.name}: its digest is not that of its manifest")
    path = _lance_manifest(version.lance_version)
    expected = next((entry.sha256 for entry in manifest.entries if entry.path == path), None)
    if hashlib.sha256(store.get(f"{dataset_of(version.name)}/{path}")).hexdigest() != expected:
        raise DataLossError(f"{dataset_of(version.name)}/{path}: stored bytes were altered")


@contextmanager
def reading(store: Store, version: str) -> Iterator[None]:
    """Turns a failure inside Lance into a domain error of one line.

    ``DataLossError`` naming the object if the version's bytes were altered, ``UnavailableError`` otherwise. Lance's
    native code may panic on damaged bytes, which arrives as a ``BaseException``.
    """
    try:
        yield
    except (RebusError, CommitConflictError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        problems = verify(store, version)
        if problems:
            raise DataLossError(f"{version}: {problems[0]}") from error
        raise UnavailableError(f"{version} could not be read: {' '.join(str(error).split())}") from error


def verify(store: Store, version: str) -> list[str]:
    """Hashes every object of a published version; one line a problem, empty when all is well."""
    return manifests.verify(store, version, base=dataset_of(version))


def _claim(store: Store, dataset: str, paths: Iterable[str]) -> tuple[int, Manifest]:
    """Creates the manifest under the first free number after the existing ones."""
    listed = sorted(paths)
    for _ in range(_CLAIM_ATTEMPTS):
        number = max((int(f) for f in store.folders(f"{dataset}/versions") if f.isdigit()), default=0) + 1
        try:
            return number, manifests.publish(store, f"{dataset}/versions/{number}", listed, base=dataset)
        except AlreadyExistsError:
            continue
    raise AlreadyExistsError(f"{dataset}: other writers took {_CLAIM_ATTEMPTS} version numbers in a row; try again")


def _tag(lance_dataset: Any, name: str) -> None:
    """Keeps a Lance version; a tag of that name is of a writer that died before, and whose number ``gc`` freed."""
    tags = lance_dataset.tags
    (tags.update if name in tags.list() else tags.create)(name, lance_dataset.version)


def _objects(lance_dataset: Any) -> list[str]:
    """Every object that reading this Lance version touches, relative to the dataset's folder."""
    paths = [_lance_manifest(lance_dataset.version)]
    for fragment in lance_dataset.get_fragments():
        paths += [f"{LANCE_FOLDER}/data/{file.path}" for file in fragment.data_files()]
        deletions = fragment.deletion_file()
        if deletions:
            paths.append(f"{LANCE_FOLDER}/{deletions}")
    return paths


def _lance_manifest(lance_version: int) -> str:
    """Lance names manifests by the distance from 2^64 - 1, so that the newest is listed first."""
    return f"{LANCE_FOLDER}/_versions/{2**64 - 1 - lance_version:020d}.manifest"


def _check_inherited(store: Store, version: DatasetVersion, manifest: Manifest) -> None:
    if not version.parent:
        return
    known = {entry.path: entry.sha256 for entry in manifests.read(store, version.parent).entries}
    for entry in manifest.entries:
        if known.get(entry.path, entry.sha256) != entry.sha256:
            raise DataLossError(f"{dataset_of(version.name)}/{entry.path}: stored bytes were altered")


def _advance(dataset: Dataset, version: str) -> None:
    """Moves ``latest_version`` forward, never back, whatever order writers finish in."""
    current = int(dataset.latest_version.rpartition("/")[2] or 0)
    if int(version.rpartition("/")[2]) > current:
        dataset.latest_version = version


def counts(lance_dataset: Any) -> DatasetVersion:
    """The counting fields of a version, from a few columns of a Lance version, a batch of rows in memory at a time."""
    version = DatasetVersion()
    for batch in lance_dataset.to_batches(columns=["split", "source", "num_media"], batch_size=_COUNTED_ROWS):
        version.num_samples += batch.num_rows
        version.num_media += int(batch.column("num_media").to_numpy().sum())
        for column, tally in (("split", version.splits), ("source", version.sources)):
            for pair in batch.column(column).value_counts().to_pylist():
                tally[pair["values"]] += pair["counts"]
    return version
