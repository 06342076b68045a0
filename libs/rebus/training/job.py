"""A training run as a job: reads the ``Run``, trains, and leaves checkpoints and events behind."""

from __future__ import annotations

from pathlib import Path

from rebus import config as configs
from rebus import registry
from rebus.data.dataset import DatasetReader, open_version
from rebus.errors import invalid
from rebus.jobs.context import JobContext
from rebus.training.checkpoints import CheckpointStore, TrainingState
from rebus.training.contamination import check_benchmarks
from rebus.training.loop import train
from rebus.training.recipe import TrainingRecipe, recipe_from_mapping
from rebus.training.sources import BoundRows
from rebus.training.start import fetched, start_versions
from rebus.training.task import Task, TaskContext
from rebus.v1.training_pb2 import MixtureShare, Run


def run(ctx: JobContext) -> None:
    """Trains ``ctx``'s run to its end, from its last complete checkpoint if it has one."""
    document = ctx.document(Run)
    recipe = recipe_from_mapping(configs.parse_yaml(document.recipe))
    readers = _open_datasets(ctx, document, recipe)
    check_benchmarks(ctx, document, recipe)
    checkpoints = CheckpointStore(ctx.store, ctx.name, keep=recipe.checkpoint.keep, cache_dir=ctx.cache_dir)
    starts = dict(document.model_versions) or start_versions(ctx.store, recipe)
    with checkpoints.latest() as resume_from, fetched(ctx.store, recipe, starts, ctx.cache_dir) as start_from:
        context = TaskContext(
            recipe=recipe,
            sources={
                name: BoundRows(readers[binding.dataset], binding, field=f"recipe.data.{name}")
                for name, binding in recipe.data.items()
            },
            versions={name: readers[binding.dataset].version.digest for name, binding in recipe.data.items()},
            resume_from=resume_from,
            start_from=start_from,
            cache_dir=ctx.cache_dir,
            seed=document.seed if document.HasField("seed") else recipe.seed,
            progress=lambda message: _prepare_progress(ctx, message),
        )
        task: Task = registry.build("task", recipe.task, field="recipe.task")
        train(task, context, _JobReporter(ctx, recipe, readers, checkpoints))


def _open_datasets(ctx: JobContext, document: Run, recipe: TrainingRecipe) -> dict[str, DatasetReader]:
    """Logical name -> reader of the version that the run binds to it."""
    readers: dict[str, DatasetReader] = {}
    for name, binding in recipe.data.items():
        if binding.dataset not in document.datasets:
            bound = ", ".join(sorted(document.datasets)) or "none"
            raise invalid(
                f"run.datasets.{binding.dataset}",
                f"the data source {name!r} reads it, but the run binds no dataset version to it; bound: {bound}",
            )
        if binding.dataset not in readers:
            readers[binding.dataset] = open_version(ctx.store, document.datasets[binding.dataset])
    return readers


def _prepare_progress(ctx: JobContext, message: str) -> None:
    ctx.check_cancelled()
    ctx.progress(0.0, message)


class _JobReporter:
    """The loop's news as events of the job and fields of the ``Run``."""

    def __init__(
        self,
        ctx: JobContext,
        recipe: TrainingRecipe,
        readers: dict[str, DatasetReader],
        checkpoints: CheckpointStore,
    ) -> None:
        self._ctx, self._recipe, self._readers, self._checkpoints = ctx, recipe, readers, checkpoints
        self._last: dict[str, float] = {}

    def metrics(self, values: dict[str, object]) -> None:
        self._ctx.emit("metrics", values)
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and k != "step"}
        self._last = {**self._last, **numbers}

    def progress(self, fraction: float, message: str) -> None:
        self._ctx.check_cancelled()
        self._ctx.progress(fraction, message)

    def checkpoint(self, state: TrainingState, folder: Path) -> None:
        # Losses up to here must be durable before a resume can start from here, or the log would miss them.
        self._ctx.flush()
        name = self._checkpoints.publish(state.step, folder)
        self._ctx.emit("checkpoint", {"step": state.step, "checkpoint": name})
        self._ctx.update(Run, lambda document: self._record(document, state, name))

    def _record(self, document: Run, state: TrainingState, checkpoint: str) -> None:
        document.checkpoint, document.step = checkpoint, state.step
        document.metrics.clear()
        document.metrics.update(self._last)
        del document.mixture[:]
        for source, taken in sorted(state.consumed.items()):
            version = self._readers[self._recipe.data[source].dataset].version
            document.mixture.append(
                MixtureShare(
                    source=source,
                    dataset_version=version.name,
                    dataset_digest=version.digest,
                    num_samples=taken.samples,
                    num_tokens=taken.tokens,
                    num_images=taken.images,
                )
            )
