"""Idefics2 against transformers, both directions: logits, gradients, greedy text, round trips, processors, refusals."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from rebus.data.encoding import MediumSize
from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig
from rebus.data.preprocess.media import MediaSettings
from rebus.data.sample import Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import DataLossError, InvalidArgumentError
from rebus.generation.media import MediaFeatures
from rebus.models import save_model
from rebus.models.hf import export_folder, read_idefics2, write_idefics2
from rebus.models.hf.files import WEIGHTS_FILE
from rebus.models.hf.native_images import read_native, write_native
from rebus.models.media import collate, encoder_of, reader_of
from rebus.models.mllm import Mllm, MllmConfig
from tests.libs.models.hf.greedy import assert_same_text
from tests.libs.models.hf.idefics2_peers import (
    IMAGE,
    LATENTS,
    PATCH,
    PREPROCESSOR,
    SCALE,
    assert_same_model,
    idefics2,
    images,
    logits,
    padded,
    prompt,
    save,
)
from tests.libs.models.hf.peers import VOCAB, redraw
from tests.libs.models.hf.round_trips import assert_comes_back, assert_import_export_import, assert_same_weights

# Families whose blocks the connector's projection is built like.
TEXTS = ("mistral", "llama", "qwen2", "mixtral")


@pytest.mark.parametrize("text", TEXTS)
def test_logits_and_gradients_match_after_import_and_after_export(text: str, tmp_path: Path) -> None:
    theirs = idefics2(text)
    ours = read_idefics2(save(theirs, tmp_path / "theirs"))
    assert_same_model(ours, theirs)

    assert_comes_back(
        ours, theirs, tmp_path / "ours", write=write_idefics2, same=assert_same_model, max_shard_bytes=60_000
    )


@pytest.mark.parametrize(
    ("perceiver", "changes"),
    [
        ({}, {"tie_word_embeddings": True}),
        ({"hidden_size": 4096, "rms_norm_eps": 0.1}, {}),
        ({"resampler_n_heads": 2}, {}),
    ],
)
def test_variants_match(perceiver: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = idefics2(perceiver=perceiver, **changes)
    folder = save(theirs, tmp_path / "theirs")
    change_json(folder / "config.json", {f"perceiver_config.{name}": value for name, value in perceiver.items()})
    ours = read_idefics2(folder)
    assert (ours.decoder.lm_head is None) == changes.get("tie_word_embeddings", False)
    assert_same_model(ours, theirs)
    write_idefics2(ours, tmp_path / "ours")
    assert_same_model(ours, AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval())


QUARTERS = MediaSettings(splitter={"name": "quarters"})


def own(
    *, vocab_size: int = VOCAB, image_token_id: int = IMAGE, media: MediaSettings | None = None, **preprocess: Any
) -> Mllm:
    """A model of ours that was never transformers'."""
    encoder = {"image_size": 48, "patch_size": PATCH, "width": 24, "num_layers": 2, "num_heads": 3, "hidden_width": 40}
    resampler = {"num_tokens": LATENTS, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_width": 6}
    decoder = {"width": 32, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 40}
    config = MllmConfig(
        encoder={"name": "siglip-navit", **encoder},
        connector={"name": "perceiver-resampler", "projection_hidden_width": 40, **resampler},
        decoder={"name": "llama", "max_positions": 96, **decoder},
        vocab_size=vocab_size,
        image_token_id=image_token_id,
        preprocess=ImageProcessorConfig(**{"image_size": 48, "resize": "within", "min_size": 16, **preprocess}),
        media=media,
    )
    model = Mllm(config).eval()
    redraw(model, SCALE)
    return model


@pytest.mark.parametrize("preprocess", [{}, {"resize": "squash", "min_size": 0}])
def test_a_model_of_ours_becomes_one_of_theirs(preprocess: dict[str, Any], tmp_path: Path) -> None:
    ours = own(**preprocess)
    write_idefics2(ours, tmp_path / "ours")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    ids, shown = prompt(3, 9)[None], images(3)
    torch.testing.assert_close(logits(ours, ids, shown), theirs(input_ids=ids, **padded([shown])).logits)


def test_images_of_one_shape_may_be_a_batch() -> None:
    model = own()
    shown = torch.stack([images(1, seed)[0] for seed in range(3)])
    torch.testing.assert_close(model.encode_images(shown), model.encode_images(list(shown)))
    assert model.encode_images(shown).shape[1] == model.image_tokens == LATENTS


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="images: an image of 4x60 pixels is smaller than a patch"):
        own().encode_images([torch.zeros(3, 4, 60)])


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_the_same(count: int, cached: bool, tmp_path: Path) -> None:
    theirs = idefics2(seed=1)
    ids, shown = prompt(count, 9)[None], images(count)
    ours = read_idefics2(save(theirs, tmp_path))
    assert_same_text(ours, theirs, ids, ours.encode_images(shown), padded([shown]), cached=cached)


