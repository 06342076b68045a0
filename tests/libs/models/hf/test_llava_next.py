"""LLaVA-NeXT against transformers, both directions: logits, gradients, greedy text, round trips, refusals."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig
from rebus.data.preprocess.any_resolution import cut
from rebus.data.preprocess.media import MediaSettings
from rebus.data.preprocess.splitters import AnyResolutionConfig, AnyResolutionSplitter
from rebus.data.sample import Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import DataLossError, InvalidArgumentError
from rebus.generation.media import MediaFeatures
from rebus.models import save_model
from rebus.models.gated_cross_attention import GatedCrossAttentionConfig
from rebus.models.hf import export_folder, read_llava_next, write_llava_next
from rebus.models.hf.files import WEIGHTS_FILE
from rebus.models.media import encoder_of
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.without_images import no_images
from tests.libs.models.hf.greedy import assert_same_text
from tests.libs.models.hf.llava_next_peers import (
    GRIDS,
    PREPROCESSOR,
    SIZES,
    assert_same_model,
    llava_next,
    logits,
    prompt,
    save,
    theirs_of,
    tiles,
)
from tests.libs.models.hf.llava_peers import SIDE
from tests.libs.models.hf.peers import redraw
from tests.libs.models.hf.round_trips import assert_comes_back, assert_import_export_import


@pytest.mark.parametrize(("tower", "text"), [("clip", "mistral"), ("siglip", "llama")])
def test_logits_and_gradients_match_after_import_and_after_export(tower: str, text: str, tmp_path: Path) -> None:
    theirs = llava_next(tower, text)
    ours = read_llava_next(save(theirs, tmp_path / "theirs"))
    assert_same_model(ours, theirs)

    assert_comes_back(
        ours, theirs, tmp_path / "ours", write=write_llava_next, same=assert_same_model, max_shard_bytes=40_000
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_says_whether_tables_are_one(tied: bool, tmp_path: Path) -> None:
    theirs = llava_next("clip", "qwen2", tie_word_embeddings=tied)
    ours = read_llava_next(save(theirs, tmp_path / "theirs"))
    assert (ours.decoder.lm_head is None) == tied
    assert_same_model(ours, theirs)
    write_llava_next(ours, tmp_path / "ours")
    assert_same_model(ours, AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval())


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES])
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_the_same(sizes: tuple[tuple[int, int], ...], cached: bool, tmp_path: Path) -> None:
    theirs = llava_next(seed=1)
    ours = read_llava_next(save(theirs, tmp_path))
    ids, images = prompt(ours, sizes, 9)[None], tiles(ours, sizes)
    assert_same_text(ours, theirs, ids, ours.encode_tiles(images, sizes), theirs_of(images, sizes), cached=cached)


def test_import_export_import_changes_nothing(tmp_path: Path) -> None:
    assert_import_export_import(save(llava_next(), tmp_path / "theirs"), tmp_path, "LlavaNextForConditionalGeneration")


# Five levels of 255, as pixels are normalised here.
LEVELS = 5 / 255 / 0.5
WORDS = Tokenizer.train(["what is this? a red cube. yes no two"], TokenizerConfig(vocab_size=280))


def own(**preprocess: Any) -> Mllm:
    """A model of ours that was never transformers'."""
    encoder = {"image_size": SIDE, "patch_size": 8, "width": 24, "num_layers": 2, "num_heads": 3, "hidden_width": 40}
    decoder = {"width": 32, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 40}
    config = MllmConfig(
        encoder={"name": "clip", "feature_layer": -2, **encoder},
        connector={"name": "tiled-mlp", "grids": [list(grid) for grid in GRIDS]},
        decoder={"name": "llama", "max_positions": 512, **decoder},
        vocab_size=WORDS.vocab_size,
        image_token_id=WORDS.image_token_id,
        preprocess=ImageProcessorConfig(image_size=SIDE, **preprocess),
    )
    model = Mllm(config).eval()
    redraw(model)
    return model


def test_their_processor_cuts_and_counts_as_we_do(tmp_path: Path) -> None:
    model = own()
    save_model(model, tmp_path / "ours")
    WORDS.save(tmp_path / "ours")
    (tmp_path / "ours" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "theirs").eval()
    ours = ImageProcessor(model.config.preprocess)
    assert processor.chat_template == "{{ messages[0]['content'] }}"
    for height, width in ((30, 70), (90, 17), (200, 201), (20, 20)):
        picture = Image.effect_noise((width, height), 50).convert("RGB")
        inputs = processor(images=[picture], text="<image> what is this?", return_tensors="pt")
        assert (inputs["input_ids"] == WORDS.image_token_id).sum() == model.connector.count((height, width), side=SIDE)
        grid = AnyResolutionSplitter(AnyResolutionConfig(grids=GRIDS))(height, width, side=SIDE)
        cut_tiles = torch.from_numpy(ours.normalise(cut(ours, np.array(picture), grid)))
        # Filters of several libraries differ by levels of 255; a pixel in another place differs by tens.
        torch.testing.assert_close(cut_tiles, inputs["pixel_values"][0], rtol=0, atol=LEVELS)
        shown = logits(model, inputs["input_ids"], list(inputs["pixel_values"]), [(height, width)])
        torch.testing.assert_close(shown, theirs(**inputs).logits)
    assert read_llava_next(tmp_path / "theirs").config.preprocess == model.config.preprocess


