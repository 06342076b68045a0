"""A run before it starts: its recipe checked whole, its datasets bound, its identity filled in."""

from __future__ import annotations

from rebus.config import digest, parse_yaml
from rebus.errors import NotFoundError, invalid
from rebus.jobs.revision import code_revision
from rebus.store import Store, documents
from rebus.training.contamination import benchmark_versions, bound_benchmarks
from rebus.training.recipe import TrainingRecipe, recipe_from_mapping
from rebus.training.start import start_versions
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.training_pb2 import Run


def recipe_of(run: Run) -> TrainingRecipe:
    """The run's recipe; ``InvalidArgumentError`` names every bad key by its path below ``recipe``."""
    return recipe_from_mapping(parse_yaml(run.recipe))


def checked_run(store: Store, run: Run) -> Run:
    """A new ``Run`` ready to be queued.

    Raises ``InvalidArgumentError`` naming the recipe's bad key or the dataset that is not bound, and
    ``NotFoundError`` naming a dataset version, a benchmark or a model that does not exist.
    """
    recipe = recipe_of(run)
    needed = {binding.dataset for binding in recipe.data.values()} | bound_benchmarks(recipe)
    for name in sorted(needed - set(run.datasets)):
        raise invalid(f"datasets.{name}", f"the recipe reads a dataset {name!r}; bind it to a dataset version")
    for name in sorted(set(run.datasets) - needed):
        raise invalid(f"datasets.{name}", f"the recipe reads no such dataset; it reads {', '.join(sorted(needed))}")
    for name, version in run.datasets.items():
        _require_version(store, name, version)
    return Run(
        recipe=run.recipe,
        benchmark_versions=benchmark_versions(store, recipe, run.datasets),
        model_versions=start_versions(store, recipe),
        datasets=run.datasets,
        seed=run.seed if run.HasField("seed") else recipe.seed,
        recipe_digest=digest(parse_yaml(run.recipe)),
        code_revision=code_revision(),
    )


def _require_version(store: Store, name: str, version: str) -> None:
    try:
        documents.get(store, DatasetVersion, version)
    except NotFoundError:
        raise NotFoundError(f"datasets.{name}: no {version}", metadata={"name": version}) from None
