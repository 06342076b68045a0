"""Benchmark items taken from packed samples: shared context, then one question and its answer a branch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rebus.data.dataset import DatasetReader
from rebus.data.sample import Sample, Segment
from rebus.generation import Prompt

CAPTION = "caption"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to answer."""

    sample_id: str
    # What the item counts as one observation with; items of one family are resampled together.
    family: str
    # What scores are reported by.
    group: str
    # The question in words; empty where the image alone is the question.
    question: str
    prompt: Prompt
    references: tuple[str, ...]

    @property
    def blind_prompt(self) -> Prompt:
        """The same prompt with all media removed; where nothing is left, an answer that is still empty."""
        told = [segment for segment in self.prompt.segments if segment.type == "text"]
        return Prompt(segments=told or [Segment(role="assistant")])


def items_of(sample: Sample) -> Iterator[Item]:
    """One item a branch that ends in an assistant's text: what precedes it is the prompt, the text the reference."""
    shared = [segment for segment in sample.segments if segment.branch == 0]
    branches: dict[int, list[Segment]] = defaultdict(list)
    for segment in sample.segments:
        if segment.branch:
            branches[segment.branch].append(segment)
    for segments in branches.values():
        asked = [segment for segment in segments if segment.role != "assistant"]
        told = [segment for segment in segments if segment.role == "assistant" and segment.type == "text"]
        if told:
            yield Item(
                sample_id=sample.id,
                family=sample.family or sample.id,
                group=told[0].task,
                question=" ".join(segment.text for segment in asked if segment.type == "text"),
                prompt=Prompt(segments=[*shared, *asked], media=sample.media),
                references=(" ".join(segment.text for segment in told),),
            )


def num_images(sample: Sample) -> int:
    """Images in the shared context."""
    return sum(segment.type == "image" and segment.branch == 0 for segment in sample.segments)


def training_answers(rows: DatasetReader, images: Sequence[int]) -> dict[str, Counter[str]]:
    """How often each answer of each group occurs in the training split, over rows that hold so many images.

    Reads the text columns only.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for batch in rows.scan_columns(["segments", "num_media"], "train"):
        wanted = np.isin(batch.column("num_media").to_numpy(zero_copy_only=False), list(images))
        for group, answer in _answers(batch.column("segments").filter(pa.array(wanted))):
            counts[group][answer] += 1
    return dict(counts)


def _answers(segments: pa.ListArray) -> Iterable[tuple[str, str]]:
    """Group and joined text of every branch's assistant texts; column by column, for there are very many."""
    flat = segments.flatten()
    rows = np.repeat(np.arange(len(segments)), segments.value_lengths().to_numpy()).tolist()
    columns = [flat.field(name).to_pylist() for name in ("branch", "role", "type", "task", "text")]
    texts: dict[tuple[int, int], tuple[str, list[str]]] = {}
    for row, branch, role, kind, task, text in zip(rows, *columns, strict=True):
        if branch and role == "assistant" and kind == "text":
            texts.setdefault((row, branch), (task, []))[1].append(text)
    return [(task, " ".join(parts)) for task, parts in texts.values()]
