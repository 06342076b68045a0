"""InternVL against transformers, both directions: logits, gradients, greedy text, tensors byte for byte, refusals."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.models.internvl.processing_internvl import InternVLProcessor

from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.media import MediaProcessor, MediaSettings
from rebus.data.sample import Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import DataLossError, InvalidArgumentError
from rebus.generation.media import MediaFeatures
from rebus.models import load_model, save_model
from rebus.models.encoders.video import FramePositionsConfig
from rebus.models.hf import export_folder, import_folder, read_internvl, read_tiles, write_internvl
from rebus.models.hf.files import WEIGHTS_FILE
from rebus.models.media import encoder_of
from rebus.models.mllm import Mllm, MllmConfig
from tests.libs.models.hf.internvl_peers import IMAGE_TOKENS, PREPROCESSOR, internvl
from tests.libs.models.hf.llava_peers import (
    IMAGE,
    SIDE,
    assert_same_greedy,
    assert_same_model,
    logits,
    pixels,
    prompt,
    save,
)
from tests.libs.models.hf.peers import redraw
from tests.libs.models.hf.round_trips import assert_comes_back, assert_same_weights

# InternVL 3 has Qwen 2, 3.5 has Qwen 3, 2 had Llama.
PAIRS = [("300m", "qwen2"), ("6b", "qwen3"), ("300m", "llama-variants")]


@pytest.mark.parametrize(("form", "text"), PAIRS)
def test_logits_and_gradients_match_after_import_and_after_export(form: str, text: str, tmp_path: Path) -> None:
    theirs = internvl(form, text)
    ours = read_internvl(save(theirs, tmp_path / "theirs", PREPROCESSOR))
    assert ours.image_tokens == IMAGE_TOKENS
    assert_same_model(ours, theirs)

    assert_comes_back(
        ours, theirs, tmp_path / "ours", write=write_internvl, same=assert_same_model, max_shard_bytes=40_000
    )


@pytest.mark.parametrize(
    ("changes", "vision"),
    [
        ({}, {"use_mean_pooling": False}),
        ({"vision_feature_layer": 3}, {}),
        ({"vision_feature_layer": -2}, {"use_mean_pooling": False}),
        ({"downsample_ratio": 0.25, "image_seq_length": 1}, {"layer_norm_eps": 1e-3}),
        ({"downsample_ratio": 1.0, "image_seq_length": 16}, {"hidden_act": "gelu_pytorch_tanh"}),
    ],
)
def test_any_one_layer_and_any_ratio(changes: dict[str, Any], vision: dict[str, Any], tmp_path: Path) -> None:
    theirs = internvl("300m", "qwen2", vision=vision, **changes)
    ours = read_internvl(save(theirs, tmp_path / "theirs", PREPROCESSOR))
    assert_same_model(ours, theirs)
    write_internvl(ours, tmp_path / "ours")
    assert_same_model(ours, AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval())


def test_the_whole_says_whether_tables_are_tied(tmp_path: Path) -> None:
    theirs = internvl("300m", "llama-variants", tie_word_embeddings=False)
    assert theirs.config.text_config.tie_word_embeddings
    ours = read_internvl(save(theirs, tmp_path, PREPROCESSOR))
    assert ours.decoder.lm_head is not None
    assert_same_model(ours, theirs)
    change(tmp_path, "config.json", {"tie_word_embeddings": True})
    with pytest.raises(DataLossError, match="ties the embeddings"):
        read_internvl(tmp_path)


def of_two_projections(state: dict[str, Tensor]) -> None:
    query, key, value = state["blocks.1.qkv_proj.weight"].chunk(3)
    state["blocks.1.qkv_proj.weight"] = torch.cat([key, query, value])


def of_a_transposed_one(state: dict[str, Tensor]) -> None:
    query, key, value = state["blocks.0.qkv_proj.weight"].chunk(3)
    state["blocks.0.qkv_proj.weight"] = torch.cat([query.T, key, value])


def of_a_scale(state: dict[str, Tensor]) -> None:
    state["blocks.0.scale2"] = torch.ones_like(state["blocks.0.scale2"])


def of_the_scales_order(state: dict[str, Tensor]) -> None:
    state["blocks.2.scale1"], state["blocks.2.scale2"] = state["blocks.2.scale2"], state["blocks.2.scale1"]


def of_the_class_token(state: dict[str, Tensor]) -> None:
    state["class_token"] = torch.zeros_like(state["class_token"])


@pytest.mark.parametrize(
    "mistake", [of_two_projections, of_a_transposed_one, of_a_scale, of_the_scales_order, of_the_class_token]
)
def test_a_mistaken_mapping_would_be_seen(mistake: Callable[[dict[str, Tensor]], None], tmp_path: Path) -> None:
    theirs = internvl("300m", "qwen2")
    ours = read_internvl(save(theirs, tmp_path, PREPROCESSOR))
    state = dict(ours.vision_encoder.state_dict())
    mistake(state)
    ours.vision_encoder.load_state_dict(state)
    with pytest.raises(AssertionError):
        assert_same_model(ours, theirs)


@pytest.mark.parametrize(("form", "text"), PAIRS[:2])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_the_same(form: str, text: str, images: int, cached: bool, tmp_path: Path) -> None:
    theirs = internvl(form, text, seed=1)
    ids = prompt(images, 9, image_tokens=IMAGE_TOKENS)[None]
    ours = read_internvl(save(theirs, tmp_path, PREPROCESSOR))
    assert_same_greedy(ours, theirs, ids, pixels(images), cached=cached)


@pytest.mark.parametrize(("form", "text"), PAIRS)
def test_their_folder_comes_back_byte_for_byte(form: str, text: str, tmp_path: Path) -> None:
    theirs = save(internvl(form, text), tmp_path / "theirs", PREPROCESSOR)
    (theirs / "chat_template.jinja").write_text("{{ messages }}")
    made = import_folder(theirs, tmp_path / "first")
    assert isinstance(made, Mllm)
    assert_same_weights(load_model(tmp_path / "first").state_dict(), made.state_dict())
    assert export_folder(tmp_path / "first", tmp_path / "back") == "InternVLForConditionalGeneration"
    assert_same_weights(load_file(tmp_path / "back" / WEIGHTS_FILE), load_file(theirs / WEIGHTS_FILE))
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == "{{ messages }}"

    again = import_folder(tmp_path / "back", tmp_path / "second")
    assert again.config == made.config
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


TILED = MediaSettings(splitter={"name": "aspect", "min_tiles": 1, "max_tiles": 6})
TOKENIZER = Tokenizer.train(["what is this? a red cube. yes no two"], TokenizerConfig(vocab_size=280))


def own(
    *,
    encoder: dict[str, Any] | None = None,
    connector: dict[str, Any] | None = None,
    decoder: str = "qwen2",
    media: MediaSettings | None = None,
    parts: dict[str, Any] | None = None,
    **preprocess: Any,
) -> Mllm:
    """A model of ours that was never transformers'."""
    sizes = {"patch_size": 8, "width": 24, "num_layers": 2, "num_heads": 3, "hidden_width": 40}
    config = MllmConfig(
        encoder={"name": "internvit", "image_size": SIDE, **sizes, **(encoder or {})},
        connector=connector or {"name": "pixel-shuffle"},
        decoder={"name": decoder, "width": 32, "num_layers": 1, "num_heads": 4, "num_kv_heads": 4, "hidden_width": 40},
        vocab_size=TOKENIZER.vocab_size,
        image_token_id=TOKENIZER.image_token_id,
        preprocess=ImageProcessorConfig(image_size=SIDE, **preprocess),
        media=media,
        **(parts or {}),
    )
    model = Mllm(config).eval()
    redraw(model)
    return model


