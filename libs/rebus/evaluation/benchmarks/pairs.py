"""MME's protocol over scene graphs: two questions an image about what it holds, one with each answer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from rebus.data.sample import Sample, Segment
from rebus.data.scenes.answers import answer
from rebus.data.scenes.graph import COLORS, SHAPES, Description, Scene, scene_from_metadata
from rebus.data.scenes.questions import Question
from rebus.evaluation.answering import ask
from rebus.evaluation.benchmark import Context, Outcome
from rebus.evaluation.items import Item, num_images
from rebus.evaluation.metrics import mme_accuracy, mme_accuracy_plus, parse_mme
from rebus.evaluation.scoring import Measured, score
from rebus.generation import Prompt
from rebus.registry import NoSettings
from rebus.v1.evaluation_pb2 import Prediction, Score

GROUP = "existence-pairs"
# The group of training answers whose yes/no balance the majority baseline follows.
_PRIOR = "existence"
_NONE = NoSettings()


def pair_items(sample: Sample, seed: int) -> list[Item]:
    """The two items of a sample with a scene graph and one image; none for any other sample.

    One question names an object of the scene by colour and shape, the other a combination that no object has. Where
    the scene allows it, the false one shares a colour or a shape with an object, so that both must be looked at.
    """
    scenes = sample.metadata.get("scenes")
    if num_images(sample) != 1 or not isinstance(scenes, list) or len(scenes) != 1:
        return []
    scene = scene_from_metadata(scenes[0])
    rng = random.Random(f"{seed}/{sample.id}")
    present = [(item.color, item.shape) for item in scene]
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in present]
    near = [(c, s) for c, s in absent if any(c == color or s == shape for color, shape in present)]
    return [_item(sample, scene, *rng.choice(present)), _item(sample, scene, *rng.choice(near or absent))]


def _item(sample: Sample, scene: Scene, color: str, shape: str) -> Item:
    question = Question("existence", "exists", (Description(color=color, shape=shape),))
    told = answer([scene], question)
    assert told is not None
    shared = [segment for segment in sample.segments if segment.branch == 0]
    return Item(
        sample_id=sample.id,
        family=sample.family or sample.id,
        group=GROUP,
        question=question.text,
        prompt=Prompt(segments=[*shared, Segment(text=question.text, branch=1, task="existence")], media=sample.media),
        references=(told,),
    )


def score_pairs(
    benchmark: str, context: Context, priors: Mapping[str, Counter[str]], *, max_new_tokens: int
) -> Outcome:
    """MME's acc and acc+ and the share of yes; nothing where no sample has a scene graph."""
    items = list(_limited(context))
    if not items:
        return Outcome(scores=[])
    answers = ask(context, items, max_new_tokens=max_new_tokens)
    references = [item.references[0] for item in items]
    said = priors.get(_PRIOR, Counter())
    majority = ["no" if said["no"] > said["yes"] else "yes"] * len(items)
    images = [item.sample_id for item in items]
    accuracy = Measured(
        values=mme_accuracy(_NONE, answers.seeing, references),
        chance=np.full(len(items), 0.5),
        majority=mme_accuracy(_NONE, majority, references),
        text_only=mme_accuracy(_NONE, answers.blind, references),
        clusters=[item.family for item in items],
        clean=context.clean(images),
    )
    plus = Measured(
        values=mme_accuracy_plus(_NONE, answers.seeing, references, images),
        chance=np.full(len(items) // 2, 0.25),
        majority=mme_accuracy_plus(_NONE, majority, references, images),
        text_only=mme_accuracy_plus(_NONE, answers.blind, references, images),
        clusters=[item.family for item in items[::2]],
        clean=context.clean(images[::2]),
    )
    yes = Measured(
        values=np.array([float(parse_mme(text) == "yes") for text in answers.seeing]),
        clusters=accuracy.clusters,
        clean=accuracy.clean,
    )
    scores = [
        _score(benchmark, "mme_accuracy", accuracy, context),
        _score(benchmark, "mme_accuracy_plus", plus, context),
        _score(benchmark, "yes_ratio", yes, context),
    ]
    predictions = [
        Prediction(
            benchmark=benchmark,
            group=GROUP,
            sample_id=item.sample_id,
            question=item.question,
            prediction=seeing,
            references=item.references,
            score=float(value),
            text_only_prediction=blind,
        )
        for item, seeing, blind, value in zip(items, answers.seeing, answers.blind, accuracy.values, strict=True)
    ]
    return Outcome(scores=scores, predictions=predictions)


def _limited(context: Context) -> Iterator[Item]:
    """Whole pairs, up to ``max_items`` items."""
    taken = 0
    for sample in context.samples():
        items = pair_items(sample, context.seed)
        if context.max_items and taken + len(items) > context.max_items:
            return
        taken += len(items)
        yield from items


def _score(benchmark: str, metric: str, measured: Measured, context: Context) -> Score:
    return score(benchmark, GROUP, metric, measured, seed=context.seed)
