"""Models of the store that a run starts from: found and fixed when it is created, fetched when it trains."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rebus import registry
from rebus.errors import NotFoundError, invalid
from rebus.store import Store, documents, manifests, model_versions
from rebus.training.recipe import StartablePart, TrainingRecipe
from rebus.v1.model_pb2 import Model, ModelVersion

_MODEL = re.compile(r"models/[a-z0-9][a-z0-9-]{0,62}")
_VERSION = re.compile(r"models/[a-z0-9][a-z0-9-]{0,62}/versions/[a-z0-9][a-z0-9-]{0,62}")


def start_versions(store: Store, recipe: TrainingRecipe) -> dict[str, str]:
    """The version that each name in the recipe's ``start_from`` stands for now.

    Raises ``InvalidArgumentError`` or ``NotFoundError`` naming the field for a model that does not exist or has not the
    part.
    """
    startable: Mapping[str, StartablePart] = getattr(
        registry.get("task", str(recipe.task["name"])).target, "startable", {}
    )
    found: dict[str, str] = {}
    for index, start in enumerate(recipe.start_from):
        field = f"recipe.start_from.{index}"
        version = _version(store, start.model, f"{field}.model")
        for at, part in enumerate(start.parts):
            if version.architecture not in (having := startable[part].architectures):
                raise invalid(
                    f"{field}.parts.{at}",
                    f"{version.name} is a {version.architecture}; {part!r} comes from a model of {' or '.join(having)}",
                )
        found[start.model] = version.name
    return found


def _version(store: Store, name: str, field: str) -> ModelVersion:
    if not (_MODEL.fullmatch(name) or _VERSION.fullmatch(name)):
        raise invalid(field, f"expected models/<id> or models/<id>/versions/<n or alias>, found {name!r}")
    try:
        if _VERSION.fullmatch(name):
            return model_versions.get(store, name)
        latest = documents.get(store, Model, name).latest_version
    except NotFoundError as error:
        raise NotFoundError(f"{field}: {error}", metadata=error.metadata) from None
    if not latest:
        raise NotFoundError(f"{field}: {name} has no version yet", metadata={"name": name})
    return documents.get(store, ModelVersion, latest)


@contextmanager
def fetched(
    store: Store, recipe: TrainingRecipe, versions: Mapping[str, str], cache_dir: Path
) -> Iterator[dict[str, Path]]:
    """Part -> verified local folder of the model that it is taken from, kept until the block ends.

    ``versions`` are those that ``start_versions`` found when the run was created.
    """
    with ExitStack() as stack:
        folders = {
            name: stack.enter_context(manifests.fetch(store, version, cache_dir)) for name, version in versions.items()
        }
        yield {part: folders[start.model] for start in recipe.start_from for part in start.parts}
