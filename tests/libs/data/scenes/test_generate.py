from __future__ import annotations

import io
from collections import Counter, defaultdict

import pytest
from PIL import Image

from rebus.data.sample import Sample
from rebus.data.scenes import CAPTIONED, INTERLEAVED, TEXT, ScenesConfig, generate_samples
from rebus.data.scenes.answers import CHANGES, answer
from rebus.data.scenes.generate import split_of
from rebus.data.scenes.graph import place, scene_from_metadata
from rebus.data.scenes.questions import Question

SMALL = ScenesConfig(num_scenes=60, num_pairs=40, num_texts=20, seed=3, image_size=32)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(generate_samples(SMALL))


def test_the_same_settings_give_the_same_rows_and_another_seed_others(samples: list[Sample]) -> None:
    assert list(generate_samples(SMALL)) == samples
    other = next(generate_samples(ScenesConfig(num_scenes=1, seed=4, image_size=32)))
    assert other.media != samples[0].media


def test_rows_do_not_depend_on_how_many_there_are(samples: list[Sample]) -> None:
    fewer = ScenesConfig(num_scenes=5, num_pairs=0, num_texts=0, seed=3, image_size=32)
    assert list(generate_samples(fewer)) == samples[:5]


def test_every_row_is_a_valid_sample_of_its_form(samples: list[Sample]) -> None:
    assert Counter(s.source for s in samples) == {CAPTIONED: 60, INTERLEAVED: 40, TEXT: 20}
    for sample in samples:
        sample.validate()
        images = [s for s in sample.segments if s.type == "image"]
        assert len(images) == len(sample.media) == {CAPTIONED: 1, INTERLEAVED: 2, TEXT: 0}[sample.source]
        assert all(s.branch == 0 for s in images)
        assert all(Image.open(io.BytesIO(data)).size == (32, 32) for data in sample.media)


def test_each_question_stands_in_a_branch_of_its_own_with_its_answer(samples: list[Sample]) -> None:
    for sample in samples:
        branches = defaultdict(list)
        for segment in sample.segments:
            if segment.branch and segment.task != "caption":
                branches[segment.branch].append(segment)
        for question, told in branches.values():
            assert (question.role, question.loss) == ("user", False)
            assert (told.role, told.loss) == ("assistant", True)
            assert question.task == told.task


def test_captions_name_every_object_with_its_box_in_reading_order(samples: list[Sample]) -> None:
    for sample in samples[:60]:
        (scene,) = map(scene_from_metadata, sample.metadata["scenes"])
        phrases = [s for s in sample.segments if s.loss and s.regions]
        assert sorted(box for s in phrases for box in s.regions or ()) == sorted(item.box for item in scene)
        by_box = {item.box: item for item in scene}
        for phrase in phrases:
            assert phrase.regions is not None
            item = by_box[phrase.regions[0]]
            noun = f"{item.size} {item.color} {item.material} {item.shape}."
            assert phrase.text.startswith(f"{place(item)}, a")
            assert phrase.text.endswith(noun)


def test_pairs_differ_by_one_change_and_every_change_occurs() -> None:
    found = Counter()
    config = ScenesConfig(num_scenes=0, num_pairs=150, num_texts=0, image_size=16, questions_per_scene=1)
    for sample in generate_samples(config):
        scenes = [scene_from_metadata(values) for values in sample.metadata["scenes"]]
        found[answer(scenes, Question("difference", "changed"))] += 1
    assert set(found) == set(CHANGES)


def test_splits_follow_the_family_and_their_shares() -> None:
    splits = Counter(split_of(f"captioned-0-{n:06d}", 0.1, 0.2) for n in range(4000))
    assert splits["test"] == pytest.approx(800, rel=0.15)
    assert splits["validation"] == pytest.approx(400, rel=0.2)
    # Another share of one split moves rows only to and from the training split.
    for n in range(300):
        name = f"captioned-0-{n:06d}"
        if split_of(name, 0.1, 0.2) == "test":
            assert split_of(name, 0.0, 0.2) == "test"


def test_kind_weights_silence_a_kind() -> None:
    config = ScenesConfig(
        num_scenes=30, num_pairs=0, num_texts=0, image_size=16, kind_weights={"count": 0.0, "relation": 5.0}
    )
    tasks = Counter(s.task for sample in generate_samples(config) for s in sample.segments if s.loss)
    assert tasks["count"] == 0
    assert tasks["relation"] > tasks["color"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"min_objects": 3, "max_objects": 2}, "min_objects=3"),
        ({"image_size": 8}, "image_size=8"),
        ({"num_scenes": -1}, "num_scenes"),
        ({"validation_share": 0.6, "test_share": 0.5}, "test_share"),
        ({"kind_weights": {"colour": 1.0}}, "colour"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ScenesConfig(**settings)  # pyright: ignore[reportArgumentType]
