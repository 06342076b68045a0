"""A run that starts from models of the store: what is taken, what is grown, what is refused, what lineage says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from rebus.config import to_plain
from rebus.data.dataset import write_version
from rebus.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from rebus.errors import InvalidArgumentError, NotFoundError
from rebus.jobs.context import JobContext
from rebus.models import load_model
from rebus.models.causal_lm import CausalLm
from rebus.models.hf import import_folder
from rebus.models.mllm import Mllm
from rebus.store import Store, documents, lineage, model_versions
from rebus.training import job
from rebus.training.recipe import TrainingRecipe, recipe_from_mapping
from rebus.training.runs import checked_run
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.training_pb2 import Run
from tests.libs.models.hf.llava_peers import llava, save
from tests.libs.models.hf.peers import peer
from tests.libs.training.scenes_run import RECIPE, Recorder, execute, samples

# Longer than the tokenizer, as many published tables are.
TABLE = 320
TEXTS = ["the user asks the assistant about an image", "is there a red cube?", "how many spheres are there?"]


def tokenizer_file(folder: Path, *, more: int = 0) -> None:
    """A language model's own tokenizer, which cuts texts short and pads them where nobody stops it."""
    backend = BackendTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_tokens([f"more{at}" for at in range(more)])
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported LLaMA."""
    root = tmp_path_factory.mktemp("lm")
    peer("llama", vocab_size=TABLE, bos_token_id=0, eos_token_id=1).save_pretrained(root / "hf")
    tokenizer_file(root / "hf")
    import_folder(root / "hf", root / "model")
    return root / "model"


TASK: Mapping[str, Any] = {key: RECIPE["task"][key] for key in ("name", "encoder", "preprocess")}
WHOLE_STAGE: Mapping[str, Any] = {**RECIPE["stages"][1], "objectives": [{"name": "language-modeling"}]}


def plan(parts: list[str] | None = None, *, model: str = "models/lm", **changes: Any) -> TrainingRecipe:
    return recipe_from_mapping(values(parts, model=model, **changes))


def values(parts: list[str] | None = None, *, model: str = "models/lm", **changes: Any) -> dict[str, Any]:
    start = [{"model": model, "parts": parts or ["decoder"]}]
    return {**RECIPE, "task": TASK, "start_from": start, "stages": [WHOLE_STAGE], **changes}


@pytest.mark.paper("mm1")
def test_a_pretrained_decoder_keeps_its_weights_and_tokenizer(language_model: Path, tmp_path: Path) -> None:
    """MM1's start: a language model as it was, a new connector; what is frozen stays what was imported."""
    recorder = Recorder(tmp_path)
    stages = [{**WHOLE_STAGE, "steps": 2, "trainable": ["connector"]}]
    trained = execute(plan(stages=stages), recorder, start_from={"decoder": language_model})
    model, theirs = trained.model, load_model(language_model)
    assert isinstance(model, Mllm)
    assert isinstance(theirs, CausalLm)
    assert model.config.decoder == theirs.config.decoder
    old = theirs.decoder.state_dict()
    new = model.decoder.state_dict()
    tables = {"embed_tokens.weight", "lm_head.weight"}
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - tables)

    own = Tokenizer.adopt(language_model)[0]
    kept = Tokenizer.load(recorder.checkpoints[2] / "model")
    assert kept.digest == own.digest
    base = own.vocab_size - len(SPECIAL_TOKENS)
    for name in tables & old.keys():
        assert torch.equal(new[name][:base], old[name][:base])
        assert torch.equal(new[name][own.bos_token_id], old[name][0])
        assert torch.equal(new[name][own.eos_token_id], old[name][1])
        like = own.encode("assistant")
        torch.testing.assert_close(new[name][own.assistant_token_id], old[name][like].mean(0))
        assert not torch.equal(new[name][own.assistant_token_id], new[name][own.user_token_id])
        assert len(new[name]) == own.vocab_size == model.config.vocab_size

    ids = torch.tensor([own.encode(TEXTS[1])])
    positions = torch.arange(ids.shape[1])[None]
    found = model.logits(model.decode(model.embed(ids), positions))[..., :base]
    torch.testing.assert_close(found, theirs(ids)[..., :base], rtol=0, atol=0)