@pytest.mark.parametrize("decoder", ["qwen2", "gpt2", "llama"])
def test_a_model_of_ours_becomes_one_of_theirs(decoder: str, tmp_path: Path) -> None:
    ours = own(decoder=decoder, encoder={"final_norm": True, "feature_layer": 2})
    write_internvl(ours, tmp_path / "ours")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    ids, images = torch.tensor([[7, *[TOKENIZER.image_token_id] * 8, 9, 8]]), pixels(2)
    torch.testing.assert_close(logits(ours, ids, images), theirs(input_ids=ids, pixel_values=images).logits)


def png(height: int, width: int) -> tuple[Image.Image, bytes]:
    rows, columns = np.mgrid[0:height, 0:width]
    image = Image.fromarray(np.stack([3 * rows, 2 * columns, rows + columns], axis=-1).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return image, buffer.getvalue()


def test_their_processor_does_what_ours_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and tiles of two images, and logits of both, also by what serves."""
    model = own(resample="bicubic", media=TILED)
    save_model(model, tmp_path / "ours")
    TOKENIZER.save(tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    # Their processor of videos needs torchvision, which is not installed; nothing here is a video.
    monkeypatch.setattr(InternVLProcessor, "get_attributes", classmethod(lambda cls: ["image_processor", "tokenizer"]))
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    theirs: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "theirs").eval()

    pictures = [png(40, 80), png(30, 30)]
    text = "<bos><image><image><user> what is this?"
    inputs = processor(images=[image for image, _ in pictures], text=text, return_tensors="pt")
    media = MediaProcessor(read_tiles(tmp_path / "theirs", image_size=SIDE))
    tiles = [media.image(data) for _, data in pictures]
    assert [len(tile) for tile in tiles] == [3, 1]
    words = [TOKENIZER.user_token_id, *TOKENIZER.encode(" what is this?")]
    expected = [TOKENIZER.bos_token_id, *[TOKENIZER.image_token_id] * 4 * IMAGE_TOKENS, *words]
    assert inputs["input_ids"][0].tolist() == expected
    shown = torch.from_numpy(media.image_processor.normalise(np.concatenate([tile.pixels for tile in tiles])))
    torch.testing.assert_close(shown, inputs["pixel_values"])
    found = logits(model, inputs["input_ids"], shown)
    torch.testing.assert_close(found, theirs(**{k: v for k, v in inputs.items() if k != "num_patches"}).logits)
    back = read_internvl(tmp_path / "theirs")
    assert (back.config.preprocess, back.config.media) == (model.config.preprocess, TILED)

    shown_twice = [Segment(type="image", media=at) for at in (0, 1)]
    media_of_both = [data for _, data in pictures]
    row = encoder_of(back, TOKENIZER).encode_prompt([*shown_twice, Segment(text="what is this?")], media_of_both)
    assert [medium.num_tokens for medium in row.media] == [3 * IMAGE_TOKENS, IMAGE_TOKENS]
    features = MediaFeatures(back, 1 << 20)([(row, media_of_both)])
    assert features is not None
    expected_features = theirs.get_image_features(inputs["pixel_values"]).pooler_output
    torch.testing.assert_close(features, expected_features.flatten(0, 1))


def test_bounds_of_the_grid_come_back(tmp_path: Path) -> None:
    """A model of single squares is one of a single tile."""
    for media, bounds in ((TILED, (1, 6)), (None, (1, 1))):
        folder = tmp_path / str(bounds)
        save_model(own(resample="bicubic", media=media), folder / "ours")
        export_folder(folder / "ours", folder / "theirs")
        written = json.loads((folder / "theirs" / "preprocessor_config.json").read_text())
        assert (written["min_patches"], written["max_patches"]) == bounds
        back = read_internvl(folder / "theirs")
        assert back.config.media == media
        assert back.config.encoding.max_images == 16 * (1 if media is None else 7)


@pytest.mark.parametrize("size", [(20, 100), (97, 33), (64, 64), (32, 32), (60, 90), (50, 21)])
def test_tiles_are_theirs(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | {"min_patches": 2}))
    image, data = png(*size)
    media = MediaProcessor(read_tiles(tmp_path, image_size=SIDE))
    expected = AutoImageProcessor.from_pretrained(tmp_path)(image, crop_to_patches=True, return_tensors="pt")
    found = torch.from_numpy(media.image_processor.normalise(media.image(data).pixels))
    torch.testing.assert_close(found, expected["pixel_values"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(internvl("300m", "qwen2"), tmp_path_factory.mktemp("internvl"), PREPROCESSOR)


def change(folder: Path, file: str, changes: dict[str, Any]) -> None:
    """Sets values below dotted names."""
    values = json.loads((folder / file).read_text())
    for name, value in changes.items():
        *parts, last = name.split(".")
        inner = values
        for part in parts:
            inner = inner[part]
        inner[last] = value
    (folder / file).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_feature_select_strategy": "full"}, "config.json.vision_feature_select_strategy: 'full' of internvit"),
        ({"vision_feature_layer": [-2, -1]}, "config.json.vision_feature_layer: .* several layers"),
        ({"vision_feature_layer": 4}, "feature_layer=4 is outside"),
        ({"vision_feature_layer": 3, "vision_config.use_mean_pooling": False}, "vision_feature_layer: 3 is the last"),
        ({"projector_hidden_act": "relu"}, "config.json.projector_hidden_act"),
        ({"downsample_ratio": 0.4}, "config.json.downsample_ratio: 0.4"),
        ({"downsample_ratio": 1 / 3}, "config.json.downsample_ratio: .* of a grid of 4 x 4"),
        ({"downsample_ratio": 0.0}, "config.json.downsample_ratio"),
        ({"downsample_ratio": 1e-300}, "config.json.downsample_ratio"),
        ({"downsample_ratio": -1.0}, "config.json.downsample_ratio"),
        ({"image_token_id": 61}, "config.json.image_token_id: 61 is outside vocab_size=61"),
        ({"quantization_config": {"bits": 4}}, "config.json.quantization_config"),
        ({"text_config.model_type": "bloom"}, "config.json.text_config.model_type: unknown 'bloom'"),
        ({"vision_config.model_type": "clip_vision_model"}, "config.json.vision_config.model_type: unknown"),
        ({"vision_config.num_channels": 4}, "config.json.vision_config.num_channels: 4"),
        ({"vision_config.image_size": [32, 40]}, "config.image_size: expected a square"),
        ({"vision_config.image_size": [10**30, 10**30]}, "config.json.vision_config.image_size"),
        ({"vision_config.norm_type": "batch_norm"}, "norm_type: expected one of layer_norm, rms_norm"),
        ({"vision_config.use_mask_token": True}, "use_mask_token: True"),
        ({"vision_config.use_absolute_position_embeddings": False}, "use_absolute_position_embeddings: False"),
        ({"vision_config.hidden_act": "relu"}, "hidden_act: expected one of"),
        ({"vision_config.layer_scale_init_value": "small"}, "vision_config.layer_scale_init_value"),
    ],
)
def test_settings_without_a_counterpart_are_named(
    saved: Path, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    change(folder, "config.json", changes)
    with pytest.raises(InvalidArgumentError, match=named):
        read_internvl(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type: unknown 'CLIPImageProcessor'"),
        ({"min_patches": 7}, "preprocessor_config.json.min_patches, .*max_patches: .* min_tiles=7"),
        ({"max_patches": 1000}, "max_tiles=1000"),
        ({"do_resize": False}, "preprocessor_config.json.do_resize"),
        ({"size": {"height": 40, "width": 40}}, "the encoder reads 32"),
        ({"max_patches": "many"}, "preprocessor_config.json.max_patches"),
    ],
)
def test_an_image_processor_without_a_counterpart_is_named(
    saved: Path, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    change(folder, "preprocessor_config.json", changes)
    with pytest.raises(InvalidArgumentError, match=named):
        read_internvl(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("vision_tower.encoder.layer.0.lambda_1", None, "lacks vision_tower.encoder.layer.0.lambda_1"),
        ("vision_tower.encoder.layer.0.lambda_3", torch.zeros(24), "unknown vision_tower.encoder.layer.0.lambda_3"),
        ("multi_modal_projector.layer_norm.weight", torch.zeros(24), r"layer_norm.weight is \[24\], expected \[96\]"),
        ("model.vision_tower.embeddings.cls_token", torch.zeros(1, 1, 24), "are the same tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    saved: Path, name: str, tensor: Tensor | None, named: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors.pop(name, None)
    save_file({**tensors, **({} if tensor is None else {name: tensor})}, folder / WEIGHTS_FILE, {"format": "pt"})
    with pytest.raises(DataLossError, match=named):
        read_internvl(folder)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: own(encoder={"name": "clip"}), "encoder: an InternVL has no 'clip', only internvit"),
        (lambda: own(encoder={"trained_size": 64}), "encoder.trained_size: 64"),
        (lambda: own(connector={"name": "mlp"}), "connector: an InternVL has no 'mlp', only pixel-shuffle"),
        (lambda: own(connector={"name": "pixel-shuffle", "projection": "linear"}), "connector.projection"),
        (lambda: own(resize="pad"), "preprocess.resize"),
        (lambda: own(media=MediaSettings(splitter={"name": "dynamic"})), "media.splitter: .* 'dynamic', only aspect"),
        (lambda: own(media=replace(TILED, frames={"name": "uniform", "num_frames": 3})), "media: an InternVL has no"),
        (lambda: own(media=TILED, parts={"frame_positions": FramePositionsConfig()}), "frame_positions: an InternVL"),
    ],
)
def test_what_an_internvl_cannot_say_is_not_exported(make: Callable[[], Mllm], named: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        write_internvl(make(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_older_names_mean_the_same(saved: Path, tmp_path: Path) -> None:
    """Names of the module, which transformers 5 has in memory."""
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    tensors = load_file(folder / WEIGHTS_FILE)

    def renamed(name: str) -> str:
        return "lm_head.weight" if "lm_head" in name else f"model.{name.replace('model.model.', 'model.')}"

    save_file({renamed(name): x for name, x in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    assert_same_weights(read_internvl(folder).state_dict(), read_internvl(saved).state_dict())
    assert read_internvl(saved).config.image_token_id == IMAGE