def test_what_serves_sees_the_tiles(tmp_path: Path) -> None:
    """Two images of unlike numbers of tokens in a row: as tiles cut by hand, and as in transformers."""
    model = own()
    save_model(model, tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "theirs").eval()
    model = read_llava_next(tmp_path / "theirs")
    assert model.config.encoding.max_images == 16 * 5

    sizes = ((30, 70), (90, 17))
    pictures = [Image.effect_noise((width, height), 50).convert("RGB") for height, width in sizes]
    shown = [Segment(type="image", media=at) for at in (0, 1)]
    row = encoder_of(model, WORDS).encode_prompt([*shown, Segment(text="what is this?")], [png(p) for p in pictures])
    counts = [model.connector.count(size, side=SIDE) for size in sizes]
    assert [medium.num_tokens for medium in row.media] == counts
    assert counts[0] != counts[1]

    processor, splitter = (
        ImageProcessor(model.config.preprocess),
        AnyResolutionSplitter(AnyResolutionConfig(grids=GRIDS)),
    )
    pixels = [cut(processor, np.array(p), splitter(*size, side=SIDE)) for p, size in zip(pictures, sizes, strict=True)]
    by_hand = [torch.from_numpy(processor.normalise(cut_tiles)) for cut_tiles in pixels]
    features = MediaFeatures(model, 1 << 20)([(row, [png(p) for p in pictures])])
    assert features is not None
    torch.testing.assert_close(features, model.encode_tiles(by_hand, sizes))
    ids = torch.from_numpy(row.input_ids)[None]
    found = model.logits(model.decode(model.embed(ids, features), torch.from_numpy(row.positions)[None]))
    torch.testing.assert_close(found, theirs(input_ids=ids, **theirs_of(by_hand, sizes)).logits)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_batch_without_images_touches_the_newline() -> None:
    model = own()
    no_images(model).backward()
    assert model.connector.newline.grad is not None
    assert not model.connector.newline.grad.any()


@pytest.mark.parametrize("part", [{"media": MediaSettings()}, {"cross_attention": GatedCrossAttentionConfig()}])
def test_what_needs_equally_many_tokens_an_image_is_refused(part: dict[str, Any]) -> None:
    model = own()
    with pytest.raises(InvalidArgumentError, match=f"model.{next(iter(part))}: does not go with 'tiled-mlp'"):
        Mllm(replace(model.config, **part, preprocess_digest=""))
    with pytest.raises(InvalidArgumentError, match="model.connector: 'tiled-mlp' gives images of many sizes"):
        _ = model.image_grid
    with pytest.raises(InvalidArgumentError, match="expected text or image, found video"):
        encoder_of(model, WORDS).encode_prompt([Segment(type="video", media=0)], [b""])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(llava_next(), tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_grid_pinpoints": [[32, 48]]}, "image_grid_pinpoints: tiles of 32 pixels do not fill 32x48"),
        ({"image_grid_pinpoints": [[0, 32]]}, r"image_grid_pinpoints: grids=\[\(0, 1\)\]"),
        ({"image_grid_pinpoints": [[32, 3200]]}, r"image_grid_pinpoints: grids=\[\(1, 100\)\]"),
        ({"image_grid_pinpoints": "wide"}, "config.json.image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[32, 64]]}, "preprocessor_config.json.image_grid_pinpoints: .* not the model's"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias"),
        ({"vision_feature_select_strategy": "full"}, "select_strategy: 'full' of clip is not supported"),
    ],
)
def test_settings_without_a_counterpart_are_named(folder: Path, changes: dict[str, Any], named: str) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(InvalidArgumentError, match=named):
        read_llava_next(folder)


def test_a_newline_that_lacks_or_does_not_fit_is_named(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    name = next(name for name in tensors if name.endswith("image_newline"))
    for changed, named in (({}, "lacks image_newline"), ({name: torch.zeros(3)}, r"image_newline is \[3\]")):
        kept = {key: value for key, value in tensors.items() if key != name}
        save_file({**kept, **changed}, folder / WEIGHTS_FILE, {"format": "pt"})
        with pytest.raises(DataLossError, match=named):
            read_llava_next(folder)


def test_an_image_processor_of_another_kind_is_named(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(
        json.dumps(PREPROCESSOR | {"image_processor_type": "CLIPImageProcessor"})
    )
    with pytest.raises(InvalidArgumentError, match="image_processor_type: unknown 'CLIPImageProcessor'"):
        read_llava_next(folder)


def test_what_a_llava_next_cannot_say_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="preprocess.resize: a LLaVA-NeXT has no word for 'crop'"):
        write_llava_next(own(resize="crop"), tmp_path / "new")
    plain = MllmConfig(**{**vars(own().config), "connector": {"name": "mlp"}})
    with pytest.raises(InvalidArgumentError, match="connector: a LLaVA-NeXT has no 'mlp', only tiled-mlp"):
        write_llava_next(Mllm(plain), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_tiles_that_do_not_fit_the_size_are_refused() -> None:
    model = own()
    with pytest.raises(InvalidArgumentError, match="images: expected 5 tiles of 16 tokens, found "):
        model.encode_tiles([torch.zeros(2, 3, SIDE, SIDE)], [(64, 64)])
    plain = Mllm(MllmConfig(**{**vars(model.config), "connector": {"name": "mlp"}}))
    with pytest.raises(InvalidArgumentError, match="model.connector: 'mlp' does not put tiles together"):
        plain.encode_tiles([torch.zeros(2, 3, SIDE, SIDE)], [(64, 64)])
