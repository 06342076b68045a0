"""A training recipe: one YAML file, validated whole into these dataclasses before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rebus import config as configs
from rebus import registry
from rebus.data.contamination_match import MatchConfig
from rebus.data.mixers import Mixer, Mixture, MixtureChange
from rebus.data.mixers.base import check_order, check_weights
from rebus.data.stream import PackConfig
from rebus.errors import invalid
from rebus.jobs.resources import ResourceRequest
from rebus.registry import Spec

# Each is compared with all of the run's data before the first step.
_MAX_BENCHMARKS = 64
# Each is fetched and loaded whole.
_MAX_STARTS = 8


@dataclass(frozen=True, kw_only=True)
class DataBinding:
    """Which rows and which segments of a dataset one mixture source draws from."""

    # Logical name of the dataset; the run binds it to ``datasets/<id>/versions/<n>``.
    dataset: str
    # Only rows of this split.
    split: str = "train"
    # Only rows whose ``source`` is one of these; empty means every row.
    sources: list[str] = field(default_factory=list)
    # Only branches that hold one of these tasks (the shared branch 0 always stays); empty means all.
    tasks: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training: what is drawn, what is trained, by which losses, for how many steps."""

    name: str
    steps: int
    # Rows a step; with ``pack``, packs a step.
    batch_size: int = 32
    # How rows are gathered into packs of like size; without it a step takes rows whatever their length.
    pack: PackConfig | None = None
    # Binding name -> share of the rows drawn; shares are normalised to sum 1. Empty: all bindings alike.
    mixture: dict[str, float] = field(default_factory=dict)
    # Other weights on the way, in ascending order: from a row of the stage on, a source may join, leave or weigh more.
    mixture_changes: list[MixtureChange] = field(default_factory=list)
    # How weights become draws: in exact shares, by size, on a schedule, or learned from the losses.
    mixer: Spec = registry.component("mixer", "weighted")
    # Names of the model parts that are trained; the others are frozen. Empty: every part.
    trainable: list[str] = field(default_factory=list)
    # Objectives by name; each spec has a ``weight`` (default 1) beside the objective's own settings.
    objectives: list[Spec] = field(default_factory=list)
    optimizer: Spec = registry.component("optimizer", "adamw")
    schedule: Spec = registry.component("schedule", "cosine")
    # Gradients are scaled down to this global L2 norm; 0 turns clipping off.
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"stage {self.name!r}: steps={self.steps}, batch_size={self.batch_size} must be positive")
        if self.mixture:
            check_weights(self.mixture)
        check_order(self.mixture_changes)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept."""

    # Steps between checkpoints, counted over all stages; the last step always writes one.
    every_steps: int = 500
    # Older ones are deleted once a newer one is published.
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(f"every_steps={self.every_steps} and keep={self.keep} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class BenchmarkGate(MatchConfig):
    """A benchmark that the run's data must not hold, looked for before the first step; see ``MatchConfig``."""

    # ``datasets/<id>/versions/<n>``, ``datasets/<id>`` for its newest version when the run is created, or the logical
    # name of a dataset that the run binds.
    benchmark: str
    # The run fails if its data hold a larger share of the benchmark's items.
    max_share: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_share <= 1:
            raise ValueError(f"max_share={self.max_share} is outside 0 .. 1")

    @property
    def match(self) -> MatchConfig:
        """When a row counts as holding an item, without what the gate adds."""
        return MatchConfig(**{item.name: getattr(self, item.name) for item in dataclasses.fields(MatchConfig)})


