"""The model registry: immutable versions made from runs or imported, and aliases that point at them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path

from rebus.errors import AbortedError, AlreadyExistsError, FailedPreconditionError, NotFoundError, invalid
from rebus.store import documents, manifests
from rebus.store.objects import Store
from rebus.store.sealed import seal, unseal
from rebus.v1.common_pb2 import JobStatus, Manifest
from rebus.v1.model_pb2 import Model, ModelVersion
from rebus.v1.training_pb2 import Run

CLAIM = "claim.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "model.md"
# Where a checkpoint keeps what becomes the model version; the rest (optimizer, random states) stays with the run.
CHECKPOINT_MODEL = "model"
_CLAIM_ATTEMPTS = 64
_MAX_HEADER_BYTES = 16 << 20


def register(store: Store, model: str, run_name: str) -> ModelVersion:
    """Makes the last checkpoint of a run the next version of ``model``, or returns the version it already is.

    One version a run, also where two callers register it at once or an earlier one died half-way: the later one
    finishes the number that the earlier one took. Raises ``NotFoundError`` for a missing run and
    ``FailedPreconditionError`` for one that has not succeeded.
    """
    run = documents.get(store, Run, run_name)
    if run.job.state != JobStatus.SUCCEEDED or not run.checkpoint:
        found = JobStatus.State.Name(run.job.state)
        raise FailedPreconditionError(f"{run_name} is {found}; only a run that SUCCEEDED can be registered")
    _ensure_model(store, model)
    for version in documents.list_all(store, ModelVersion, parent=model):
        if version.run == run_name:
            return version
    problems = manifests.verify(store, run.checkpoint)
    if problems:
        raise FailedPreconditionError(f"{run.checkpoint} is damaged: {'; '.join(problems)}")
    source = f"{run.checkpoint}/{CHECKPOINT_MODEL}"
    version = _describe(store, source, run)  # before a number is taken, since it may refuse
    version.name = _claim(store, model, run_name)
    version.digest = _published(store, run.checkpoint, version.name).digest
    return _enter(store, model, version)


def import_folder(store: Store, model: str, folder: Path, *, imported_from: str) -> ModelVersion:
    """Makes a model's folder the next version of ``model``, or returns the version that has the same files.

    Whether the folder holds a model is for the caller to know. A call that died half-way is finished by the next one
    with the same files. ``imported_from`` says what they were made of, for the lineage.
    """
    _ensure_model(store, model)
    name = _claim(store, model, f"files:{_files_digest(folder)}")
    if not store.exists(f"{name}/{manifests.MANIFEST}"):
        with contextlib.suppress(AlreadyExistsError):  # by another caller, with the same files
            manifests.publish_folder(store, name, folder)
    version = _read_folder(store, name)
    version.name, version.digest, version.imported_from = name, manifests.read(store, name).digest, imported_from
    return _enter(store, model, version)


def _files_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\n{content}\n".encode())
    return total.hexdigest()


def _enter(store: Store, model: str, version: ModelVersion) -> ModelVersion:
    """Writes the document of a published version, unless it is there, and moves the model's newest forward."""
    try:
        documents.create(store, version)
    except AlreadyExistsError:
        version = documents.get(store, ModelVersion, version.name)
    documents.update(store, Model, model, lambda document: _advance(document, version.name))
    return version


def get(store: Store, name: str) -> ModelVersion:
    """A version by number or by alias."""
    return documents.get(store, ModelVersion, resolve(store, name))


def resolve(store: Store, name: str) -> str:
    """``models/x/versions/champion`` → ``models/x/versions/3``; a number passes through unchecked."""
    model, _, last = name.rpartition("/versions/")
    if last.isdigit():
        return name
    aliases = documents.get(store, Model, model).aliases
    if last not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise NotFoundError(f"{model} has no alias {last!r}; aliases: {known}", metadata={"name": name})
    return aliases[last]


def card(store: Store, name: str) -> str:
    """The model card of a version, by number or by alias; ``NotFoundError`` for a version made without one."""
    return manifests.read_part(store, resolve(store, name), CARD).decode()