def test_import_export_import_changes_nothing(tmp_path: Path) -> None:
    assert_import_export_import(save(idefics2(), tmp_path / "theirs"), tmp_path, "Idefics2ForConditionalGeneration")


def encoded(height: int, width: int) -> bytes:
    """A PNG of colours that change from pixel to pixel."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = Image.fromarray(np.stack([3 * rows, 2 * columns, rows + columns], axis=-1).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


WORDS = Tokenizer.train(["what is this? a red cube. yes no two"], TokenizerConfig(vocab_size=280))


def save_tokenizer(folder: Path, *added: str) -> int:
    """A tokenizer of ours with more special tokens; returns the size of its vocabulary."""
    folder.mkdir(exist_ok=True)
    WORDS.save(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(added))
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


@pytest.mark.parametrize(("height", "width"), [(30, 70), (70, 30), (20, 24), (10, 64)])
def test_their_processor_does_what_ours_does(height: int, width: int, tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path / "words", "<fake_token_around_image>", "<end_of_utterance>")
    model = own(vocab_size=size, image_token_id=WORDS.image_token_id)
    save_model(model, tmp_path / "ours")
    shutil.copytree(tmp_path / "words", tmp_path / "ours", dirs_exist_ok=True)
    (tmp_path / "ours" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "theirs").eval()
    assert processor.chat_template == "{{ messages[0]['content'] }}"
    assert len(processor.tokenizer) == size

    picture = encoded(height, width)
    inputs = processor(images=[[Image.open(io.BytesIO(picture))]], text="<image> what is this?", return_tensors="pt")
    assert (inputs["input_ids"] == WORDS.image_token_id).sum() == LATENTS
    ours = ImageProcessor(model.config.preprocess)
    pixels = torch.from_numpy(ours.normalise(ours(picture)[None]))
    # Filters of several libraries differ by levels of 255.
    torch.testing.assert_close(pixels, inputs["pixel_values"][0], rtol=0, atol=5 / 255 / 0.5)
    shown = list(inputs["pixel_values"][0])
    torch.testing.assert_close(logits(model, inputs["input_ids"], shown), theirs(**inputs).logits)
    assert read_idefics2(tmp_path / "theirs").config.preprocess == model.config.preprocess


@pytest.mark.parametrize(("height", "width"), [(30, 70), (71, 33), (20, 25)])
@pytest.mark.parametrize("preprocess", [{}, {"resize": "squash", "min_size": 0}])
def test_split_images_are_theirs(height: int, width: int, preprocess: dict[str, Any], tmp_path: Path) -> None:
    """Pixels of the quarters and the whole, their tokens, the round trip, and what serves."""
    size = save_tokenizer(tmp_path / "words", "<fake_token_around_image>", "<end_of_utterance>")
    model = own(vocab_size=size, image_token_id=WORDS.image_token_id, media=QUARTERS, **preprocess)
    save_model(model, tmp_path / "ours")
    shutil.copytree(tmp_path / "words", tmp_path / "ours", dirs_exist_ok=True)
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "theirs").eval()
    back = read_idefics2(tmp_path / "theirs")
    assert (back.config.preprocess, back.config.media) == (model.config.preprocess, QUARTERS)
    assert back.config.encoding.max_images == 16 * 5

    picture, image = encoded(height, width), Segment(type="image", media=0)
    inputs = processor(images=[[Image.open(io.BytesIO(picture))]], text="<image> what is this?", return_tensors="pt")
    assert (inputs["input_ids"] == WORDS.image_token_id).sum() == 5 * LATENTS
    reader = reader_of(back)
    assert reader.size(image, picture, num_images=1, field="image") == MediumSize(5 * LATENTS, 5)
    media = collate([reader.read(image, picture, num_images=1, field="image")], reader.processor)
    masks = inputs["pixel_attention_mask"][0].bool()
    padded_images = zip(inputs["pixel_values"][0], masks, strict=True)
    shown = [pixels[:, mask.any(1)][:, :, mask.any(0)] for pixels, mask in padded_images]
    for found, expected in zip(media.pixels, shown, strict=True):
        # Filters of several libraries differ by levels of 255.
        torch.testing.assert_close(found, expected, rtol=0, atol=5 / 255 / 0.5)
    torch.testing.assert_close(logits(back, inputs["input_ids"], shown), theirs(**inputs).logits)

    row = encoder_of(back, WORDS).encode_prompt([image, Segment(text="what is this?")], [picture])
    features = MediaFeatures(back, 1 << 20)([(row, [picture])])
    torch.testing.assert_close(features, back.encode_images(media.pixels).flatten(0, 1))
    assert (row.input_ids == WORDS.image_token_id).sum() == 5 * LATENTS


def test_an_image_too_small_for_quarters_is_refused() -> None:
    model = own(media=QUARTERS)
    with pytest.raises(InvalidArgumentError, match=r"images\[0\]: has 1x9 pixels, too few for quarters"):
        reader_of(model).read(Segment(type="image"), encoded(1, 9), num_images=1, field="images[0]")
    with pytest.raises(ValueError, match="'quarters' makes no tiles of one canvas"):
        reader_of(model).processor.image(encoded(9, 9))


def test_a_tokenizer_without_the_tokens_around_images_gets_no_processor(tmp_path: Path) -> None:
    model = own(vocab_size=WORDS.vocab_size, image_token_id=WORDS.image_token_id)
    save_model(model, tmp_path / "ours")
    WORDS.save(tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "processor_config.json").exists()
    save_model(own(vocab_size=WORDS.vocab_size, image_token_id=WORDS.eos_token_id), tmp_path / "other")
    WORDS.save(tmp_path / "other")
    with pytest.raises(InvalidArgumentError, match="image_token_id: .* which Idefics2 calls <image>"):
        export_folder(tmp_path / "other", tmp_path / "refused")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(idefics2(), tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Sets values below dotted names."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        *parts, last = name.split(".")
        inner = values
        for part in parts:
            inner = inner[part]
        inner[last] = value
    path.write_text(json.dumps(values))


def test_names_of_the_bare_model_mean_the_same(folder: Path) -> None:
    expected = read_idefics2(folder).state_dict()
    tensors = load_file(folder / WEIGHTS_FILE)
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / WEIGHTS_FILE, {"format": "pt"})
    assert_same_weights(read_idefics2(folder).state_dict(), expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_token_id": 61}, "image_token_id: 61 is outside vocab_size=61"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"vision_config": None}, "config.json.vision_config"),
        ({"vision_config.num_channels": 4}, "vision_config.num_channels: 4"),
        ({"vision_config.hidden_size": 10**30}, "vision_config.hidden_size"),
        ({"vision_config.patch_size": 24}, "vision_config.patch_size: 24 exceeds images of 16"),
        ({"vision_config.num_attention_heads": 0}, "num_heads=0"),
        ({"perceiver_config.hidden_act": "gelu"}, "perceiver_config.hidden_act"),
        ({"perceiver_config.resampler_depth": "deep"}, "perceiver_config.resampler_depth"),
        ({"perceiver_config.num_key_value_heads": 3}, "num_kv_heads=3"),
        ({"text_config.hidden_act": "gelu"}, "config.json.text_config: mistral with gelu"),
        ({"text_config.model_type": "bloom"}, "config.json.text_config.model_type: unknown 'bloom'"),
    ],
)
def test_settings_without_a_counterpart_are_named(folder: Path, changes: dict[str, Any], named: str) -> None:
    change_json(folder / "config.json", changes)
    with pytest.raises(InvalidArgumentError, match=named):
        read_idefics2(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("model.connector.perceiver_resampler.latents", None, "lacks model.connector.perceiver_resampler.latents"),
        ("model.vision_model.post_layernorm.bias", None, "lacks model.vision_model.post_layernorm.bias"),
        ("model.text_model.norm.weight", None, "lacks model.text_model.norm.weight"),
        ("model.image_newline", torch.zeros(1), "unknown model.image_newline"),
        ("model.connector.perceiver_resampler.norm.weight", torch.zeros(3), r"norm.weight is \[3\], expected \[32\]"),
        ("connector.perceiver_resampler.norm.weight", torch.zeros(32), "are the same tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, name: str, tensor: Tensor | None, named: str) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors.pop(name, None)
    save_file({**tensors, **({} if tensor is None else {name: tensor})}, folder / WEIGHTS_FILE, {"format": "pt"})
    with pytest.raises(DataLossError, match=named):
        read_idefics2(folder)


@pytest.mark.parametrize("part", ["vision_config.num_hidden_layers", "perceiver_config.resampler_depth"])
def test_a_claim_of_endless_layers_costs_nothing(folder: Path, part: str) -> None:
    change_json(folder / "config.json", {part: 10**8})
    with pytest.raises(DataLossError, match="claims 100000000 layers"):
        read_idefics2(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type: unknown 'CLIPImageProcessor'"),
        ({"do_image_splitting": "often"}, "do_image_splitting"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"longest_edge": 48}}, "size: expected a shortest_edge and a longest_edge"),
        ({"size": {"shortest_edge": 64, "longest_edge": 48}}, "min_size=64"),
        ({"size": {"height": 32, "width": 40}}, "size: expected"),
    ],
)
def test_an_image_processor_without_a_counterpart_is_named(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | values))
    with pytest.raises(InvalidArgumentError, match=named):
        read_native(tmp_path)


def test_squares_are_read_back(tmp_path: Path) -> None:
    config = ImageProcessorConfig(image_size=48, resample="bicubic", mean=(0.1, 0.2, 0.3))
    for media in (None, QUARTERS):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(write_native(config, media)))
        assert read_native(tmp_path) == (config, media)


def changed(model: Mllm, part: str, **settings: Any) -> Mllm:
    spec = {**getattr(model.config, part), **settings}
    return Mllm(MllmConfig(**{**vars(model.config), part: spec, "preprocess_digest": ""}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: changed(model, "encoder", name="siglip2"), "encoder: an Idefics2 has no 'siglip2'"),
        (lambda model: changed(model, "encoder", feature_layer=-2), "encoder.feature_layer"),
        (lambda model: changed(model, "connector", projection_hidden_width=8), "projection_hidden_width: 8 is not 40"),
        (lambda model: changed(model, "decoder", activation="gelu"), "decoder: llama with gelu"),
        (lambda _: own(resize="longest", min_size=0), "preprocess.resize"),
        (lambda _: own(media=MediaSettings()), "media.splitter: an Idefics2 has no 'single', only quarters"),
    ],
)
def test_what_an_idefics2_cannot_say_is_not_exported(
    change: Callable[[Mllm], Mllm], named: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        write_idefics2(change(own()), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_of_squares_says_so() -> None:
    model = own()
    config = {**vars(model.config), "connector": {"name": "mlp"}, "preprocess_digest": ""}
    with pytest.raises(InvalidArgumentError, match=r"model.preprocess.resize: is 'within', the encoder reads squares"):
        Mllm(MllmConfig(**config))
    squares = Mllm(MllmConfig(**{**config, "preprocess": ImageProcessorConfig(image_size=48)}))
    with pytest.raises(InvalidArgumentError, match="images: siglip-navit and mlp do not read images of many shapes"):
        squares.encode_images(images(2))
