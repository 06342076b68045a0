"""A stage's samples are the same whoever loads them: killed at random points, at other numbers of ranks and workers."""

from __future__ import annotations

import contextlib
import io
import json
import random
import zlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rebus import config as configs
from rebus.data.encoding import Encoder, EncodingConfig
from rebus.data.mixers.odm import rewards
from rebus.data.prefetch import ordered_prefetch
from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig
from rebus.data.sample import Sample, Segment
from rebus.data.stream import Drawn, Size, Step, StreamState, deal
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.training.draws import stage_steps
from rebus.training.feedback import Feedback
from rebus.training.recipe import Stage

STEPS, SCHEDULES = 24, 50
ROWS = {"captions": 37, "documents": 23, "text": 51, "late": 11}
WORDS = ["a red cube", "two green balls", "left of", "and", "the small blue cone", "nothing"]
# Ranks and workers of each life of a run.
WORLDS, WORKERS = (1, 2, 3, 1), (0, 2, 4, 0)


class Corpus:
    """Samples of four sources: pictures with a caption, two pictures with words between, and words only."""

    def __init__(self) -> None:
        rng = random.Random(0)
        self.samples = {name: [_sample(name, row, rng) for row in range(count)] for name, count in ROWS.items()}
        self._encoder = Encoder(
            Tokenizer.train(WORDS * 2, TokenizerConfig(vocab_size=300)), image_tokens=4, config=EncodingConfig()
        )
        self._processor = ImageProcessor(ImageProcessorConfig(image_size=32))
        rows = {name: [self._encoder.encode(sample) for sample in found] for name, found in self.samples.items()}
        self._sizes = {name: [Size(len(row), len(row.images)) for row in found] for name, found in rows.items()}

    def measure(self, drawn: Sequence[Drawn]) -> list[Size]:
        return [self._sizes[sample.source][sample.row] for sample in drawn]

    def load(self, drawn: Drawn) -> int:
        """Encodes and decodes a sample; a digest of what came out."""
        sample = self.samples[drawn.source][drawn.row]
        row = self._encoder.encode(sample)
        pixels = [self._processor(sample.media[index], field="media") for index in row.images]
        return zlib.crc32(b"".join([row.input_ids.tobytes(), *(image.tobytes() for image in pixels)]))


def _sample(name: str, row: int, rng: random.Random) -> Sample:
    images = {"captions": 1, "documents": 2}.get(name, 0)
    told = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(max(1, images))]
    media: list[bytes] = []
    segments: list[Segment] = []
    for at, text in enumerate(told):
        if images:
            buffer = io.BytesIO()
            shade = np.random.default_rng([row, at]).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(shade).save(buffer, "PNG")
            media.append(buffer.getvalue())
            segments.append(Segment(type="image", media=at))
        segments.append(Segment(text=text, role="assistant", loss=True))
    return Sample(id=f"{name}/{row}", segments=segments, media=media)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


def random_stage(rng: random.Random) -> Stage:
    """Any mixer, packed or not, with a change of the weights and a source that joins on the way."""
    early = {name: rng.uniform(0.2, 1) for name in ("captions", "documents", "text")}
    changes = [{"from_sample": rng.randint(5, 60), "mixture": {name: rng.uniform(0.2, 1) for name in early}}]
    changes.append({"from_sample": rng.randint(61, 150), "mixture": {**early, "late": rng.uniform(0.2, 1)}})
    mixer = rng.choice(
        [
            {"name": "weighted"},
            {"name": "temperature", "temperature": rng.uniform(1, 4)},
            {"name": "vlm-when-images", "total_samples": 250, "image_sources": ["captions", "documents"]},
            {"name": "mmed-ift", "first_samples": rng.randint(151, 200), "second": {"late": 1.0, "text": 0.3}},
            {"name": "odm", "accumulate": rng.choice(["sum", "average"])},
        ]
    )
    values: dict[str, Any] = {"name": "s", "steps": STEPS, "mixture": early, "mixture_changes": changes, "mixer": mixer}
    if rng.random() < 0.75:
        values["pack"] = {"max_tokens": rng.choice([120, 200]), "max_images": 4, "buffer": rng.choice([5, 20, 40])}
    return configs.build(Stage, {**values, "batch_size": 3 if "pack" in values else rng.randint(5, 12)})


@dataclass
class Loaded:
    """A step as one rank has it: the step of all ranks, and the digests of its own packs by their number."""

    step: Step
    digests: dict[int, list[int]]


@dataclass
class Checkpoint:
    """Steps done, and the document that goes on from there."""

    step: int = 0
    document: bytes = configs.canonical_json({"stream": StreamState(), "rewards": {}})


