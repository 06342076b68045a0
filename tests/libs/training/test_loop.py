"""The loop: exact resume, freezing, accounting, refusals."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rebus.data.stream import StreamState
from rebus.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from rebus.models import load_model
from rebus.models.encoders.efficientnet import EfficientNetLite0, EfficientNetLite0Config
from rebus.models.mllm import Mllm
from rebus.models.moe import moe_layers
from rebus.training import checkpoints
from rebus.training.feedback import Feedback
from rebus.training.loop import Trained, deterministic
from rebus.training.prefetch import Prefetcher
from rebus.training.recipe import TrainingRecipe, recipe_from_mapping
from rebus.training.task import Batch
from tests.libs.training import scenes_run
from tests.libs.training.scenes_run import Recorder, Stop, execute, recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Recorder]:
    """The uninterrupted run."""
    recorder = Recorder(tmp_path_factory.mktemp("whole"))
    return execute(recipe(), recorder), recorder


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("killed_after", [4, 5, 7, 8, 10])
def test_a_killed_run_goes_on_bit_for_bit(whole: tuple[Trained, Recorder], tmp_path: Path, killed_after: int) -> None:
    """Killed within a stage, at its end and between checkpoints: later losses, weights and counts are the same."""
    trained, reference = whole
    first = Recorder(tmp_path / "first", stop_after=killed_after)
    with pytest.raises(Stop):
        execute(recipe(), first)
    step = max(first.checkpoints)
    assert step == killed_after - killed_after % 4

    second = Recorder(tmp_path / "second")
    resumed = execute(recipe(), second, resume_from=first.checkpoints[step])

    assert second.losses == reference.losses[step:]
    assert same(resumed.model.state_dict(), trained.model.state_dict())
    assert resumed.state == trained.state


def test_two_runs_of_a_seed_are_equal_and_another_seed_differs(whole: tuple[Trained, Recorder], tmp_path: Path) -> None:
    again, other = Recorder(tmp_path / "again"), Recorder(tmp_path / "other")
    assert same(execute(recipe(), again).model.state_dict(), whole[0].model.state_dict())
    assert again.losses == whole[1].losses
    execute(recipe(), other, seed=1)
    assert other.losses != whole[1].losses


def test_frozen_parts_do_not_move_batch_statistics_included(tmp_path: Path) -> None:
    stages = [{**scenes_run.RECIPE["stages"][1], "trainable": ["connector", "decoder"]}]
    recorder = Recorder(tmp_path)
    model = execute(recipe(stages=stages, checkpoint={"every_steps": 1}), recorder).model.state_dict()
    before = load_model(recorder.checkpoints[1] / "model").state_dict()
    moved = {name.split(".")[0] for name in model if not torch.equal(model[name], before[name])}
    assert moved == {"connector", "decoder"}


def test_an_encoder_with_published_weights_starts_from_them(tmp_path: Path) -> None:
    task = {
        **scenes_run.RECIPE["task"],
        "encoder": {"name": "efficientnet-lite0", "image_size": 32},
        "connector": {"name": "mlp"},
    }
    stages = [{**scenes_run.RECIPE["stages"][1], "steps": 1, "trainable": ["connector", "decoder"]}]
    plan = recipe_from_mapping({**scenes_run.RECIPE, "task": task, "stages": stages})
    published = EfficientNetLite0(EfficientNetLite0Config(image_size=32))
    published.load_pretrained()
    model = execute(plan, Recorder(tmp_path)).model
    assert isinstance(model, Mllm)
    assert same(model.vision_encoder.state_dict(), published.state_dict())


def test_a_stage_trains_the_parts_it_names_and_no_others(whole: tuple[Trained, Recorder], tmp_path: Path) -> None:
    """The decoder's layers wait for their stage: they are as a run drew them that never trains them."""
    early, late = (load_model(whole[1].checkpoints[step] / "model").state_dict() for step in (4, 8))
    stages = [{**scenes_run.RECIPE["stages"][0], "steps": 1, "trainable": ["vision_encoder"]}]
    drawn = execute(recipe(stages=stages), Recorder(tmp_path)).model.state_dict()
    name = "decoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(early[name], drawn[name])
    assert not torch.equal(late[name], early[name])
    table = "decoder.embed_tokens.weight"
    assert not torch.equal(early[table], drawn[table])


def test_what_was_consumed_is_counted_by_source(whole: tuple[Trained, Recorder]) -> None:
    consumed = whole[0].state.consumed
    # 5 steps of 4 captions, then 6 steps of 1 caption and 3 of all.
    assert consumed["captions"].samples == 5 * 4 + 6
    assert consumed["all"].samples == 6 * 3
    assert consumed["captions"].images == consumed["captions"].samples
    assert consumed["captions"].tokens > 17 * 26