@dataclass(frozen=True, kw_only=True)
class StartablePart:
    """A part that a task can take from a model; tasks list theirs by name in ``startable``."""

    # Architectures of models that have it.
    architectures: tuple[str, ...]
    # Settings of the task that come with it.
    settings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StartFrom:
    """Parts that are taken from a model of the store, with their weights, settings and tokenizer."""

    # ``models/<id>/versions/<n or alias>``, or ``models/<id>`` for its newest version when the run is created.
    model: str
    # Parts of the task's model, each from one model only.
    parts: list[str]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must name at least one part")


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Everything that decides a run, besides the dataset versions it is bound to."""

    name: str
    description: str = ""
    # What is trained: a component of kind ``task`` (``mllm``, ``contrastive``) with the model in its settings.
    task: Spec
    # Mixture source name -> what it draws from.
    data: dict[str, DataBinding]
    stages: list[Stage]
    # Models that parts are taken from; the other parts start as their configs say.
    start_from: list[StartFrom] = field(default_factory=list)
    # Seeds the weights, the order of the data and every other draw.
    seed: int = 0
    # Threads of torch; part of the recipe because the order of floating-point sums depends on it. 0: all cores.
    num_threads: int = 0
    # Steps between metric events.
    report_every_steps: int = 20
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # Benchmarks of which the data may hold a small share at most.
    benchmarks: list[BenchmarkGate] = field(default_factory=list)
    # What the run asks of the machine that trains it; it waits until that is free. Without it, one core and 1 GiB.
    resources: ResourceRequest | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a recipe needs at least one stage")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ, got {names}")
        if len(self.benchmarks) > _MAX_BENCHMARKS:
            raise ValueError(f"a recipe names at most {_MAX_BENCHMARKS} benchmarks, got {len(self.benchmarks)}")
        if len(self.start_from) > _MAX_STARTS:
            raise ValueError(f"a recipe starts from at most {_MAX_STARTS} models, got {len(self.start_from)}")
        taken = [part for start in self.start_from for part in start.parts]
        if twice := sorted({part for part in taken if taken.count(part) > 1}):
            raise ValueError(f"start_from takes {', '.join(twice)} more than once")
        if self.report_every_steps < 1 or self.num_threads < 0:
            raise ValueError("report_every_steps must be at least 1 and num_threads not negative")

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def validate(self) -> None:
        """Checks every component named, its settings, and every mixture key; errors name the field."""
        task, _ = registry.settings("task", self.task, field="recipe.task")
        self._check_starts(task)
        for index, stage in enumerate(self.stages):
            where = f"recipe.stages.{index}"
            registry.check_components(stage, field=where)
            for at, spec in enumerate(stage.objectives):
                settings = {key: value for key, value in spec.items() if key != "weight"}
                registry.settings("objective", settings, field=f"{where}.objectives.{at}")
            self._check_mixture(stage, where)

    def _check_starts(self, task: registry.Component) -> None:
        """The task must be able to take the parts, and must not be told their settings a second time."""
        startable: Mapping[str, StartablePart] = getattr(task.target, "startable", {})
        for index, start in enumerate(self.start_from):
            for at, part in enumerate(start.parts):
                where = f"recipe.start_from.{index}.parts.{at}"
                if part not in startable:
                    known = ", ".join(startable) or "no part"
                    raise invalid(where, f"task {task.name!r} cannot take {part!r} from a model; it can take {known}")
                if told := [key for key in startable[part].settings if key in self.task]:
                    raise invalid(f"recipe.task.{told[0]}", f"comes with {part!r} from {start.model}; leave it out")

    def _check_mixture(self, stage: Stage, where: str) -> None:
        named = {f"{where}.mixture": stage.mixture}
        named |= {f"{where}.mixture_changes.{at}.mixture": c.mixture for at, c in enumerate(stage.mixture_changes)}
        for path, weights in named.items():
            for source in weights:
                if source not in self.data:
                    raise invalid(f"{path}.{source}", f"no such data binding; known: {', '.join(self.data)}")
        try:
            mixer_of(stage, dict.fromkeys(self.data, 1), key=())
        except ValueError as error:
            raise invalid(f"{where}.mixer", str(error)) from None


def mixer_of(stage: Stage, sizes: Mapping[str, int], *, key: tuple[int, ...]) -> Mixer:
    """The stage's mixer over sources of these sizes (rows); ``key`` seeds it."""
    mixture = Mixture(stage.mixture or dict.fromkeys(sizes, 1.0), stage.mixture_changes)
    return registry.build("mixer", stage.mixer, mixture=mixture, sizes=sizes, key=key)


def recipe_from_mapping(values: Mapping[str, Any]) -> TrainingRecipe:
    """Builds and validates a recipe; every bad field is named by its path below ``recipe``."""
    recipe = configs.build(TrainingRecipe, values, where="recipe")
    recipe.validate()
    return recipe


def load_recipe(path: Path) -> TrainingRecipe:
    """Reads a recipe file (and the ones it names as ``base``)."""
    return recipe_from_mapping(configs.load_yaml(path))
