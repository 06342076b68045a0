"""``rebus models import`` and ``export``: there and back, from a folder and from the store, and errors in a line."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from rebus.models import load_model, save_model
from rebus.models.mllm import Mllm
from rebus.store import Store, documents, manifests
from rebus.v1.model_pb2 import Model, ModelVersion
from tests.libs.models.hf import idefics2_peers, llava_next_peers
from tests.libs.models.hf.internvl_peers import PREPROCESSOR, internvl
from tests.libs.models.hf.llava_peers import llava, pixels, prompt, save
from tests.libs.models.hf.peers import peer
from tests.libs.models.hf.round_trips import assert_same_weights
from tests.tiny_model import tiny_model, tiny_tokenizer
from tests.tools.rebus.conftest import Command


def test_a_language_model_goes_in_and_comes_out(rebus: Command, tmp_path: Path) -> None:
    theirs = peer("qwen3")
    theirs.save_pretrained(tmp_path / "hf")

    result = rebus("models", "import", "hf", tmp_path / "hf", tmp_path / "rebus", "--format", "json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    assert (done["decoder"], done["vocabulary"]) == ("qwen3", 61)
    assert done["parameters"] == sum(parameter.numel() for parameter in theirs.parameters())

    result = rebus("models", "export", tmp_path / "rebus", tmp_path / "back")
    assert result.exit_code == 0, result.stderr
    assert "Qwen3ForCausalLM" in result.stdout
    ids = torch.arange(9)[None]
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(back(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("kind", ["llava", "internvl"])
def test_a_multimodal_model_goes_in_and_comes_out(rebus: Command, kind: str, tmp_path: Path) -> None:
    theirs = llava("siglip", "qwen2") if kind == "llava" else internvl("300m", "qwen2")
    save(theirs, tmp_path / "hf", None if kind == "llava" else PREPROCESSOR)
    result = rebus("models", "import", "hf", tmp_path / "hf", tmp_path / "rebus", "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["parameters"] == sum(parameter.numel() for parameter in theirs.parameters())

    result = rebus("models", "export", tmp_path / "rebus", tmp_path / "back")
    assert result.exit_code == 0, result.stderr
    assert type(theirs).__name__ in result.stdout
    ids = prompt(1, 9, image_tokens=theirs.config.image_seq_length)[None]
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "back").eval()
    found, expected = (model(input_ids=ids, pixel_values=pixels(1)).logits for model in (back, theirs))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [idefics2_peers, llava_next_peers])
def test_a_model_of_many_shapes_goes_in_and_comes_out(rebus: Command, make: ModuleType, tmp_path: Path) -> None:
    theirs = make.idefics2() if make is idefics2_peers else make.llava_next()
    make.save(theirs, tmp_path / "hf")
    result = rebus("models", "import", "hf", tmp_path / "hf", tmp_path / "rebus")
    assert result.exit_code == 0, result.stderr
    result = rebus("models", "export", tmp_path / "rebus", tmp_path / "back")
    assert result.exit_code == 0, result.stderr
    assert type(theirs).__name__ in result.stdout
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    assert_same_weights(back.state_dict(), theirs.state_dict())


def test_a_versions_decoder_is_exported(rebus: Command, store: Store, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    save_model(tiny_model(tokenizer), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    name = "models/m/versions/1"
    manifest = manifests.publish_folder(store, name, tmp_path / "model")
    documents.create(store, ModelVersion(name=name, architecture="mllm", digest=manifest.digest))
    documents.create(store, Model(name="models/m", latest_version=name, aliases={"best": name}))

    result = rebus("models", "export", "m", tmp_path / "whole")
    assert result.exit_code != 0
    assert "encoder: a LLaVA has no 'vit'" in result.stderr
    for at, version in enumerate(("m", "m/1", "m/best")):
        result = rebus("models", "export", version, tmp_path / f"hf{at}", "--decoder-only")
        assert result.exit_code == 0, result.stderr
        result = rebus("models", "card", version)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == (tmp_path / "model" / "model.md").read_text()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf2")
    assert theirs.config.eos_token_id == tokenizer.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "hf2")(" yes")["input_ids"] == tokenizer.encode("yes")
    model = load_model(tmp_path / "model")
    assert isinstance(model, Mllm)
    decoder = model.decoder
    ids = torch.arange(9)[None]
    hidden = decoder(decoder.embed_tokens(ids), ids)
    torch.testing.assert_close(theirs(ids).logits, decoder.logits(hidden))


def test_an_imported_model_becomes_a_version(rebus: Command, tmp_path: Path) -> None:
    peer("llama").save_pretrained(tmp_path / "hf")
    assert rebus("models", "import", "hf", tmp_path / "hf", tmp_path / "lm").exit_code == 0
    for _ in range(2):  # the same files are the same version
        result = rebus("models", "add", "lm", tmp_path / "lm", "--from", "tiny LLaMA", "--format", "json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["name"] == "models/lm/versions/1"
    result = rebus("models", "card", "lm")
    assert result.stdout == (tmp_path / "lm" / "model.md").read_text()
    (tmp_path / "lm" / "model.safetensors").write_bytes(b"")
    result = rebus("models", "add", "lm", tmp_path / "lm")
    assert result.exit_code != 0
    assert "model.safetensors: unreadable" in result.stderr


def test_what_goes_wrong_is_said_in_a_line(rebus: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    peer("llama").save_pretrained(tmp_path / "hf")
    for arguments, reason in (
        (("import", "hf", tmp_path / "empty", tmp_path / "new"), "no config.json"),
        (("import", "hf", tmp_path / "hf", tmp_path / "new", "--max-gib", "0.000001"), "more than 1073"),
        (("import", "hf", tmp_path / "hf", tmp_path / "hf"), "holds something"),
        (("import", "gguf", tmp_path / "none.gguf", tmp_path / "new"), "none.gguf"),
        (("export", "nobody", tmp_path / "new"), "models/nobody"),
    ):
        result = rebus("models", *arguments)
        assert result.exit_code != 0
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_version_made_without_a_card_is_said_in_a_line(rebus: Command, history: Store) -> None:
    result = rebus("models", "card", "m/champion")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: models/m/versions/1 has no part model.md\n"
