"""The model registry: immutable versions made from runs, and aliases that point at them."""

from __future__ import annotations

import json
import math

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
    name = version.name = _claim(store, model, run_name)
    version.digest = _published(store, run.checkpoint, name).digest
    try:
        documents.create(store, version)
    except AlreadyExistsError:
        version = documents.get(store, ModelVersion, name)
    documents.update(store, Model, model, lambda document: _advance(document, name))
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


def _claim(store: Store, model: str, run_name: str) -> str:
    """Takes the next number, or the one that this run has; a version that was never finished stays invisible."""
    for _ in range(_CLAIM_ATTEMPTS):
        taken = sorted(int(f) for f in store.folders(f"{model}/versions") if f.isdigit())
        for number in taken:
            if _claimant(store, f"{model}/versions/{number}") == run_name:
                return f"{model}/versions/{number}"
        name = f"{model}/versions/{(taken or [0])[-1] + 1}"
        try:
            store.create(f"{name}/{CLAIM}", seal({"run": run_name}))
            return name
        except AlreadyExistsError:
            continue
    raise AbortedError(f"{model}: other writers took {_CLAIM_ATTEMPTS} numbers in a row; try again")


def _claimant(store: Store, version: str) -> str:
    """The run that a number was taken for; empty for one that was not taken by a claim."""
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
    config = json.loads(store.get(f"{folder}/{CONFIG}"))
    version = ModelVersion(
        architecture=config["architecture"],
        run=run.name,
        recipe_digest=run.recipe_digest,
        code_revision=run.code_revision,
        mixture=run.mixture,
        contamination=run.contamination,
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
