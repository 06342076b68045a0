"""Checkpoints: a folder of safetensors and JSON, published whole or not at all.

```
model/                                the model version's folder, as the task saves it
optimizer.safetensors                 state of the running stage's optimizers; absent between stages
state.json                            step, stream of samples, what was consumed, what a run must agree on to go on
```
No generator's state is kept: every step seeds its own from (seed, step).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rebus import config as configs
from rebus.data.stream import StreamState
from rebus.errors import DataLossError, FailedPreconditionError, NotFoundError
from rebus.models.io import load_tensors, save_tensors
from rebus.store import Store, manifests
from rebus.training.task import Consumed

MODEL_FOLDER, STATE_FILE, OPTIMIZER_FILE = "model", "state.json", "optimizer.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What must be equal for later losses to equal those of an uninterrupted run."""

    recipe_digest: str
    seed: int
    num_threads: int
    torch_version: str


@dataclass(kw_only=True)
class TrainingState:
    """Where a run stands; the whole of ``state.json``."""

    identity: RunIdentity
    # Steps done, counted over all stages.
    step: int = 0
    # Binding name -> what was drawn from it.
    consumed: dict[str, Consumed] = field(default_factory=dict)
    # Where the running stage's stream of samples stands after the last step; fresh between stages.
    stream: StreamState = field(default_factory=StreamState)
    # Step of the running stage -> its rewards, of the last steps, where the stage's mixer learns.
    rewards: dict[int, dict[str, float]] = field(default_factory=dict)

    def check(self, identity: RunIdentity) -> None:
        """Raises ``FailedPreconditionError`` naming what differs from the run that wants to go on."""
        ours, theirs = dataclasses.asdict(self.identity), dataclasses.asdict(identity)
        changed = [f"{key} {ours[key]!r} -> {theirs[key]!r}" for key in ours if ours[key] != theirs[key]]
        if changed:
            raise FailedPreconditionError(f"the checkpoint belongs to another run: {'; '.join(changed)}")


def write_state(state: TrainingState, folder: Path) -> None:
    """Writes ``state.json``."""
    text = json.dumps(dataclasses.asdict(state), indent=2, sort_keys=True)
    (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def read_state(folder: Path) -> TrainingState:
    """Reads ``state.json``; ``DataLossError`` if it is missing or malformed."""
    try:
        values: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return configs.build(TrainingState, values, where=STATE_FILE)
    except (OSError, ValueError) as error:
        raise DataLossError(f"{STATE_FILE}: unreadable: {error}") from None


def write_optimizers(optimizers: Sequence[Optimizer], folder: Path) -> None:
    """Writes the state tensors of all optimizers."""
    tensors = {
        f"{index}.{parameter}.{name}": value
        for index, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    save_tensors(tensors, folder / OPTIMIZER_FILE)


def read_optimizers(optimizers: Sequence[Optimizer], folder: Path) -> None:
    """Loads what ``write_optimizers`` wrote into freshly built optimizers of the same parameters."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in load_tensors(folder / OPTIMIZER_FILE).items():
        index, parameter, name = key.split(".", 2)
        states[int(index)].setdefault(int(parameter), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class CheckpointStore:
    """The checkpoints of one run, ``runs/x/checkpoints/step-<n>``; a manifest makes each visible, written last."""

    def __init__(self, store: Store, run: str, *, keep: int, cache_dir: Path) -> None:
        self._store, self._prefix, self._keep = store, f"{run}/checkpoints", keep
        self._cache_dir = cache_dir

    def publish(self, step: int, folder: Path) -> str:
        """Uploads a folder as the checkpoint of ``step``, then removes the oldest; returns its name."""
        name = f"{self._prefix}/step-{step}"
        # What a killed upload or an unreadable checkpoint left there must not mix with the new one.
        self._store.delete_prefix(name)
        manifests.publish_folder(self._store, name, folder)
        for old in self.steps()[self._keep :]:
            self._store.delete_prefix(f"{self._prefix}/step-{old}")
        return name

    def steps(self) -> list[int]:
        """Steps of the published checkpoints, newest first."""
        found = [int(name.removeprefix("step-")) for name in self._store.folders(self._prefix)]
        published = [s for s in found if self._store.exists(f"{self._prefix}/step-{s}/{manifests.MANIFEST}")]
        return sorted(published, reverse=True)

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """A verified local copy of the newest checkpoint that is whole, kept until the block ends.

        ``None`` if the run has none.
        """
        with ExitStack() as stack:
            for step in self.steps():
                try:
                    checkpoint = manifests.fetch(self._store, f"{self._prefix}/step-{step}", self._cache_dir)
                    folder = stack.enter_context(checkpoint)
                except (DataLossError, NotFoundError):
                    continue
                yield folder
                return
            yield None


def current_identity(recipe_digest: str, seed: int) -> RunIdentity:
    """The identity of a run in this process, as its threads are set now."""
    return RunIdentity(
        recipe_digest=recipe_digest,
        seed=seed,
        num_threads=torch.get_num_threads(),
        torch_version=torch.__version__,
    )


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder to assemble a checkpoint in."""
    return tempfile.TemporaryDirectory(prefix="rebus-checkpoint-")
