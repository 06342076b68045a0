"""Benchmarks over models whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rebus import registry
from rebus.data.sample import Sample, Segment
from rebus.data.scenes import ScenesConfig, generate_samples
from rebus.data.scenes.graph import scene_from_metadata
from rebus.errors import CancelledError, InvalidArgumentError
from rebus.evaluation.benchmark import Outcome
from rebus.evaluation.benchmarks.pairs import pair_items
from rebus.evaluation.items import items_of, training_answers
from rebus.evaluation.metrics import CiderDConfig, cider_d
from rebus.generation import Prompt
from rebus.store import Store
from rebus.v1.evaluation_pb2 import Score
from tests.libs.evaluation.fakes import FakeGenerator, FakeModels, OneHotEmbedder, asked, constant, context, oracle

SCENES = list(
    generate_samples(ScenesConfig(num_scenes=30, num_pairs=12, num_texts=3, image_size=16, test_share=0.4, seed=3))
)


def run(name: str, store: Store, samples: Sequence[Sample], models: FakeModels, **settings: object) -> Outcome:
    return registry.build("benchmark", {"name": name}).run(context(store, samples, models, **settings))


def find(outcome: Outcome, group: str, metric: str) -> Score:
    return next(score for score in outcome.scores if (score.group, score.metric) == (group, metric))


def test_items_are_one_branch_each_with_the_shared_context() -> None:
    sample = asked("s", "test", [("count", "how many?", "2"), ("color", "which color?", "red")])
    first, second = items_of(sample)
    assert (first.group, first.question, first.references) == ("count", "how many?", ("2",))
    assert [segment.text for segment in second.prompt.segments] == ["", "which color?"]
    assert second.prompt.segments[0].type == "image"
    assert [segment.text for segment in second.blind_prompt.segments] == ["which color?"]


def test_a_caption_is_an_item_without_a_question_whose_phrases_are_joined() -> None:
    sample = next(s for s in SCENES if s.source == "scenes/captioned")
    item = next(item for item in items_of(sample) if item.group == "caption")
    told = [s.text for s in sample.segments if s.branch == 1]
    assert (item.question, item.references) == ("", (" ".join(told),))


def test_training_answers_equal_a_count_over_whole_samples(store: Store) -> None:
    rows = context(store, SCENES, constant("")).rows
    expected: dict[str, dict[str, int]] = {}
    for sample in SCENES:
        if sample.split == "train" and len(sample.media) == 1:
            for item in items_of(sample):
                counts = expected.setdefault(item.group, {})
                counts[item.references[0]] = counts.get(item.references[0], 0) + 1
    assert training_answers(rows, (1,)) == expected


def test_questions_baselines_by_hand(store: Store) -> None:
    """Two kinds. Training knows four colours, red commonest, and two counts, ``1`` and ``2`` equally common."""
    samples = [
        asked("t1", "train", [("color", "c?", "red"), ("color", "d?", "blue"), ("count", "n?", "1")]),
        asked("t2", "train", [("color", "c?", "red"), ("color", "d?", "green"), ("count", "n?", "2")]),
        asked("t3", "train", [("color", "c?", "gray")]),
        asked("a", "test", [("color", "c?", "red"), ("count", "n?", "1")]),
        asked("b", "test", [("color", "c?", "blue"), ("count", "n?", "3")]),
        asked("c", "test", [("color", "c?", "blue")]),
    ]
    known = {"c?": "Red.", "n?": "3"}
    outcome = run("scene-questions", store, samples, FakeModels(FakeGenerator(lambda p: known[p.segments[-1].text])))

    color = find(outcome, "color", "exact_match")
    assert (color.value, color.chance, color.majority, color.num_items) == (pytest.approx(1 / 3), 1 / 4, 1 / 3, 3)
    count = find(outcome, "count", "exact_match")
    # "3" is no training answer, so chance cannot reach it: (1/2 + 0) / 2. Majority says "1", first of the tie.
    assert (count.value, count.chance, count.majority, count.text_only) == (0.5, 0.25, 0.5, 0.5)
    mean = find(outcome, "mean", "exact_match")
    assert mean.value == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert mean.chance == pytest.approx((1 / 4 + 1 / 4) / 2)
    gain = find(outcome, "mean", "exact_match_gain_over_text_only")
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)
    assert not [score for score in outcome.scores if score.group == "existence-pairs"]


def test_an_oracle_is_right_everywhere_and_blind_without_images(store: Store) -> None:
    samples = [sample for sample in SCENES if sample.source != "scenes/captioned" or "scenes" in sample.metadata]
    models = oracle(samples, blind="yes")
    known = {item.prompt.media[0] + item.question.encode(): item.references[0]
             for sample in samples for item in pair_items(sample, 0)}  # fmt: skip
    answer = models.generator.answer

    def told(prompt: Prompt) -> str:
        asks = prompt.segments[-1].text.encode()
        return known.get(prompt.media[0] + asks) or answer(prompt) if prompt.media else "yes"

    outcome = run("scene-questions", store, samples, FakeModels(FakeGenerator(told)))
    kinds = {score.group for score in outcome.scores if score.metric == "exact_match"}
    assert kinds == {*(i.group for s in samples if len(s.media) == 1 for i in items_of(s)), "mean"} - {"caption"}
    exact = [score for score in outcome.scores if score.metric == "exact_match"]
    assert [(s.value, s.low, s.high) for s in exact] == [(1.0, 1.0, 1.0)] * len(exact)
    yes = np.mean([p.references[0] == "yes" for p in outcome.predictions if p.group == "existence"])
    assert find(outcome, "existence", "exact_match").text_only == pytest.approx(yes)
    mean = find(outcome, "mean", "exact_match")
    assert find(outcome, "mean", "exact_match_gain_over_text_only").value == pytest.approx(1 - mean.text_only)
    assert find(outcome, "existence-pairs", "mme_accuracy_plus").value == 1.0
    assert all(p.text_only_prediction == "yes" and p.prediction in p.references for p in outcome.predictions)


@pytest.mark.paper("mme")
def test_pairs_are_balanced_and_true_to_the_scene_graph() -> None:
    pairs = [(sample, pair_items(sample, seed=1)) for sample in SCENES]
    assert all(not items for sample, items in pairs if sample.source != "scenes/captioned")
    for sample, items in pairs:
        if not items:
            continue
        scene = scene_from_metadata(sample.metadata["scenes"][0])
        assert [item.references for item in items] == [("yes",), ("no",)]
        for item, expected in zip(items, (True, False), strict=True):
            color, shape = item.question.removesuffix("?").split()[-2:]
            assert any((o.color, o.shape) == (color, shape) for o in scene) == expected
        near = items[1].question.removesuffix("?").split()[-2:]
        assert any(o.color == near[0] or o.shape == near[1] for o in scene)


@pytest.mark.paper("mme")
def test_always_yes_has_half_the_questions_and_no_image(store: Store) -> None:
    outcome = run("scene-questions", store, SCENES, constant("Yes."))
    accuracy = find(outcome, "existence-pairs", "mme_accuracy")
    plus = find(outcome, "existence-pairs", "mme_accuracy_plus")
    assert (accuracy.value, accuracy.chance, accuracy.majority, accuracy.text_only) == (0.5, 0.5, 0.5, 0.5)
    assert (plus.value, plus.chance, plus.majority, plus.text_only) == (0.0, 0.25, 0.0, 0.0)
    assert plus.num_items * 2 == accuracy.num_items
    assert find(outcome, "existence-pairs", "yes_ratio").value == 1.0


def test_differences_are_asked_about_both_images(store: Store) -> None:
    models = oracle(SCENES)
    outcome = run("scene-differences", store, SCENES, models)
    assert {score.group for score in outcome.scores} == {"difference", "mean"}
    assert find(outcome, "difference", "exact_match").value == 1.0
    seen = [sum(s.type == "image" for s in prompt.segments) for prompt in models.generator.asked]
    assert set(seen) == {2, 0}


def test_captions_are_scored_by_cider_d(store: Store) -> None:
    outcome = run("scene-captions", store, SCENES, oracle(SCENES, blind="a red cube."))
    references = [tuple(p.references) for p in outcome.predictions]
    texts = [r[0] for r in references]
    total = find(outcome, "", "cider_d")
    assert total.value == pytest.approx(cider_d(CiderDConfig(), texts, references).mean())
    assert total.text_only == pytest.approx(cider_d(CiderDConfig(), ["a red cube."] * len(texts), references).mean())
    assert total.value > 5 > total.majority
    assert not total.HasField("chance")


def test_prompts_that_repeat_are_answered_once(store: Store) -> None:
    samples = [asked("t", "train", [("color", "c?", "red")])]
    samples += [asked(name, "test", [("color", "c?", "red")]) for name in "abc"]
    models = constant("red")
    run("scene-questions", store, samples, models)
    assert len(models.generator.asked) == 3 + 1


def test_max_items_takes_a_seeded_choice(store: Store) -> None:
    samples = [asked("t", "train", [("color", "c?", "red")])]
    samples += [asked(f"s{at}", "test", [("color", "c?", "red")]) for at in range(30)]

    def ids(seed: int) -> list[str]:
        outcome = run("scene-questions", store, samples, constant("red"), max_items=5, seed=seed)
        return [prediction.sample_id for prediction in outcome.predictions]

    assert len(ids(0)) == 5
    assert ids(0) == ids(0) != ids(1)


def test_what_rows_lack_is_named(store: Store) -> None:
    samples = [asked("t", "train", [("color", "c?", "red")])]
    with pytest.raises(InvalidArgumentError, match="has no 'test' rows; splits: train"):
        run("scene-questions", store, samples, constant(""))
    with pytest.raises(InvalidArgumentError, match="has no questions about images in its 'train' rows"):
        run("scene-differences", store, samples, constant(""), split="train")
    with pytest.raises(InvalidArgumentError, match="has no captions"):
        run("scene-captions", store, samples, constant(""), split="train")
    with pytest.raises(InvalidArgumentError, match="has 0 pictures named in 'en'"):
        run("image-text-retrieval", store, samples, FakeModels(), split="train")


def test_cancelling_ends_a_benchmark(store: Store) -> None:
    with pytest.raises(CancelledError):
        run("scene-questions", store, SCENES, constant(""), cancelled=lambda: True)


NAMES = ["red heart", "dog face", "Red heart", "sun"]


def pictures(split: str = "test") -> list[Sample]:
    """Four canonical pictures, two of one name, and a variant that must be left out."""
    samples = [
        Sample(
            id=f"e{at}",
            family=f"f{at}",
            split=split,
            segments=[Segment(type="image", media=0), Segment(text=name, role="assistant", loss=True, branch=1)],
            media=[asked(f"e{at}", split, []).media[0]],
            metadata={"canonical": True, "names": {"en": name, **({"de": f"de {at}"} if at else {})}},
        )
        for at, name in enumerate(NAMES)
    ]
    variant = Sample(
        id="variant", split=split, segments=samples[0].segments, media=samples[0].media,
        metadata={"canonical": False, "names": {"en": "red heart, dark"}},
    )  # fmt: skip
    return [*samples, variant]


def test_retrieval_by_hand(store: Store) -> None:
    """The embedder takes the dog for the sun and the sun for the dog; the hearts share a name and a place."""
    media = {sample.media[0]: at for at, sample in enumerate(pictures()[:4])}
    places = {"red heart": 0, "Red heart": 0, "dog face": 3, "sun": 1, "de 1": 1, "de 2": 2, "de 3": 0}
    embedder = OneHotEmbedder(4, places.__getitem__, media.__getitem__)
    outcome = run("image-text-retrieval", store, pictures(), FakeModels(embedder=embedder))

    to_image = find(outcome, "text_to_image", "recall_at_1")
    assert (to_image.value, to_image.num_items) == (0.5, 4)
    # A random order of four starts with a right one with probability 1/2 for the hearts and 1/4 for the others.
    assert to_image.chance == pytest.approx((0.5 + 0.5 + 0.25 + 0.25) / 4)
    assert find(outcome, "text_to_image", "recall_at_5").chance == 1.0
    # Hearts rank 1; dog and sun tie with the other two wrong ones and so come last: 1/4.
    assert find(outcome, "text_to_image", "mean_reciprocal_rank").value == pytest.approx((1 + 1 + 0.25 + 0.25) / 4)
    # From a picture: heart e0 finds both names; heart e2 (its own place 2) finds none; dog and sun are swapped.
    assert find(outcome, "image_to_text", "recall_at_1").value == 0.25
    # German names three pictures: de 1 and de 2 find theirs, de 3 finds e0.
    german = find(outcome, "text_to_image_de", "recall_at_1")
    assert (german.value, german.num_items, german.chance) == (pytest.approx(2 / 3), 3, 0.25)
    told = {p.sample_id: p for p in outcome.predictions if p.group == "text_to_image"}
    dog, heart = told["e1"], told["e0"]
    assert (dog.question, dog.prediction, list(dog.references), dog.score) == ("dog face", "sun", ["dog face"], 0.0)
    assert (heart.prediction, list(heart.references), heart.score) == ("red heart", ["Red heart", "red heart"], 1.0)


@pytest.mark.parametrize(("relevant", "total"), [(1, 7), (2, 5), (3, 3)])
def test_retrieval_chance_equals_a_simulation(relevant: int, total: int) -> None:
    from rebus.evaluation.benchmarks import retrieval

    rng = np.random.default_rng(0)
    ranks = 1 + np.array([rng.permutation(total)[:relevant].min() for _ in range(40_000)])
    assert retrieval._chance_reciprocal(relevant, total) == pytest.approx((1 / ranks).mean(), abs=0.01)
    for k in (1, 2, 5):
        assert retrieval._chance_recall(k, relevant, total) == pytest.approx((ranks <= k).mean(), abs=0.01)
