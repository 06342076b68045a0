"""Rows of scenes: captioned images with packed questions, interleaved pairs of images, and scenes in words only."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rebus.data.sample import Sample, Segment
from rebus.data.scenes import answers
from rebus.data.scenes.captions import phrases
from rebus.data.scenes.drawing import draw_question
from rebus.data.scenes.graph import (
    COLORS,
    SIZES,
    Scene,
    SceneObject,
    free_place,
    random_object,
    random_scene,
    scene_to_metadata,
)
from rebus.data.scenes.questions import KINDS, Question
from rebus.data.scenes.render import encode_png, render

CAPTIONED, INTERLEAVED, TEXT = "scenes/captioned", "scenes/interleaved", "scenes/text"
LICENSE = "CC0-1.0"
MAX_OBJECTS = 6
_CHANGE_TRIES = 3
_IMAGE_KINDS = tuple(kind for kind in KINDS if kind != "difference")


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """What to generate. The same settings give the same bytes."""

    # Captioned scenes: one image, its caption, its questions.
    num_scenes: int = 8000
    # Interleaved documents: two images that differ by one change, with text between.
    num_pairs: int = 1600
    # Scenes told in words only.
    num_texts: int = 800
    seed: int = 0
    # Side of the square images, in pixels.
    image_size: int = 64
    min_objects: int = 1
    max_objects: int = 4
    # Questions asked about each row.
    questions_per_scene: int = 12
    # Relative frequency of question kinds; kinds not named have 1. What takes several looks takes more examples.
    kind_weights: dict[str, float] = field(default_factory=lambda: {"existence": 2.0, "count": 2.0, "comparison": 2.0})
    # Shares of families (scenes) held out.
    validation_share: float = 0.05
    test_share: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects <= MAX_OBJECTS:
            found = f"min_objects={self.min_objects} <= max_objects={self.max_objects}"
            raise ValueError(f"need 1 <= {found} <= {MAX_OBJECTS}")
        if min(self.num_scenes, self.num_pairs, self.num_texts, self.questions_per_scene) < 0:
            raise ValueError("num_scenes, num_pairs, num_texts and questions_per_scene must not be negative")
        if not 16 <= self.image_size <= 2048:
            raise ValueError(f"image_size={self.image_size} is outside 16..2048 pixels")
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share must be >= 0 and leave something to train on")
        unknown = set(self.kind_weights) - set(KINDS)
        if unknown or any(weight < 0 for weight in self.kind_weights.values()):
            raise ValueError(f"kind_weights must be >= 0 and name kinds of {KINDS}, got {self.kind_weights}")


def generate_samples(config: ScenesConfig) -> Iterator[Sample]:
    """Yields the rows of all three forms; every row is a function of (seed, form, index) alone."""
    for index in range(config.num_scenes):
        yield _captioned(config, index)
    for index in range(config.num_pairs):
        yield _interleaved(config, index)
    for index in range(config.num_texts):
        yield _text(config, index)


def split_of(family: str, validation_share: float, test_share: float) -> str:
    """The split of a family, by a hash of its name: stable when rows are added, never straddled."""
    point = int.from_bytes(hashlib.sha256(family.encode()).digest()[:8]) / 2**64
    if point < test_share:
        return "test"
    return "validation" if point < test_share + validation_share else "train"


def _rng(config: ScenesConfig, form: str, index: int) -> random.Random:
    return random.Random(f"{config.seed}/{form}/{index}")


def _sample(config: ScenesConfig, form: str, index: int, scenes: Sequence[Scene], **fields: object) -> Sample:
    name = f"{form}-{config.seed}-{index:06d}"
    sample = Sample(
        id=name,
        family=name,
        split=split_of(name, config.validation_share, config.test_share),
        source=f"scenes/{form}",
        license=LICENSE,
        metadata={"scenes": [scene_to_metadata(scene) for scene in scenes]},
    )
    return dataclasses.replace(sample, **fields)  # pyright: ignore[reportArgumentType]


def _captioned(config: ScenesConfig, index: int) -> Sample:
    rng = _rng(config, "captioned", index)
    scene = random_scene(rng, config.min_objects, config.max_objects)
    segments = [Segment(type="image", media=0), *_caption(scene, branch=1, media=0)]
    segments += _questions(rng, config, [scene], _IMAGE_KINDS, first_branch=2)
    media = [_png(rng, config, scene)]
    return _sample(config, "captioned", index, [scene], segments=segments, media=media)


def _interleaved(config: ScenesConfig, index: int) -> Sample:
    rng = _rng(config, "interleaved", index)
    before = random_scene(rng, config.min_objects, config.max_objects)
    after = change(rng, before)
    segments = [
        Segment(text="first image:"),
        Segment(type="image", media=0),
        Segment(text="second image:"),
        Segment(type="image", media=1),
        *_caption(before, branch=1, media=0, opening="the first image shows:"),
        *_caption(after, branch=2, media=1, opening="the second image shows:"),
    ]
    segments += _questions(rng, config, [before, after], ("difference",), first_branch=3)
    media = [_png(rng, config, before), _png(rng, config, after)]
    return _sample(config, "interleaved", index, [before, after], segments=segments, media=media)


def _text(config: ScenesConfig, index: int) -> Sample:
    rng = _rng(config, "text", index)
    scene = random_scene(rng, config.min_objects, config.max_objects)
    told = " ".join(text for text, _ in phrases(scene))
    segments = [Segment(text=told, role="assistant", loss=True, task="caption")]
    segments += _questions(rng, config, [scene], _IMAGE_KINDS, first_branch=1, shown=False)
    return _sample(config, "text", index, [scene], segments=segments)


def _png(rng: random.Random, config: ScenesConfig, scene: Scene) -> bytes:
    return encode_png(render(scene, config.image_size, background=rng.randint(215, 240)))


def _caption(scene: Scene, *, branch: int, media: int, opening: str = "") -> list[Segment]:
    """The caption: one segment an object, with its box."""
    common = {"role": "assistant", "loss": True, "branch": branch, "task": "caption"}
    told = [Segment(text=text, regions=(item.box,), media=media, **common) for text, item in phrases(scene)]
    return ([Segment(text=opening, branch=branch, task="caption")] if opening else []) + told


def _questions(
    rng: random.Random,
    config: ScenesConfig,
    scenes: Sequence[Scene],
    kinds: Sequence[str],
    *,
    first_branch: int,
    shown: bool = True,
) -> list[Segment]:
    """Distinct questions with their answers, each in a branch of its own.

    A question about one image that is ``shown`` carries the boxes of all that it names.
    """
    weights = [config.kind_weights.get(kind, 1.0) for kind in kinds]
    asked: list[Question] = []
    for kind in rng.choices(kinds, weights, k=config.questions_per_scene):
        question = draw_question(rng, scenes, kind)
        if question is not None and question not in asked and answers.answer(scenes, question) is not None:
            asked.append(question)
    segments: list[Segment] = []
    for branch, question in enumerate(asked, start=first_branch):
        told = answers.answer(scenes, question)
        regions = answers.referents(scenes[0], question) if shown and len(scenes) == 1 else None
        segments.append(Segment(text=question.text, branch=branch, task=question.kind, regions=regions))
        segments.append(Segment(text=str(told), role="assistant", loss=True, branch=branch, task=question.kind))
    return segments


def change(rng: random.Random, scene: Scene) -> Scene:
    """``scene`` with one change, its kind drawn uniformly from ``answers.CHANGES``.

    Tries several places for a change that has no room; where none is found the scene is returned as it is.
    """
    kind = rng.choice(answers.CHANGES)
    if kind == answers.NOTHING:
        return scene
    if kind == answers.ADDED:
        added = random_object(rng, scene) if len(scene) < MAX_OBJECTS else None
        return scene if added is None else (*scene, added)
    for at in rng.sample(range(len(scene)), len(scene)) * _CHANGE_TRIES:
        rest = scene[:at] + scene[at + 1 :]
        if kind == answers.REMOVED:
            return rest or scene
        changed = _altered(rng, scene[at], rest, kind)
        if changed is not None:
            return (*scene[:at], changed, *scene[at + 1 :])
    return scene


def _altered(rng: random.Random, item: SceneObject, rest: Scene, kind: str) -> SceneObject | None:
    if kind == answers.POSITION:
        place = free_place(rng, item.size, rest)
        moved = place is not None and max(abs(place[0] - item.x), abs(place[1] - item.y)) > 0.25
        return dataclasses.replace(item, x=place[0], y=place[1]) if place is not None and moved else None
    if kind == "color":
        return dataclasses.replace(item, color=rng.choice([c for c in COLORS if c != item.color]))
    if kind == "size":
        return _resized(item, rest)
    return None


def _resized(item: SceneObject, rest: Scene) -> SceneObject | None:
    """The other size, unless the grown box would touch a neighbour or leave the image."""
    changed = dataclasses.replace(item, size=SIZES[1 - SIZES.index(item.size)])
    x1, y1, x2, y2 = changed.box
    inside = min(x1, y1) >= 0 and max(x2, y2) <= 1
    apart = all(x1 > o[2] or x2 < o[0] or y1 > o[3] or y2 < o[1] for o in (other.box for other in rest))
    return changed if inside and apart else None
