"""The stream of samples that a stage of a recipe draws."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from rebus.data.stream import SampleStream, Step, StepStream, StreamState
from rebus.data.stream.packing import Measure
from rebus.training.recipe import Stage, mixer_of
from rebus.training.task import Rewards


def stage_key(seed: int, stage: Stage) -> tuple[int, ...]:
    """Seeds what a stage draws."""
    return (seed, zlib.crc32(stage.name.encode()))


def stage_steps(
    stage: Stage,
    sizes: Mapping[str, int],
    *,
    seed: int,
    state: StreamState,
    rewards: Rewards,
    measure: Measure | None = None,
) -> Iterator[Step]:
    """Steps of the stage from where ``state`` stands; ``sizes`` holds the rows of each source."""
    key = stage_key(seed, stage)
    samples = SampleStream(mixer_of(stage, sizes, key=key), sizes, key=key, state=state)
    steps = StepStream(
        samples, batch_size=stage.batch_size, state=state, pack=stage.pack, measure=measure, rewards=rewards
    )
    return iter(steps)
