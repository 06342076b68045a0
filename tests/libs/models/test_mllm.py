"""The whole model: images among words, packed branches, folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rebus.data.encoding import IGNORE_INDEX, Encoder, EncodingConfig, Row, attention_allowed
from rebus.data.sample import Sample, Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.models import load_model, save_model
from rebus.models.io import CONFIG_FILE, WEIGHTS_FILE, load_tensors, save_tensors
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.packing import pack_rows

TOKENIZER = Tokenizer.train(["what is this? a red cube. yes no two"], TokenizerConfig(vocab_size=280))


def build(**decoder: object) -> Mllm:
    torch.manual_seed(0)
    config = MllmConfig(
        encoder={"name": "conv-vit", "image_size": 64, "channels": [4, 8, 8, 16]},
        connector={"name": "average-pool", "grid_side": 2},
        decoder={
            "name": "llama",
            "width": 32,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "hidden_width": 48,
            **decoder,
        },
        vocab_size=TOKENIZER.vocab_size,
        image_token_id=TOKENIZER.image_token_id,
    )
    return Mllm(config).eval()


def encode(*segments: Segment, num_images: int = 0) -> Row:
    encoder = Encoder(TOKENIZER, image_tokens=4, config=EncodingConfig())
    return encoder.encode(Sample(id="x", segments=segments, media=[b""] * num_images))


def rows() -> list[Row]:
    """An image with two questions, two images with text between and one question, plain text, an image in a branch
    beside a long one."""
    image = Segment(type="image", media=0)
    ask, told = Segment(text="what is this?"), Segment(text="a red cube.", role="assistant", loss=True)

    def branch(segment: Segment, at: int) -> Segment:
        return Segment(**{**vars(segment), "branch": at})

    return [
        encode(image, branch(ask, 1), branch(told, 1), branch(Segment(text="this?"), 2), branch(told, 2), num_images=1),
        encode(image, ask, Segment(type="image", media=1), branch(ask, 1), branch(told, 1), num_images=2),
        encode(told),
        encode(ask, branch(image, 1), branch(told, 1), *[branch(told, 2)] * 3, num_images=1),
    ]


def dense(model: Mllm, row: Row, features: Tensor | None) -> Tensor:
    """Hidden states ``[S, D]`` of one row by the masked path."""
    ids, positions = (torch.from_numpy(a)[None] for a in (row.input_ids, row.positions))
    mask = torch.from_numpy(attention_allowed(row.branches))[None]
    return model.decode(model.embed(ids, features), positions, mask)[0]


def test_packed_rows_equal_masked_rows_forward_and_gradient() -> None:
    model = build().double()  # sharp attention turns another order of float32 sums into differences of 1e-4
    batch = rows()
    pixels = [torch.randn(len(row.images), 3, 64, 64, dtype=torch.float64) for row in batch]
    packed = pack_rows(batch, image_token_id=TOKENIZER.image_token_id)
    features = model.encode_images(torch.stack([pixels[row][index] for row, index in packed.images]))
    flat = model.forward_packed(packed, features)

    each = [dense(model, row, model.encode_images(p) if len(p) else None) for row, p in zip(batch, pixels, strict=True)]
    expected = torch.stack([each[row][at] for row, at in packed.origins])
    # Every token but the last of each branch is there once, prefixes first, with the token that follows.
    last = {(r, at) for r, row in enumerate(batch) for at in range(len(row)) if row.branches[at] and _ends(row, at)}
    every = {(r, at) for r, row in enumerate(batch) for at in range(len(row))}
    assert sorted(map(tuple, packed.origins)) == sorted(every - last)
    for (r, at), target in zip(packed.origins, packed.targets.tolist(), strict=True):
        assert target == (IGNORE_INDEX if _ends(batch[r], at) else batch[r].labels[at + 1])
    prefix = [batch[row].branches[at] == 0 for row, at in packed.origins]
    assert prefix == sorted(prefix, reverse=True)
    assert min(len(packed.layout.prefixes), len(packed.layout.groups)) > 1
    torch.testing.assert_close(flat, expected)

    weights = torch.randn_like(flat)
    got = torch.autograd.grad((flat * weights).sum(), list(model.parameters()), allow_unused=True)
    want = torch.autograd.grad((expected * weights).sum(), list(model.parameters()), allow_unused=True)
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right)


def packed_hidden(model: Mllm, batch: list[Row], pixels: list[Tensor]) -> list[Tensor]:
    """Hidden states ``[tokens, D]`` of each row of one flat batch, in the order of the row's tokens."""
    packed = pack_rows(batch, image_token_id=TOKENIZER.image_token_id)
    shown = [pixels[row][index] for row, index in packed.images]
    flat = model.forward_packed(packed, model.encode_images(torch.stack(shown)) if shown else None)
    origins = torch.from_numpy(packed.origins)
    each = [torch.nonzero(origins[:, 0] == row)[:, 0] for row in range(len(batch))]
    return [flat[at[origins[at, 1].argsort()]] for at in each]


def test_documents_of_a_pack_equal_documents_alone() -> None:
    model = build().double()
    batch = rows()
    pixels = [torch.randn(len(row.images), 3, 64, 64, dtype=torch.float64) for row in batch]
    together = packed_hidden(model, batch, pixels)
    for row, shown, found in zip(batch, pixels, together, strict=True):
        torch.testing.assert_close(found, packed_hidden(model, [row], [shown])[0])


