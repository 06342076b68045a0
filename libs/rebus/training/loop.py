"""The training loop: stages, frozen parts, schedules, metrics, checkpoints, exact resume.

Later losses and weights of a resumed run equal those of an uninterrupted one bit for bit, because a batch is a pure
function of the seed, the stage, the state of its stream and earlier losses, every step seeds torch's generator from
(seed, step), sums run in a fixed order on a fixed number of threads, and a checkpoint holds everything else.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from rebus import config as configs
from rebus import registry, tracing
from rebus.data.stream import StreamState
from rebus.errors import FailedPreconditionError, invalid
from rebus.models.io import WEIGHTS_FILE, load_weights
from rebus.models.moe import update_biases
from rebus.training import checkpoints
from rebus.training.checkpoints import TrainingState
from rebus.training.feedback import Feedback
from rebus.training.meter import Meter
from rebus.training.prefetch import Prefetcher
from rebus.training.recipe import Stage, TrainingRecipe
from rebus.training.schedules import Schedule
from rebus.training.task import Batch, Consumed, Task, TaskContext


class Reporter(Protocol):
    """Where the loop's news go."""

    def metrics(self, values: dict[str, object]) -> None:
        """One report: scalars by name, and ``losses``, the loss of every step since the last report."""
        ...

    def progress(self, fraction: float, message: str) -> None:
        """How far the run is. Raises ``CancelledError`` to stop it."""
        ...

    def checkpoint(self, state: TrainingState, folder: Path) -> None:
        """A complete checkpoint lies in ``folder``, which is removed after the call."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The end of a run."""

    model: nn.Module
    state: TrainingState


def train(task: Task, context: TaskContext, reporter: Reporter) -> Trained:
    """Runs all stages of ``context.recipe``, from ``context.resume_from`` on if that is set.

    Raises ``InvalidArgumentError`` for a part that the model lacks, ``FailedPreconditionError`` where the checkpoint is
    not of this run or the loss is no longer finite.
    """
    with deterministic(context.recipe.num_threads):
        return _Run(task, context, reporter).run()


