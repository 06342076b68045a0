"""A run small enough for tests: tiny scenes, a tiny model, two stages."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rebus import registry
from rebus.config import merge
from rebus.data.sample import Sample
from rebus.data.scenes import CAPTIONED, ScenesConfig, generate_samples
from rebus.data.stream import StreamState
from rebus.training.checkpoints import TrainingState
from rebus.training.loop import Trained, train
from rebus.training.recipe import TrainingRecipe, recipe_from_mapping
from rebus.training.sources import SampleList
from rebus.training.task import TaskContext

RECIPE: Mapping[str, Any] = {
    "name": "tiny",
    "num_threads": 1,
    "report_every_steps": 3,
    "checkpoint": {"every_steps": 4},
    "task": {
        "name": "mllm",
        "encoder": {"name": "conv-vit", "image_size": 32, "channels": [4, 8, 8, 16]},
        "decoder": {
            "name": "llama",
            "width": 16,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "hidden_width": 24,
        },
        "preprocess": {"image_size": 32},
        "tokenizer": {"vocab_size": 300},
    },
    "data": {
        "captions": {"dataset": "scenes", "sources": [CAPTIONED], "tasks": ["caption"]},
        "all": {"dataset": "scenes"},
    },
    "stages": [
        {
            "name": "recognition",
            "steps": 5,
            "batch_size": 4,
            "mixture": {"captions": 1},
            "trainable": ["vision_encoder", "connector", "embeddings"],
            "objectives": [{"name": "region-words"}],
        },
        {
            "name": "instruction",
            "steps": 6,
            "batch_size": 4,
            "mixture": {"captions": 0.25, "all": 0.75},
            "optimizer": {"name": "muon"},
            "schedule": {"name": "wsd", "warmup_steps": 2},
            "objectives": [{"name": "language-modeling"}, {"name": "region-words", "weight": 0.3}],
        },
    ],
}


def recipe(**changes: Any) -> TrainingRecipe:
    return recipe_from_mapping(merge(RECIPE, changes))


def samples(count: int = 12) -> list[Sample]:
    config = ScenesConfig(num_scenes=count, num_pairs=4, num_texts=3, image_size=32, questions_per_scene=3)
    return list(generate_samples(config))


class Stop(Exception):
    """What a killed process looks like from inside."""


@dataclass
class Recorder:
    """Keeps losses and checkpoints; stops the run after ``stop_after`` steps."""

    folder: Path
    stop_after: int | None = None
    losses: list[float] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: dict[int, Path] = field(default_factory=dict)
    streams: dict[int, StreamState] = field(default_factory=dict)

    def metrics(self, values: dict[str, Any]) -> None:
        self.losses += values["losses"]
        self.reports.append(values)

    def progress(self, fraction: float, message: str) -> None:
        del message
        total = 11
        if self.stop_after is not None and round(fraction * total) >= self.stop_after:
            raise Stop

    def checkpoint(self, state: TrainingState, folder: Path) -> None:
        target = self.folder / f"step-{state.step}"
        shutil.copytree(folder, target)
        self.checkpoints[state.step] = target
        self.streams[state.step] = state.stream


def execute(
    plan: TrainingRecipe,
    recorder: Recorder,
    *,
    seed: int = 0,
    resume_from: Path | None = None,
    start_from: Mapping[str, Path] | None = None,
) -> Trained:
    given = context(plan, recorder.folder, seed=seed, resume_from=resume_from, start_from=start_from)
    return train(registry.build("task", plan.task), given, recorder)


def context(
    plan: TrainingRecipe,
    folder: Path,
    *,
    seed: int = 0,
    resume_from: Path | None = None,
    start_from: Mapping[str, Path] | None = None,
) -> TaskContext:
    rows = samples()
    sources = {
        name: SampleList([s for s in rows if not binding.sources or s.source in binding.sources])
        for name, binding in plan.data.items()
    }
    return TaskContext(
        recipe=plan,
        sources=sources,
        versions=dict.fromkeys(plan.data, "test"),
        resume_from=resume_from,
        start_from=start_from or {},
        cache_dir=folder,
        seed=seed,
        progress=lambda message: None,
    )