def test_reports_hold_every_loss_and_keep_their_rhythm(whole: tuple[Trained, Recorder]) -> None:
    reports = whole[1].reports
    assert [(r["step"], r["stage"]) for r in reports] == [
        (3, "recognition"),
        (5, "recognition"),
        (6, "instruction"),
        (9, "instruction"),
        (11, "instruction"),
    ]
    assert [len(r["losses"]) for r in reports] == [3, 2, 1, 3, 2]
    for report in reports:
        assert report["loss"] == pytest.approx(sum(report["losses"]) / len(report["losses"]))
        assert 0 <= report["data_wait_share"] <= 1
        assert report["tokens_per_second"] > 0
    last = reports[-1]
    expected = last["loss/language-modeling"] + 0.3 * last["loss/region-words"]
    assert last["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_last_checkpoint_holds_a_model_folder(whole: tuple[Trained, Recorder]) -> None:
    folder = whole[1].checkpoints[11]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "model/config.json",
        "model/model.md",
        "model/model.safetensors",
        "model/tokenizer.json",
        "state.json",
    ]
    assert same(load_model(folder / "model").state_dict(), whole[0].model.state_dict())


def test_a_checkpoint_of_another_run_is_refused(whole: tuple[Trained, Recorder], tmp_path: Path) -> None:
    folder = whole[1].checkpoints[4]
    with pytest.raises(FailedPreconditionError, match="seed 0 -> 7"):
        execute(recipe(), Recorder(tmp_path), seed=7, resume_from=folder)
    with pytest.raises(FailedPreconditionError, match="recipe_digest"):
        execute(recipe(report_every_steps=4), Recorder(tmp_path), resume_from=folder)