def test_texts_are_neither_cut_nor_padded_and_old_ids_stay(language_model: Path) -> None:
    tokenizer, added = Tokenizer.adopt(language_model)
    assert added == list(SPECIAL_TOKENS)
    assert len(tokenizer.encode("a")) == 1
    assert len(tokenizer.encode(TEXTS[0])) > 4
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert tokenizer.image_token_id not in tokenizer.encode("<image>")
    before = BackendTokenizer.from_file(str(language_model / "tokenizer.json"))
    before.no_truncation()
    before.no_padding()
    assert tokenizer.encode(TEXTS[0]) == before.encode(TEXTS[0]).ids


def test_a_run_from_a_model_goes_on_bit_for_bit(language_model: Path, tmp_path: Path) -> None:
    start = {"decoder": language_model}
    whole = Recorder(tmp_path / "whole")
    trained = execute(plan(), whole, start_from=start)
    assert whole.losses[-1] < whole.losses[0]
    again = Recorder(tmp_path / "again")
    resumed = execute(plan(), again, start_from=start, resume_from=whole.checkpoints[4])
    assert again.losses == whole.losses[4:]
    assert all(torch.equal(v, trained.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())


def test_a_whole_llava_is_trained_on(tmp_path: Path) -> None:
    folder = save(llava("clip", "llama", vocab_size=TABLE), tmp_path / "hf")
    tokenizer_file(folder)
    import_folder(folder, tmp_path / "model")
    parts = ["vision_encoder", "connector", "decoder"]
    stages = [{**WHOLE_STAGE, "steps": 1, "trainable": ["decoder"]}]
    recipe = plan(parts, task={"name": "mllm"}, stages=stages)
    model = execute(recipe, Recorder(tmp_path), start_from=dict.fromkeys(parts, tmp_path / "model")).model
    theirs = load_model(tmp_path / "model")
    assert isinstance(model, Mllm)
    assert isinstance(theirs, Mllm)
    assert model.config.preprocess_digest == theirs.config.preprocess_digest
    for part in ("vision_encoder", "connector"):
        old = getattr(theirs, part).state_dict()
        assert all(torch.equal(old[name], value) for name, value in getattr(model, part).state_dict().items())


def test_a_model_of_ours_goes_on_without_new_tokens(tmp_path: Path) -> None:
    first = Recorder(tmp_path / "first")
    trained = execute(recipe_from_mapping(RECIPE), first).model
    folder = first.checkpoints[11] / "model"
    parts = ["vision_encoder", "connector", "decoder"]
    stages = [{**WHOLE_STAGE, "steps": 1, "trainable": ["connector"]}]
    second = Recorder(tmp_path / "second")
    recipe = plan(parts, task={"name": "mllm"}, stages=stages)
    model = execute(recipe, second, start_from=dict.fromkeys(parts, folder)).model
    moved = {n.split(".")[0] for n, v in model.state_dict().items() if not torch.equal(v, trained.state_dict()[n])}
    assert moved == {"connector"}
    files = [at / "tokenizer.json" for at in (folder, second.checkpoints[1] / "model")]
    assert Tokenizer.load(files[0].parent).digest == Tokenizer.load(files[1].parent).digest


def test_what_does_not_fit_is_named(language_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(language_model, bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(InvalidArgumentError, match=r"recipe.start_from: .*no tokenizer.json"):
        execute(plan(), Recorder(tmp_path), start_from={"decoder": bare})
    tokenizer_file(bare, more=TABLE)
    with pytest.raises(InvalidArgumentError, match=r"recipe.start_from: .*beyond the 320 rows"):
        execute(plan(), Recorder(tmp_path), start_from={"decoder": bare})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["decoders"]}, r"start_from.0.parts.0: task 'mllm' cannot take 'decoders' .* take decoder, vision"),
        ({"task": {**TASK, "decoder": {"name": "llama"}}}, r"recipe.task.decoder: comes with 'decoder' from models/lm"),
        ({"task": {**TASK, "tokenizer": {}}}, r"recipe.task.tokenizer: comes with 'decoder'"),
        ({"parts": ["decoder", "decoder"]}, "takes decoder more than once"),
        ({"start_from": [{"model": "models/lm", "parts": []}]}, "must name at least one part"),
        ({"start_from": [{"model": "models/lm", "parts": [f"p{at}"]} for at in range(9)]}, "at most 8 models"),
        (
            {"task": {"name": "contrastive"}},
            "task 'contrastive' cannot take 'decoder' from a model; it can take no part",
        ),
    ],
)
def test_a_recipe_that_cannot_start_so_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        plan(**changes)


