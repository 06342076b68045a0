"""What is trained. A task owns the model, the data and the loss; the loop owns everything else.

To train something new, write one class with the methods of ``Task`` below, register it as kind ``task`` in a module of
``rebus.training.tasks``, and name it in a recipe. The loop then gives it stages, frozen parts, optimizers, schedules,
metrics, checkpoints and exact resume::

    @register("task", "contrastive", config=ContrastiveTaskConfig, paper="clip")
    class ContrastiveTask:
        def __init__(self, config: ContrastiveTaskConfig) -> None: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rebus.data.sample import Sample
from rebus.data.stream import Drawn, StreamState
from rebus.models.moe import Routing
from rebus.training.recipe import Stage, TrainingRecipe


class SampleSource(Protocol):
    """Random access to one dataset version, or to a list of samples."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """The dataset version's row of each sample, ascending."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int] | NDArray[np.int64], /) -> list[Sample]:
        """The samples at ``indices``, in that order; thread-safe."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a task is given before the first step."""

    recipe: TrainingRecipe
    # Data binding name -> its rows, already narrowed to the binding's split and sources.
    sources: Mapping[str, SampleSource]
    # Binding name -> identity of the dataset version behind it (a digest or resource name): a key for caches.
    versions: Mapping[str, str]
    # Folder of the checkpoint that the run goes on from: what the task once derived from data (a tokenizer) is loaded
    # from there. The loop itself loads the weights.
    resume_from: Path | None = None
    # Part -> folder of the model that it is taken from, for the parts of the recipe's ``start_from``.
    start_from: Mapping[str, Path] = field(default_factory=dict)
    # Kept between runs on this machine; losing it costs time, never results.
    cache_dir: Path
    # The run's seed (the recipe's, unless the run overrides it).
    seed: int
    # Called with a short message during long preparation; raises ``CancelledError`` when the run was cancelled.
    progress: Callable[[str], None]


@dataclass
class Consumed:
    """What one batch took from one source."""

    samples: int = 0
    tokens: int = 0
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The input of one step."""

    # Whatever the task's ``loss`` reads.
    data: Any
    # What that holds, so that batches made ahead are bounded in bytes.
    num_bytes: int = 0
    # Binding name -> what was drawn from it.
    consumed: Mapping[str, Consumed] = field(default_factory=dict)
    # The samples of the batch.
    samples: Sequence[Drawn] = ()
    # From which the next batch follows.
    stream: StreamState = field(default_factory=StreamState)


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The result of one forward pass."""

    # Scalar, differentiable.
    loss: Tensor
    # Detached scalars for the events, e.g. ``{"loss/language-modeling": ...}``.
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    # What the stage's mixer learns from the step, by source; empty where it does not learn.
    rewards: Mapping[str, float] = field(default_factory=dict)
    # What mixture-of-experts layers decided, by name and detached; moves the biases of routers that balance by them.
    routings: Mapping[str, Routing] = field(default_factory=dict)


# The rewards of a step of the running stage; waits until the step has been trained on.
Rewards = Callable[[int], Mapping[str, float]]


class Task(Protocol):
    """One kind of training. ``config`` is validated before the task is built.

    A task that can take parts from models of the store lists them as its class's ``startable``, a mapping from part
    to ``StartablePart``.
    """

    def prepare(self, context: TaskContext) -> nn.Module:
        """Reads what it needs and returns the model with its initial weights (seeded by ``context.seed``)."""
        ...

    def parts(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """The named parts that a stage may train; they may overlap, and together they hold every parameter."""
        ...

    def batches(self, stage: Stage, state: StreamState, rewards: Rewards) -> Iterator[Batch]:
        """The batches of the stage from where ``state`` stands, without end; each carries the state after it.

        A batch is a pure function of (seed, stage, state before it, rewards that were asked for), which is what makes
        resume exact. Runs in a prefetch thread: it must not draw from torch's global generator or touch the model.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> StepOutput:
        """The stage's weighted objectives on one batch."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the model version's folder: ``model.state_dict()`` as ``model.safetensors``, ``config.json``, ..."""
        ...
