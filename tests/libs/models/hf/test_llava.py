"""LLaVA against transformers, both directions: logits, gradients, greedy text, packed rows, round trips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from rebus.data.encoding import IGNORE_INDEX, Row
from rebus.data.preprocess import ImageProcessorConfig
from rebus.models.hf import read_llava, write_llava
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.packing import pack_rows
from tests.libs.models.hf.llava_peers import (
    IMAGE,
    IMAGE_TOKENS,
    SIDE,
    assert_same_greedy,
    assert_same_model,
    llava,
    logits,
    pixels,
    prompt,
    save,
)
from tests.libs.models.hf.peers import PLAIN, VOCAB, redraw
from tests.libs.models.hf.round_trips import assert_comes_back, assert_import_export_import

TOWERS = ("clip", "siglip")
# Each family of text models with one of the towers.
PAIRS = [(TOWERS[at % 2], text) for at, text in enumerate(PLAIN)]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("text", PLAIN)
def test_logits_and_gradients_match_after_import_and_after_export(tower: str, text: str, tmp_path: Path) -> None:
    theirs = llava(tower, text)
    ours = read_llava(save(theirs, tmp_path / "theirs"))
    assert_same_model(ours, theirs)

    assert_comes_back(
        ours, theirs, tmp_path / "ours", write=write_llava, same=assert_same_model, max_shard_bytes=40_000
    )


@pytest.mark.parametrize(
    ("tower", "changes", "vision"),
    [
        ("clip", {"vision_feature_layer": -1}, {}),
        ("clip", {"vision_feature_layer": [1]}, {"image_size": 35}),
        ("siglip", {"vision_feature_layer": -1}, {"vision_use_head": False}),
        ("siglip", {"vision_feature_layer": 3}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}),
        ("siglip", {"vision_feature_layer": [1]}, {}),
    ],
)
def test_any_one_layer_may_be_read(tower: str, changes: dict[str, Any], vision: dict[str, Any], tmp_path: Path) -> None:
    theirs = llava(tower, "llama", vision=vision, **changes)
    side = vision.get("image_size", SIDE)
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    ours = read_llava(save(theirs, tmp_path / "theirs", {"image_processor_type": "CLIPImageProcessor", **size}))
    if side == SIDE:
        assert_same_model(ours, theirs)
    write_llava(ours, tmp_path / "ours")
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    ids, images = prompt(1, 9)[None], torch.randn(1, 3, side, side)
    torch.testing.assert_close(logits(ours, ids, images), theirs(input_ids=ids, pixel_values=images).logits)
    torch.testing.assert_close(logits(ours, ids, images), back(input_ids=ids, pixel_values=images).logits)


def own(tower: str, text: str, **connector: object) -> Mllm:
    """A model of ours that was never transformers'."""
    sizes = {"width": 24, "num_layers": 3, "num_heads": 3, "hidden_width": 40}
    decoder = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "hidden_width": 40}
    config = MllmConfig(
        encoder={"name": tower, "image_size": SIDE, "patch_size": 8, "feature_layer": -2, **sizes},
        connector={"name": "mlp", **connector},
        decoder={"name": text, "max_positions": 96, **decoder},
        vocab_size=VOCAB,
        image_token_id=IMAGE,
        preprocess=ImageProcessorConfig(image_size=SIDE),
    )
    model = Mllm(config).eval()
    redraw(model)
    return model


@pytest.mark.parametrize(("tower", "text"), PAIRS)
def test_a_model_of_ours_becomes_one_of_theirs(tower: str, text: str, tmp_path: Path) -> None:
    ours = own(tower, text)
    write_llava(ours, tmp_path / "ours")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    if theirs.config.tie_word_embeddings == ours.decoder.config.tie_embeddings:
        assert_same_model(ours, theirs)
    else:  # transformers cannot tie the tables of GPT-2 and OPT
        assert text in ("gpt2", "opt")
        ids, images = prompt(2, 9)[None], pixels(2)
        torch.testing.assert_close(logits(ours, ids, images), theirs(input_ids=ids, pixel_values=images).logits)
        assert torch.equal(theirs.lm_head.weight, theirs.get_input_embeddings().weight)


def test_a_tied_table_stays_one(tmp_path: Path) -> None:
    theirs = llava("clip", "llama-variants")
    ours = read_llava(save(theirs, tmp_path / "theirs"))
    assert ours.decoder.lm_head is None
    assert_same_model(ours, theirs)
    write_llava(ours, tmp_path / "ours")
    assert_same_model(ours, AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval())


@pytest.mark.parametrize(("tower", "text"), PAIRS)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_the_same(tower: str, text: str, images: int, cached: bool, tmp_path: Path) -> None:
    theirs = llava(tower, text, seed=1)
    ids = prompt(images, 9)[None]
    assert_same_greedy(read_llava(save(theirs, tmp_path)), theirs, ids, pixels(images), cached=cached)


@pytest.mark.parametrize(("tower", "text"), PAIRS)
def test_packed_branches_are_theirs_causal_rows(tower: str, text: str, tmp_path: Path) -> None:
    """Two images with two questions behind one copy of them, and a row without branches, in one flat batch."""
    theirs = llava(tower, text)
    ours = read_llava(save(theirs, tmp_path))
    prefix, plain = prompt(2, 9), prompt(1, 11, seed=7)
    ask = [torch.randint(VOCAB - 1, (length,)) for length in (5, 8)]
    rows = [row(prefix, *ask, images=2), row(plain, images=1)]
    images = pixels(3)
    packed = pack_rows(rows, image_token_id=IMAGE)
    by_row = [images[:2], images[2:]]
    features = ours.encode_images(torch.stack([by_row[at][index] for at, index in packed.images]))
    found = ours.logits(ours.forward_packed(packed, features))

    def expected(ids: Tensor, shown: Tensor) -> Tensor:
        return theirs(input_ids=ids[None], pixel_values=shown).logits[0]

    wholes = [expected(torch.cat([prefix, branch]), images[:2]) for branch in ask]
    by_row_logits = [torch.cat([wholes[0], wholes[1][len(prefix) :]]), expected(plain, images[2:])]
    torch.testing.assert_close(found, torch.stack([by_row_logits[where][at] for where, at in packed.origins]))


def row(prefix: Tensor, *branches: Tensor, images: int) -> Row:
    """Positions go on behind the prefix in every branch."""
    lengths = [len(prefix), *map(len, branches)]
    starts = [0, *[len(prefix)] * len(branches)]
    ids = torch.cat([prefix, *branches]).numpy()
    return Row(
        input_ids=ids,
        labels=np.full_like(ids, IGNORE_INDEX),
        positions=np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]),
        branches=np.repeat(np.arange(len(lengths)), lengths),
        images=tuple(range(images)),
    )


@pytest.mark.parametrize(("tower", "text"), PAIRS)
def test_import_export_import_changes_nothing(tower: str, text: str, tmp_path: Path) -> None:
    made = assert_import_export_import(
        save(llava(tower, text), tmp_path / "theirs"), tmp_path, "LlavaForConditionalGeneration"
    )
    assert made.config.decoder["name"] == text
    assert isinstance(made, Mllm)
    assert made.image_tokens == IMAGE_TOKENS