@dataclass
class Cluster:
    """Ranks in lockstep, each with a stream and workers of its own."""

    corpus: Corpus
    stage: Stage
    # Step -> its packs by number, each a list of (sample, digest); what a run leaves behind.
    trained: dict[int, dict[int, list[tuple[Drawn, int]]]] = field(default_factory=dict)

    def life(self, start: Checkpoint, stop: int, *, world: int, workers: int, every: int) -> Checkpoint:
        """Trains from a checkpoint until the kill at step ``stop``; the last checkpoint written."""
        state = configs.build(_Document, json.loads(start.document))
        feedbacks = [Feedback(state.rewards, start.step) for _ in range(world)]
        last = start
        with contextlib.ExitStack() as ranks:
            running = [
                ranks.enter_context(contextlib.closing(self._rank(rank, world, workers, state.stream, feedback)))
                for rank, feedback in enumerate(feedbacks)
            ]
            for feedback in feedbacks:
                ranks.callback(feedback.close)
            for number in range(start.step, stop):
                told = self._train(number, [next(rank) for rank in running])
                for feedback in feedbacks:
                    feedback.tell(told.rewards)
                if (number + 1) % every == 0:
                    document = {"stream": told.stream, "rewards": feedbacks[0].recent}
                    last = Checkpoint(number + 1, configs.canonical_json(document))
        return last

    def _rank(
        self, rank: int, world: int, workers: int, state: StreamState, feedback: Feedback
    ) -> Generator[Loaded, None, None]:
        steps = stage_steps(self.stage, ROWS, seed=7, state=state, rewards=feedback.of, measure=self.corpus.measure)

        def load(step: Step) -> Loaded:
            mine = [step.packs[index] for index in deal([pack.size for pack in step.packs], world)[rank]]
            return Loaded(step, {pack.number: [self.corpus.load(sample) for sample in pack.samples] for pack in mine})

        return ordered_prefetch(steps, load, workers=workers, max_bytes=3, size=lambda loaded: 1)

    def _train(self, number: int, loaded: Sequence[Loaded]) -> _Told:
        """Joins what the ranks hold; every pack must be there once, and a step done again must be the same."""
        step = loaded[0].step
        assert all(other.step == step for other in loaded)
        digests = [entry for part in loaded for entry in part.digests.items()]
        assert sorted(at for at, _ in digests) == [pack.number for pack in step.packs]
        found = dict(digests)
        packs = {pack.number: list(zip(pack.samples, found[pack.number], strict=True)) for pack in step.packs}
        assert self.trained.setdefault(number, packs) == packs
        losses = {place: 1 + sample.row % 7 for place, sample in enumerate(step.samples)}
        learned = rewards(losses, step.samples) if self.stage.mixer["name"] == "odm" else {}
        return _Told(stream=step.state, rewards=learned)


@dataclass(frozen=True, kw_only=True)
class _Document:
    stream: StreamState
    rewards: dict[int, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class _Told:
    stream: StreamState
    rewards: Mapping[str, float]


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 5 else []) for seed in range(SCHEDULES)]
)
def test_the_global_sequence_is_that_of_an_uninterrupted_run(corpus: Corpus, seed: int) -> None:
    rng = random.Random(seed)
    stage = random_stage(rng)
    whole = Cluster(corpus, stage)
    whole.life(Checkpoint(), STEPS, world=1, workers=0, every=STEPS)

    killed, at = Cluster(corpus, stage), Checkpoint()
    kills = sorted(rng.sample(range(1, STEPS), len(WORLDS) - 1))
    for world, workers, stop in zip(WORLDS, WORKERS, [*kills, STEPS], strict=True):
        at = killed.life(at, stop, world=world, workers=workers, every=rng.randint(1, 4))

    assert killed.trained == whole.trained
    # Each sample is drawn once, and together with what waits in the buffer none is missing.
    drawn = [sample.number for packs in whole.trained.values() for pack in packs.values() for sample, _ in pack]
    steps = stage_steps(stage, ROWS, seed=7, state=StreamState(), rewards=lambda step: {}, measure=corpus.measure)
    assert len(set(drawn)) == len(drawn)
    if stage.pack is None:
        assert drawn == list(range(len(drawn)))
    if stage.mixer["name"] != "odm":
        last = next(islice(steps, STEPS - 1, None)).state
        assert sorted([*drawn, *(sample.number for sample in last.waiting)]) == list(range(last.sample))


def test_the_schedules_reach_what_they_are_meant_to(corpus: Corpus) -> None:
    """Among 50: every mixer, packing and none, and runs that draw from the source that joins."""
    stages = [random_stage(random.Random(seed)) for seed in range(SCHEDULES)]
    assert len({stage.mixer["name"] for stage in stages}) == 5
    assert 25 < sum(stage.pack is not None for stage in stages) < 48
    joined = 0
    for stage in stages:
        steps = stage_steps(stage, ROWS, seed=7, state=StreamState(), rewards=lambda step: {}, measure=corpus.measure)
        joined += any(sample.source == "late" for step in islice(steps, STEPS) for sample in step.samples)
    assert joined > 35