def new_run(store: Store, model: str) -> Run:
    version = write_version(store, "datasets/scenes", samples())
    text = yaml.safe_dump(to_plain(values(model=model, stages=[{**WHOLE_STAGE, "steps": 2}])))
    return Run(name="runs/tiny", recipe=text, datasets={"scenes": version.name})


def test_a_run_starts_from_a_version_of_the_store_and_its_lineage_says_so(
    store: Store, language_model: Path, tmp_path: Path
) -> None:
    first = model_versions.import_folder(store, "models/lm", language_model, imported_from="tiny-llama")
    assert (first.name, first.architecture, first.run) == ("models/lm/versions/1", "causal-lm", "")
    assert model_versions.import_folder(store, "models/lm", language_model, imported_from="x").name == first.name
    model_versions.set_alias(store, "models/lm", "base", first.name)

    run = checked_run(store, new_run(store, "models/lm/versions/base"))
    assert dict(run.model_versions) == {"models/lm/versions/base": first.name}
    run.name = "runs/tiny"
    documents.create(store, run)
    # What the alias or the newest version becomes later is nothing to a run that was created before.
    other = tmp_path / "other"
    shutil.copytree(language_model, other)
    (other / "model.md").write_text("another")
    second = model_versions.import_folder(store, "models/lm", other, imported_from="other")
    model_versions.set_alias(store, "models/lm", "base", second.name)
    context = JobContext(store, run.name, tmp_path / "cache")
    job.run(context)
    context.flush()

    documents.update(store, Run, run.name, lambda document: setattr(document.job, "state", JobStatus.SUCCEEDED))
    version = model_versions.register(store, "models/m", run.name)
    assert list(version.parents) == [first.name]
    edges = {(getattr(e, "from"), e.relation, e.to) for e in lineage.walk(store, version.name).edges}
    assert {
        (version.name, "started_from", first.name),
        (run.name, "started_from", first.name),
        (first.name, "imported_from", "source:tiny-llama"),
    } <= edges


def test_a_run_from_a_model_that_is_not_there_is_refused_at_once(store: Store, language_model: Path) -> None:
    model_versions.import_folder(store, "models/lm", language_model, imported_from="tiny-llama")
    run = new_run(store, "models/lm")
    assert dict(checked_run(store, run).model_versions) == {"models/lm": "models/lm/versions/1"}
    parts = yaml.safe_dump(to_plain(values(["vision_encoder"], task={"name": "mllm"})))
    cases = (
        ("models/none", NotFoundError, "recipe.start_from.0.model: no models/none"),
        ("models/lm/versions/9", NotFoundError, "recipe.start_from.0.model: no models/lm/versions/9"),
        ("models/lm/versions/best", NotFoundError, "has no alias 'best'"),
        ("lm", InvalidArgumentError, "recipe.start_from.0.model: expected models/<id>"),
        (None, InvalidArgumentError, "is a causal-lm; 'vision_encoder' comes from a model of mllm or dual-encoder"),
    )
    for model, error, message in cases:
        text = parts if model is None else yaml.safe_dump(to_plain(values(model=model)))
        with pytest.raises(error, match=message):
            checked_run(store, Run(name=run.name, recipe=text, datasets=run.datasets))