@pytest.mark.parametrize("changed", range(4))
def test_no_token_sees_another_document(changed: int) -> None:
    """Other words and pictures in one document leave every other as it was, bit for bit."""
    model = build()
    batch = rows()
    pixels = [torch.randn(len(row.images), 3, 64, 64) for row in batch]
    before = packed_hidden(model, batch, pixels)
    words = batch[changed].input_ids.copy()
    words[words != TOKENIZER.image_token_id] = TOKENIZER.encode("two")[0]
    batch[changed] = dataclasses.replace(batch[changed], input_ids=words)
    pixels[changed] = pixels[changed] + 1
    after = packed_hidden(model, batch, pixels)
    for index, (left, right) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(left, right) is (index != changed)


def test_positions_and_labels_end_with_their_document() -> None:
    batch = rows()
    packed = pack_rows(batch, image_token_id=TOKENIZER.image_token_id)
    for index, row in enumerate(batch):
        own = packed.origins[:, 0] == index
        assert packed.positions[own].min() == 0
        assert packed.positions[own].max() < len(row)
    borders = np.flatnonzero(np.diff(packed.runs.numpy()))  # the last token of each prefix and branch but the last
    ends = [at for at in borders if _ends(batch[packed.origins[at, 0]], packed.origins[at, 1])]
    assert len(ends) >= len(batch) - 1
    assert (packed.targets[torch.tensor(ends)] == IGNORE_INDEX).all()


def _ends(row: Row, at: int) -> bool:
    return at + 1 == len(row) or row.branches[at + 1] != row.branches[at]


def test_a_branch_equals_the_same_words_alone_after_the_prefix() -> None:
    model = build()
    image, ask = Segment(type="image", media=0), Segment(text="what is this?")
    other = Segment(text="a red cube.", role="assistant", branch=1)
    packed_row = encode(image, other, Segment(**{**vars(ask), "branch": 2}), num_images=1)
    alone = encode(image, Segment(**{**vars(ask), "branch": 1}), num_images=1)
    features = model.encode_images(torch.randn(1, 3, 64, 64))

    together = dense(model, packed_row, features)[packed_row.branches == 2]

    torch.testing.assert_close(together, dense(model, alone, features)[alone.branches == 1])


def test_features_take_the_place_of_placeholders_in_order() -> None:
    model = build()
    row = rows()[1]
    features = torch.randn(2, 4, 32)
    embeds = model.embed(torch.from_numpy(row.input_ids)[None], features)[0]
    at = torch.from_numpy(row.input_ids == TOKENIZER.image_token_id)
    torch.testing.assert_close(embeds[at], features.flatten(0, 1))
    words = torch.from_numpy(row.input_ids)[~at]
    torch.testing.assert_close(embeds[~at], model.decoder.embed_tokens(words))


def test_a_wrong_number_of_images_is_named() -> None:
    model = build()
    ids = torch.from_numpy(rows()[0].input_ids)[None]
    with pytest.raises(InvalidArgumentError, match="the text has 4 image tokens, the images give 8"):
        model.embed(ids, torch.randn(2, 4, 32))
    with pytest.raises(InvalidArgumentError, match="the images give 0"):
        model.embed(ids)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_answers_the_same(tmp_path: Path, tied: bool) -> None:
    model = build(tie_embeddings=tied)
    save_model(model, tmp_path)
    state = torch.get_rng_state()
    loaded = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(loaded, Mllm)
    assert loaded.config == model.config
    features = model.encode_images(torch.randn(1, 3, 64, 64))
    row = rows()[0]
    assert torch.equal(dense(loaded, row, features), dense(model, row, features))


def test_damaged_folders_are_refused_by_name(tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    tensors = load_tensors(tmp_path / WEIGHTS_FILE)
    config = (tmp_path / CONFIG_FILE).read_text()

    save_tensors({**tensors, "decoder.norm.weight": torch.zeros(31)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(DataLossError, match=r"decoder.norm.weight is float32 \[31\], expected float32 \[32\]"):
        load_model(tmp_path)
    save_tensors({**tensors, "decoder.norm.weight": torch.zeros(32).half()}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(DataLossError, match="float16"):
        load_model(tmp_path)
    save_tensors({k: v for k, v in tensors.items() if k != "decoder.norm.weight"}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(DataLossError, match=r"lacks decoder.norm.weight"):
        load_model(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataLossError, match="unreadable"):
        load_model(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(NotFoundError, match=r"model.safetensors"):
        load_model(tmp_path)

    (tmp_path / CONFIG_FILE).write_text(json.dumps({**json.loads(config), "architecture": "mlm"}))
    with pytest.raises(InvalidArgumentError, match="unknown 'mlm'; known: causal-lm, dual-encoder, mllm"):
        load_model(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**json.loads(config), "vocabsize": 3}))
    with pytest.raises(InvalidArgumentError, match="did you mean 'vocab_size'"):
        load_model(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(InvalidArgumentError, match="not valid JSON"):
        load_model(tmp_path)


def test_an_encoder_of_another_image_size_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="is 64, the encoder reads 32"):
        Mllm(MllmConfig(encoder={"name": "vit", "image_size": 32}, vocab_size=9, image_token_id=3))


def test_a_model_of_other_preprocessing_is_refused(tmp_path: Path) -> None:
    model = build()
    save_model(model, tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["preprocess_digest"] == model.config.preprocess_digest != ""
    config["preprocess_digest"] = "0" * 64
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(FailedPreconditionError, match="was trained with preprocessing 000000000000"):
        load_model(tmp_path)