def set_alias(
    store: Store, model: str, alias: str, version: str, expected: str | None = None, *, request_key: str = ""
) -> Model:
    """Points an alias at a version, once a ``request_key``; with ``expected``, only if it points there now.

    An ``expected`` of ``""`` means nowhere.
    """
    if not version.startswith(f"{model}/versions/"):
        raise invalid("model_version", f"expected a version of {model}, found {version!r}")
    documents.get(store, ModelVersion, version)

    def mutate(document: Model) -> None:
        current = document.aliases.get(alias, "")
        if expected is not None and current != expected:
            raise AbortedError(f"{model}: {alias} points at {current or 'nothing'}, not at {expected or 'nothing'}")
        document.aliases[alias] = version

    return documents.update_once(store, Model, model, mutate, request_key=request_key)[0]


def _ensure_model(store: Store, name: str) -> None:
    model = Model(name=name)
    model.create_time.GetCurrentTime()
    try:
        documents.create(store, model)
    except AlreadyExistsError:
        return


def _claim(store: Store, model: str, claimant: str) -> str:
    """Takes the next number, or the one that this run or folder has; what was never finished stays invisible."""
    for _ in range(_CLAIM_ATTEMPTS):
        taken = sorted(int(f) for f in store.folders(f"{model}/versions") if f.isdigit())
        for number in taken:
            if _claimant(store, f"{model}/versions/{number}") == claimant:
                return f"{model}/versions/{number}"
        name = f"{model}/versions/{(taken or [0])[-1] + 1}"
        try:
            store.create(f"{name}/{CLAIM}", seal({"run": claimant}))
            return name
        except AlreadyExistsError:
            continue
    raise AbortedError(f"{model}: other writers took {_CLAIM_ATTEMPTS} numbers in a row; try again")


def _claimant(store: Store, version: str) -> str:
    """The run or folder that a number was taken for; empty for one that was not taken by a claim."""
    path = f"{version}/{CLAIM}"
    try:
        return unseal(store.get(path), path)["run"]
    except NotFoundError:
        return ""


def _published(store: Store, checkpoint: str, name: str) -> Manifest:
    """Copies and publishes the checkpoint's model; of two callers the second finds the first one's manifest."""
    try:
        return manifests.publish_copy(store, checkpoint, CHECKPOINT_MODEL, name)
    except AlreadyExistsError:
        return manifests.read(store, name)


def _describe(store: Store, folder: str, run: Run) -> ModelVersion:
    """What a model's folder and its run say of a version that has no name yet."""
    version = _read_folder(store, folder)
    version.MergeFrom(
        ModelVersion(
            run=run.name,
            recipe_digest=run.recipe_digest,
            code_revision=run.code_revision,
            parents=sorted(set(run.model_versions.values())),
            mixture=run.mixture,
            contamination=run.contamination,
        )
    )
    return version


def _read_folder(store: Store, folder: str) -> ModelVersion:
    """What a model's folder says of a version."""
    config = json.loads(store.get(f"{folder}/{CONFIG}"))
    version = ModelVersion(
        architecture=config["architecture"],
        preprocess_digest=config.get("preprocess_digest", ""),
        num_parameters=_count_parameters(store, f"{folder}/{WEIGHTS}"),
    )
    version.create_time.GetCurrentTime()
    return version


def _count_parameters(store: Store, path: str) -> int:
    """Elements of all tensors, from the safetensors header alone."""
    length = int.from_bytes(store.get_range(path, 0, 8), "little")
    if length > _MAX_HEADER_BYTES:
        raise FailedPreconditionError(f"{path}: the safetensors header claims {length} bytes")
    header = json.loads(store.get_range(path, 8, length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _advance(model: Model, version: str) -> None:
    """Moves ``latest_version`` forward, never back, whatever order writers finish in."""
    current = int(model.latest_version.rpartition("/")[2] or 0)
    if int(version.rpartition("/")[2]) > current:
        model.latest_version = version
