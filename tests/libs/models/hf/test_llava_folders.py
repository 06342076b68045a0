"""Folders of LLaVAs: older names, image processors, what is refused and how it is named."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import DataLossError, InvalidArgumentError, NotFoundError
from rebus.models import save_model
from rebus.models.hf import export_folder, read_llava, write_llava
from rebus.models.hf.files import WEIGHTS_FILE
from rebus.models.hf.image_processors import read_preprocess, write_preprocess
from rebus.models.mllm import Mllm, MllmConfig
from tests.libs.models.hf.llava_peers import PREPROCESSOR, SIDE, llava, logits, save
from tests.libs.models.hf.peers import redraw
from tests.libs.models.hf.round_trips import assert_same_weights

SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": SIDE, "width": SIDE}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        tower: save(llava(tower, text), tmp_path_factory.mktemp(tower))
        for tower, text in (("clip", "gpt2"), ("siglip", "llama"))
    }


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(saved[name], tmp_path / name))

    return copied


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


def rename(folder: Path, name_of: Callable[[str], str]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name_of(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})


def published(name: str) -> str:
    name = name.replace("vision_tower.", "vision_tower.vision_model.")
    return (
        name.replace("language_model.model.h.", "language_model.transformer.h.")
        .replace("language_model.model.w", "language_model.transformer.w")
        .replace("language_model.model.ln_f", "language_model.transformer.ln_f")
    )


def of_the_module(name: str) -> str:
    if "lm_head" in name:
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("name_of", [published, of_the_module])
def test_older_and_newer_names_mean_the_same(
    folder: Callable[[str], Path], tower: str, name_of: Callable[[str], str]
) -> None:
    path = folder(tower)
    expected = read_llava(path).state_dict()
    rename(path, name_of)
    assert_same_weights(read_llava(path).state_dict(), expected)


@pytest.mark.parametrize(
    ("tower", "changes", "named"),
    [
        ("clip", {"vision_feature_select_strategy": "full"}, "select_strategy: 'full' of clip is not supported"),
        ("siglip", {"vision_feature_select_strategy": "default"}, "'default' of siglip"),
        ("clip", {"vision_feature_select_strategy": "cls_patch"}, "config.json.vision_feature_select_strategy"),
        ("clip", {"vision_feature_layer": [-2, -1]}, "vision_feature_layer: .* several layers"),
        ("clip", {"vision_feature_layer": 4}, "feature_layer=4 is outside"),
        ("clip", {"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ("clip", {"multimodal_projector_bias": False}, "multimodal_projector_bias"),
        ("clip", {"image_token_index": 61}, "image_token_index: 61 is outside vocab_size=61"),
        ("clip", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("clip", {"vision_config": None}, "config.json.vision_config"),
        ("clip", {"vision_config.model_type": "pixtral"}, "vision_config.model_type: unknown 'pixtral'"),
        ("clip", {"vision_config.num_channels": 4}, "vision_config.num_channels: 4"),
        ("clip", {"vision_config.hidden_size": "wide"}, "vision_config.hidden_size"),
        ("clip", {"vision_config.hidden_size": 10**30}, "vision_config.hidden_size"),
        ("clip", {"vision_config.num_attention_heads": 0}, "num_heads=0"),
        ("clip", {"text_config.model_type": "bloom"}, "config.json.text_config.model_type: unknown 'bloom'"),
    ],
)
def test_settings_without_a_counterpart_are_named(
    folder: Callable[[str], Path], tower: str, changes: dict[str, Any], named: str
) -> None:
    path = folder(tower)
    change_json(path / "config.json", changes)
    with pytest.raises(InvalidArgumentError, match=named):
        read_llava(path)


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("vision_tower.post_layernorm.bias", None, "lacks vision_tower.vision_model.post_layernorm.bias"),
        ("multi_modal_projector.linear_1.bias", None, "lacks multi_modal_projector.linear_1.bias"),
        ("language_model.model.norm.weight", None, "lacks language_model.model.norm.weight"),
        ("vision_tower.encoder.layers.3.mlp.fc1.bias", torch.zeros(1), "unknown vision_tower"),
        ("image_newline", torch.zeros(1), "unknown image_newline"),
        ("vision_tower.encoder.layers.0.self_attn.q_proj.weight", torch.zeros(3), r"q_proj.weight is \[3\]"),
        ("multi_modal_projector.linear_2.bias", torch.zeros(32, dtype=torch.int8), "no floating-point numbers"),
        ("model.multi_modal_projector.linear_2.bias", torch.zeros(32), "are the same tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Callable[[str], Path], name: str, tensor: Tensor | None, named: str
) -> None:
    path = folder("siglip")
    tensors = load_file(path / WEIGHTS_FILE)
    tensors.pop(name, None)
    save_file({**tensors, **({} if tensor is None else {name: tensor})}, path / WEIGHTS_FILE, {"format": "pt"})
    with pytest.raises(DataLossError, match=named):
        read_llava(path)


def test_a_claim_of_endless_layers_costs_nothing(folder: Callable[[str], Path]) -> None:
    path = folder("clip")
    change_json(path / "config.json", {"vision_config.num_hidden_layers": 10**8})
    with pytest.raises(DataLossError, match="claims 100000000 layers"):
        read_llava(path)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image_processor_type": "PixtralImageProcessor"}, "image_processor_type: unknown 'PixtralImageProcessor'"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 1 / 127}, "rescale_factor"),
        ({"resample": 5}, "resample: 5"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"size": {"shortest_edge": 40}}, "crop_size"),
        ({"size": {"height": 32, "width": 40}}, "size: expected a square"),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}, "the encoder reads 32"),
        ({"do_pad": True}, "do_pad"),
        ({"image_std": [0.0, 1.0, 1.0]}, "std"),
    ],
)
def test_an_image_processor_without_a_counterpart_is_named(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | values))
    with pytest.raises(InvalidArgumentError, match=named):
        read_preprocess(tmp_path, image_size=SIDE)


def test_a_folder_must_say_how_images_are_processed(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no image processor"):
        read_preprocess(tmp_path, image_size=SIDE)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": SIGLIP}))
    assert read_preprocess(tmp_path, image_size=SIDE).resize == "squash"


TOKENIZER = Tokenizer.train(["what is this? a red cube. yes no two"], TokenizerConfig(vocab_size=280))


def own(**preprocess: Any) -> Mllm:
    config = MllmConfig(
        encoder={
            "name": "clip",
            "image_size": SIDE,
            "patch_size": 8,
            "width": 24,
            "num_layers": 2,
            "num_heads": 3,
            "hidden_width": 40,
            "feature_layer": -2,
        },
        connector={"name": "mlp"},
        decoder={"name": "llama", "width": 32, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 40},
        vocab_size=TOKENIZER.vocab_size,
        image_token_id=TOKENIZER.image_token_id,
        preprocess=ImageProcessorConfig(image_size=SIDE, **preprocess),
    )
    model = Mllm(config).eval()
    redraw(model)
    return model


@pytest.mark.parametrize(
    "preprocess",
    [{}, {"resize": "crop", "resample": "bicubic"}, {"resize": "pad", "background": (127, 127, 127)}],
)
def test_their_processor_does_what_ours_does(preprocess: dict[str, Any], tmp_path: Path) -> None:
    model = own(**preprocess)
    save_model(model, tmp_path / "ours")
    TOKENIZER.save(tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "theirs")
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "theirs").eval()
    assert theirs.config.text_config.eos_token_id == TOKENIZER.eos_token_id

    rows, columns = np.mgrid[0:40, 0:80]
    image = np.stack([3 * rows, 2 * columns, rows + columns], axis=-1).astype(np.uint8)
    inputs = processor(images=[Image.fromarray(image)], text="<bos><image><user> what is this?", return_tensors="pt")
    words = TOKENIZER.encode(" what is this?")
    expected = [TOKENIZER.bos_token_id, *[TOKENIZER.image_token_id] * 16, TOKENIZER.user_token_id, *words]
    assert inputs["input_ids"][0].tolist() == expected
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    ours = ImageProcessor(model.config.preprocess)
    pixels = torch.from_numpy(ours.normalise(ours.batch([buffer.getvalue()])))
    # Of 256 shades the mean differs by two at most: pictures are cut and padded at the other side of resizing.
    assert (pixels - inputs["pixel_values"]).abs().mean() < 2 * 2 / 256
    if not preprocess:
        torch.testing.assert_close(pixels, inputs["pixel_values"])
    shown = inputs["pixel_values"]
    torch.testing.assert_close(logits(model, inputs["input_ids"], shown), theirs(**inputs).logits)
    assert read_llava(tmp_path / "theirs").config.preprocess == model.config.preprocess


def changed(model: Mllm, part: str, **settings: Any) -> Mllm:
    spec = {**getattr(model.config, part), **settings}
    return Mllm(MllmConfig(**{**vars(model.config), part: spec, "preprocess_digest": ""}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: changed(model, "encoder", name="vit"), "encoder: a LLaVA has no 'vit'"),
        (lambda model: changed(model, "encoder", name="siglip", feature_layer=-1), "encoder.feature_norm"),
        (lambda model: changed(model, "encoder", name="siglip2"), "no 'siglip2'"),
        (lambda model: changed(model, "encoder", trained_size=64), "encoder.trained_size: 64"),
        (lambda model: changed(model, "connector", name="linear"), "connector: a LLaVA has no 'linear'"),
        (lambda model: changed(model, "connector", hidden_width=8), "connector.hidden_width: 8"),
        (lambda model: changed(model, "decoder", sliding_window=4), "sliding_window=4"),
        (lambda _: own(resize="pad-end"), "preprocess.resize"),
        (lambda _: own(resize="pad"), "preprocess.background"),
    ],
)
def test_what_a_llava_cannot_say_is_not_exported(change: Callable[[Mllm], Mllm], named: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        write_llava(change(own()), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_way_of_processing_is_read_back(tmp_path: Path) -> None:
    for resample in ("nearest", "bilinear", "bicubic", "lanczos", "box"):
        config = ImageProcessorConfig(image_size=SIDE, resample=resample, mean=(0.1, 0.2, 0.3))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(write_preprocess(config)))
        assert read_preprocess(tmp_path, image_size=SIDE) == config


def test_the_token_of_images_must_have_a_name(tmp_path: Path) -> None:
    model = own()
    save_model(changed_token(model), tmp_path / "ours")
    TOKENIZER.save(tmp_path / "ours")
    with pytest.raises(InvalidArgumentError, match="image_token_id: 100 is no added token"):
        export_folder(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def changed_token(model: Mllm) -> Mllm:
    return Mllm(MllmConfig(**{**vars(model.config), "image_token_id": 100}))