@contextlib.contextmanager
def deterministic(num_threads: int) -> Iterator[None]:
    """Fixes the order of floating-point sums; ``num_threads`` 0 means all cores. Restores what it found."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_num_threads(num_threads or os.cpu_count() or 1)
    torch.use_deterministic_algorithms(True)
    # A debugging aid that writes NaN to every fresh tensor; we never read one before writing it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # pyright: ignore[reportAttributeAccessIssue]


class _Run:
    """One run in one process."""

    def __init__(self, task: Task, context: TaskContext, reporter: Reporter) -> None:
        self._task, self._context, self._reporter = task, context, reporter
        self._recipe: TrainingRecipe = context.recipe
        identity = checkpoints.current_identity(configs.digest(self._recipe), context.seed)
        self._state = TrainingState(identity=identity)
        if context.resume_from is not None:
            self._state = checkpoints.read_state(context.resume_from)
            self._state.check(identity)
        self._model = task.prepare(context)
        if context.resume_from is not None:
            load_weights(self._model, context.resume_from / checkpoints.MODEL_FOLDER / WEIGHTS_FILE)
        self._parts = task.parts(self._model)

    def run(self) -> Trained:
        first = 0
        for index, stage in enumerate(self._recipe.stages):
            self._check_parts(index, stage)
        for stage in self._recipe.stages:
            if self._state.step < first + stage.steps:
                rank = int(os.environ.get("RANK", "0"))  # torchrun sets it
                with tracing.span("training stage", {"rebus.stage": stage.name, "rebus.rank": rank}):
                    self._run_stage(stage, first)
            first += stage.steps
        self._model.eval()
        return Trained(model=self._model, state=self._state)

    def _check_parts(self, index: int, stage: Stage) -> None:
        for part in stage.trainable:
            if part not in self._parts:
                field = f"recipe.stages.{index}.trainable"
                raise invalid(field, f"the model has no part {part!r}; parts: {', '.join(self._parts)}")

    def _run_stage(self, stage: Stage, first: int) -> None:
        """Trains from the state's step to the end of a stage whose first step has the global number ``first``."""
        self._freeze(stage)
        parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        optimizers: list[Optimizer] = registry.build("optimizer", stage.optimizer, parameters)
        schedule: Schedule = registry.build("schedule", stage.schedule)
        start = self._state.step - first
        if start and self._context.resume_from is not None:
            checkpoints.read_optimizers(optimizers, self._context.resume_from)
        clip = _Clip(list(parameters.values()), stage.max_grad_norm)
        meter = Meter()
        if self._state.stream.step != start:
            raise FailedPreconditionError(
                f"stage {stage.name!r}: the checkpoint is of step {start}, its stream of step {self._state.stream.step}"
            )
        feedback = Feedback(self._state.rewards, start)
        drawn = self._task.batches(stage, self._state.stream, feedback.of)
        with Prefetcher(drawn, stage.steps - start) as batches, contextlib.closing(feedback):
            for step, batch in enumerate(batches, start=start):
                rate = schedule(step, stage.steps)
                feedback.tell(self._step(stage, batch, optimizers, rate, clip, meter))
                ended = step + 1 == stage.steps
                self._state.stream = StreamState() if ended else batch.stream
                self._state.rewards = {} if ended else feedback.recent
                self._after_step(stage, step, optimizers, meter, batches)

    def _freeze(self, stage: Stage) -> None:
        """Frozen parts get no gradients and run in evaluation mode, so that batch statistics stay as they are."""
        chosen = stage.trainable or list(self._parts)
        self._model.requires_grad_(False).eval()
        for name in chosen:
            self._parts[name].requires_grad_(True).train()

    def _step(
        self, stage: Stage, batch: Batch, optimizers: list[Optimizer], rate: float, clip: _Clip, meter: Meter
    ) -> Mapping[str, float]:
        """Trains on one batch; returns its rewards."""
        torch.manual_seed(_step_seed(self._context.seed, self._state.step))
        output = self._task.loss(self._model, batch, stage)
        if output.loss.requires_grad:  # a batch may hold nothing for the parts in training: text alone, no images
            output.loss.backward()
        norm = clip()
        loss = output.loss.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FailedPreconditionError(
                f"stage {stage.name!r}, step {self._state.step}: the loss is {loss}, the gradient norm {norm}; "
                "a lower learning rate or a longer warm-up may help"
            )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_biases(self._model, output.routings)
        meter.add(loss, norm, rate, output.metrics, batch)
        for name, taken in batch.consumed.items():
            total = self._state.consumed.setdefault(name, Consumed())
            total.samples += taken.samples
            total.tokens += taken.tokens
            total.images += taken.images
        self._state.step += 1
        return output.rewards

    def _after_step(
        self, stage: Stage, step: int, optimizers: list[Optimizer], meter: Meter, batches: Prefetcher
    ) -> None:
        """Reports and checkpoints when due, by the global step so that a resumed run keeps the rhythm."""
        ended = step + 1 == stage.steps
        if ended or self._state.step % self._recipe.report_every_steps == 0:
            values = meter.report(batches.wait_seconds)
            self._reporter.metrics({"step": self._state.step, "stage": stage.name, **values})
        last = self._state.step == self._recipe.total_steps
        if last or self._state.step % self._recipe.checkpoint.every_steps == 0:
            self._checkpoint([] if ended else optimizers)
        fraction = self._state.step / self._recipe.total_steps
        self._reporter.progress(fraction, f"{stage.name}: step {step + 1} of {stage.steps}")

    def _checkpoint(self, optimizers: list[Optimizer]) -> None:
        checkpoint = tracing.span("training checkpoint", {"rebus.step": self._state.step})
        with checkpoint, checkpoints.temporary_folder() as name:
            folder = Path(name)
            (folder / checkpoints.MODEL_FOLDER).mkdir()
            self._task.save(self._model, folder / checkpoints.MODEL_FOLDER)
            if optimizers:
                checkpoints.write_optimizers(optimizers, folder)
            checkpoints.write_state(self._state, folder)
            self._reporter.checkpoint(self._state, folder)


class _Clip:
    """Scales the gradients of some parameters down to a norm; 0 only measures."""

    def __init__(self, parameters: list[nn.Parameter], max_norm: float) -> None:
        self._parameters, self._max_norm = parameters, max_norm or math.inf

    def __call__(self) -> float:
        return float(nn.utils.clip_grad_norm_(self._parameters, self._max_norm, foreach=True))


def _step_seed(seed: int, step: int) -> int:
    """A seed of its own for every step of every run."""
    return (seed * 1_000_003 + step) % 2**63
