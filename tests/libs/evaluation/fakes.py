"""Models whose answers are known, so that scores can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rebus.data.dataset import open_version, write_version
from rebus.data.sample import Sample, Segment
from rebus.errors import CancelledError
from rebus.evaluation.benchmark import Context
from rebus.evaluation.items import items_of
from rebus.generation import Completion, Prompt, Sampling
from rebus.store import Store
from tests.tiny_model import png


class FakeGenerator:
    """Answers a prompt by a function of it."""

    def __init__(self, answer: Callable[[Prompt], str]) -> None:
        self.answer = answer
        self.asked: list[Prompt] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, progress: Callable[[int], None], cancelled: Any
    ) -> list[Completion]:
        if cancelled():
            raise CancelledError("cancelled")
        self.asked += prompts
        progress(len(prompts))
        return [
            Completion(text=self.answer(prompt), token_ids=(), finish_reason="stop", num_prompt_tokens=1)
            for prompt in prompts
        ]


class FakeModels:
    """Stands for the model under test."""

    def __init__(self, generator: Any = None, embedder: Any = None) -> None:
        self.generator = generator
        self.embedder = embedder


def constant(text: str) -> FakeModels:
    """A model that always says the same."""
    return FakeModels(FakeGenerator(lambda prompt: text))


def key(prompt: Prompt) -> tuple[Any, ...]:
    """What a prompt shows and asks."""
    images = tuple(prompt.media[s.media] for s in prompt.segments if s.type == "image")
    return images, tuple(s.text for s in prompt.segments if s.type == "text")


def oracle(samples: Iterable[Sample], blind: str = "") -> FakeModels:
    """A model that knows every reference; without an image it says ``blind``."""
    known = {key(item.prompt): item.references[0] for sample in samples for item in items_of(sample)}
    return FakeModels(FakeGenerator(lambda prompt: known[key(prompt)] if key(prompt)[0] else blind))


def context(store: Store, samples: Iterable[Sample], models: FakeModels, **settings: Any) -> Context:
    """A context over a dataset version that holds ``samples``."""
    version = write_version(store, "datasets/made", samples)
    return Context(models=models, rows=open_version(store, version.name), **settings)  # pyright: ignore[reportArgumentType]


def asked(name: str, split: str, questions: Sequence[tuple[str, str, str]], images: int = 1) -> Sample:
    """A sample with ``images`` pictures and packed questions ``(kind, question, answer)``."""
    shade = sum(name.encode()) % 200
    segments = [Segment(type="image", media=at) for at in range(images)]
    for branch, (kind, question, answer) in enumerate(questions, start=1):
        if question:
            segments.append(Segment(text=question, branch=branch, task=kind))
        segments.append(Segment(text=answer, role="assistant", loss=True, branch=branch, task=kind))
    media = [png((shade, at * 40, 99)) for at in range(images)]
    return Sample(id=name, family=name, split=split, segments=segments, media=media)


class OneHotEmbedder:
    """Gives equal unit vectors to what ``place`` maps to equal numbers."""

    def __init__(self, size: int, text_place: Callable[[str], int], image_place: Callable[[bytes], int]) -> None:
        self._size, self._text_place, self._image_place = size, text_place, image_place

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(self._size, dtype=np.float32)[[self._text_place(text) for text in texts]]

    def embed_images(self, images: Sequence[bytes]) -> np.ndarray:
        return np.eye(self._size, dtype=np.float32)[[self._image_place(image) for image in images]]