def test_a_part_that_the_model_lacks_is_named(tmp_path: Path) -> None:
    stages = [{**scenes_run.RECIPE["stages"][0], "trainable": ["encoder"]}]
    with pytest.raises(InvalidArgumentError, match=r"recipe.stages.0.trainable: the model has no part 'encoder'"):
        execute(recipe(stages=stages), Recorder(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    stages = [{**scenes_run.RECIPE["stages"][0], "optimizer": {"name": "adamw", "lr": 1e30}, "max_grad_norm": 0}]
    with pytest.raises(FailedPreconditionError, match="stage 'recognition', step"):
        execute(recipe(stages=stages), Recorder(tmp_path))


def test_thread_and_determinism_settings_are_put_back() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with deterministic(1):
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_batches_come_in_order_and_an_error_reaches_the_consumer() -> None:
    def make(last: int) -> Iterator[Batch]:
        for step in range(last):
            if step == 5:
                raise InvalidArgumentError("row 5 is bad")
            yield Batch(data=step)

    with Prefetcher(make(9), 9) as batches:
        seen = []
        with pytest.raises(InvalidArgumentError, match="row 5 is bad"):
            seen.extend(batch.data for batch in batches)
    assert seen == [0, 1, 2, 3, 4]
    with Prefetcher(make(9), 5) as batches:
        assert [batch.data for batch in batches] == [0, 1, 2, 3, 4]


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    with Prefetcher((Batch(data=step) for step in range(10_000)), 10_000) as batches:
        assert next(iter(batches)).data == 0
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_rewards_are_waited_for_and_kept_as_long_as_a_draw_may_ask() -> None:
    feedback = Feedback({5: {"a": 1.0}}, 8)
    assert feedback.of(5) == {"a": 1.0}
    assert feedback.of(7) == {}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(feedback.of, 9)
        feedback.tell({})
        assert not waiting.done()
        feedback.tell({"b": 2.0})
        assert waiting.result(timeout=30) == {"b": 2.0}
        assert feedback.recent == {9: {"b": 2.0}}
        ended = pool.submit(feedback.of, 10)
        feedback.close()
        with pytest.raises(CancelledError):
            ended.result(timeout=30)


# Two rows at most a pack, a mixture that learns, and a source that joins on the way.
LEARNING: dict[str, Any] = {
    "stages": [
        {
            "name": "packed",
            "steps": 11,
            "batch_size": 2,
            "pack": {"max_tokens": 420, "max_images": 4, "buffer": 8},
            "mixer": {"name": "odm", "accumulate": "sum"},
            "mixture": {"captions": 1},
            "mixture_changes": [{"from_sample": 24, "mixture": {"captions": 1, "all": 1}}],
        },
    ],
    "checkpoint": {"every_steps": 1},
    "task": {"encoding": {"max_length_tokens": 420, "max_images": 4}},
}


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Recorder]:
    recorder = Recorder(tmp_path_factory.mktemp("learning"))
    return execute(recipe(**LEARNING), recorder), recorder


@pytest.mark.parametrize("step", [1, 3, 6, 9])
def test_packs_and_a_mixture_that_learns_go_on_bit_for_bit(
    learning: tuple[Trained, Recorder], tmp_path: Path, step: int
) -> None:
    trained, reference = learning
    resumed = Recorder(tmp_path)
    again = execute(recipe(**LEARNING), resumed, resume_from=reference.checkpoints[step])
    assert resumed.losses == reference.losses[step:]
    assert same(again.model.state_dict(), trained.model.state_dict())
    assert again.state == trained.state
    assert resumed.streams == {at: reference.streams[at] for at in range(step + 1, 12)}


def test_a_mixture_learns_from_the_losses_of_each_source(learning: tuple[Trained, Recorder]) -> None:
    states = learning[1].streams
    assert [states[step].mixer["updates"] for step in range(1, 11)] == [max(0, step - 4) for step in range(1, 11)]
    assert states[11] == StreamState()  # the stage has ended
    rewards = states[10].mixer["rewards"]
    assert set(rewards) == {"captions", "all"}
    # Six updates, each by about a tenth of a loss near ln(300) = 5.7; who joins late starts at the others' mean.
    assert all(1 < reward < 6 for reward in rewards.values())
    assert states[10].waiting
    consumed = learning[0].state.consumed
    assert consumed["all"].samples > 0
    assert all(taken.tokens > taken.samples * 17 for taken in consumed.values())
    assert sum(taken.tokens for taken in consumed.values()) <= 11 * 2 * 420


def test_a_pack_below_the_bound_of_a_row_and_a_mixture_without_a_loss_are_named(tmp_path: Path) -> None:
    stage = LEARNING["stages"][0]
    with pytest.raises(InvalidArgumentError, match=r"recipe.stages.packed.pack: max_tokens=64 .* below .* 420 and 4"):
        execute(recipe(**{**LEARNING, "stages": [{**stage, "pack": {"max_tokens": 64}}]}), Recorder(tmp_path))
    blind = {**stage, "objectives": [{"name": "region-words"}]}
    with pytest.raises(InvalidArgumentError, match=r"recipe.stages.packed.mixer.name: 'odm' learns from the decoder"):
        execute(recipe(**{**LEARNING, "stages": [blind]}), Recorder(tmp_path))


def test_a_checkpoint_whose_stream_is_elsewhere_is_refused(learning: tuple[Trained, Recorder], tmp_path: Path) -> None:
    folder = shutil.copytree(learning[1].checkpoints[6], tmp_path / "checkpoint")
    state = checkpoints.read_state(folder)
    state.stream = StreamState()
    checkpoints.write_state(state, folder)
    with pytest.raises(FailedPreconditionError, match="the checkpoint is of step 6, its stream of step 0"):
        execute(recipe(**LEARNING), Recorder(tmp_path), resume_from=folder)


# A decoder of experts, balanced by losses and by biases at once, so that a resumed run must keep both.
_DECODER: dict[str, Any] = {
    **scenes_run.RECIPE["task"]["decoder"],
    "num_layers": 2,
    "moe": {"num_experts": 4, "hidden_width": 24, "router": {"name": "sigmoid", "bias_update_rate": 0.01}},
    "moe_every": 2,
}
_STAGE = {
    **scenes_run.RECIPE["stages"][1],
    "objectives": [{"name": "language-modeling"}, {"name": "expert-balance"}],
}
_BIAS = "decoder.layers.1.mlp.gate.e_score_correction_bias"


def experts(**stage: Any) -> TrainingRecipe:
    return recipe(task={"decoder": _DECODER}, stages=[{**_STAGE, **stage}])


@pytest.mark.paper("mm1")
def test_a_recipe_trains_a_decoder_of_experts_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "whole")
    trained = execute(experts(), recorder)
    assert recorder.losses[-1] < recorder.losses[0]
    last = recorder.reports[-1]
    assert last["loss"] == pytest.approx(last["loss/language-modeling"] + last["loss/expert-balance"], rel=1e-5)
    early = load_model(recorder.checkpoints[4] / "model").state_dict()
    for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
        found = trained.model.state_dict()[f"decoder.layers.1.mlp.{name}"]
        assert not torch.equal(found, early[f"decoder.layers.1.mlp.{name}"])

    resumed = Recorder(tmp_path / "resumed")
    again = execute(experts(), resumed, resume_from=recorder.checkpoints[4])
    assert resumed.losses == recorder.losses[4:]
    assert same(again.model.state_dict(), trained.model.state_dict())


@pytest.mark.parametrize("objectives", [[{"name": "language-modeling"}], _STAGE["objectives"]])
def test_biases_of_sigmoid_routers_follow_the_load(objectives: list[dict[str, Any]], tmp_path: Path) -> None:
    """After each optimizer step, with or without a loss that takes the routing first."""
    model = execute(experts(steps=1, objectives=objectives), Recorder(tmp_path / "one")).model
    first = model.state_dict()[_BIAS]
    assert set((first / 0.01).round().tolist()) <= {-1.0, 0.0, 1.0}
    assert first.any()
    assert all(layer.routing is None for _, layer in moe_layers(model))
    later = execute(experts(steps=5, objectives=objectives), Recorder(tmp_path / "five")).model.state_dict()[_BIAS]
    assert 0.01 < later.abs().max() <= 0.05 + 1e-6


def test_biases_of_a_frozen_decoder_stay(tmp_path: Path) -> None:
    model = execute(experts(steps=2, trainable=["connector"]), Recorder(tmp_path)).model
    assert not model.state_dict()[_BIAS].any()
