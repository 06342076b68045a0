"""Encoders against transformers on tiny random configurations: outputs, gradients, and weights in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    ASTForAudioClassification,
    CLIPConfig,
    CLIPModel,
    Dinov2ForImageClassification,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    WhisperForConditionalGeneration,
)

from rebus.errors import InvalidArgumentError
from rebus.models.encoders.hf import clip, dinov2
from tests.libs.models.encoder_families import FAMILIES, Family

TEXT = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def backward(outputs: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    sum((x * torch.randn(x.shape, generator=generator)).mean() for x in outputs).backward()  # pyright: ignore[reportAttributeAccessIssue]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Under the names of the state dict; zero where nothing reads a tensor."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        name: torch.zeros_like(x) if (g := found.get(name)) is None else g for name, x in model.state_dict().items()
    }


def test_outputs_and_gradients_of_every_parameter(family: Family) -> None:
    reference = family.build()
    encoder = family.convert(reference)
    outputs, expected = family.outputs(encoder), family.their_outputs(reference)
    backward(outputs)
    backward(expected)

    torch.testing.assert_close(outputs, expected)
    _, their_gradients = family.hf.from_hf(reference.config.to_dict(), gradients(reference))
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, their_gradients[name], msg=lambda text, name=name: f"{name}: {text}")


def test_weights_as_published_and_back(family: Family, tmp_path: Path) -> None:
    reference = family.build()
    reference.save_pretrained(tmp_path / "theirs")
    published = load_file(tmp_path / "theirs" / "model.safetensors")
    config, weights = family.hf.from_hf(json.loads((tmp_path / "theirs" / "config.json").read_text()), published)

    their_config, tensors = family.hf.to_hf(config, weights)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(their_config))
    save_file(tensors, tmp_path / "ours" / "model.safetensors", {"format": "pt"})
    again, info = type(reference).from_pretrained(tmp_path / "ours", output_loading_info=True)

    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(family.their_outputs(again.eval()), family.their_outputs(reference), rtol=0, atol=0)
    # The Hub's CLIP and SigLIP stand behind a prefix, which releases of transformers write or leave out.
    names = {name.removeprefix("vision_model.") for name in tensors}
    assert names ^ published.keys() <= {"embeddings.mask_token"}


def test_hidden_states_of_chosen_layers(family: Family) -> None:
    reference = family.build()
    encoder = family.convert(reference)
    expected = reference(*family.their_inputs(family.inputs()), output_hidden_states=True).hidden_states

    found = encoder.forward_layers(family.inputs(), [-2, 0, 1])

    for ours, theirs in zip(found, (expected[-2], expected[0], expected[1]), strict=True):
        torch.testing.assert_close(ours, theirs[:, encoder.num_prefix_tokens :])


def clip_model() -> PreTrainedModel:
    return CLIPModel(CLIPConfig(vision_config=FAMILIES["clip"].build().config.to_dict(), text_config=TEXT))


def siglip_model() -> PreTrainedModel:
    return SiglipModel(SiglipConfig(vision_config=FAMILIES["siglip"].build().config.to_dict(), text_config=TEXT))


def whisper_model() -> PreTrainedModel:
    config = FAMILIES["whisper"].build().config
    config.vocab_size, config.decoder_layers, config.decoder_ffn_dim, config.decoder_attention_heads = 9, 1, 8, 1
    config.pad_token_id = config.bos_token_id = config.eos_token_id = config.decoder_start_token_id = 0
    return WhisperForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("name", "whole", "part"),
    [
        ("clip", clip_model, "vision_model"),
        ("siglip", siglip_model, "vision_model"),
        ("whisper", whisper_model, "model.encoder"),
        ("ast", lambda: ASTForAudioClassification(FAMILIES["ast"].build().config), "audio_spectrogram_transformer"),
        ("dinov2", lambda: Dinov2ForImageClassification(FAMILIES["dinov2"].build().config), "dinov2"),
    ],
)
def test_the_encoder_is_found_in_a_larger_model(name: str, whole: Any, part: str, tmp_path: Path) -> None:
    """In memory, and as the larger model is published."""
    torch.manual_seed(0)
    model, family = whole().eval(), FAMILIES[name]
    expected = family.their_outputs(model.get_submodule(part))

    torch.testing.assert_close(family.outputs(family.convert(model)), expected)
    model.save_pretrained(tmp_path)
    published = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(family.outputs(family.convert(model, published)), expected)


def changed(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    merged: dict[str, Tensor | None] = {**state, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in merged.items() if value is not None}


def test_weights_that_do_not_fit_are_named() -> None:
    model = FAMILIES["clip"].build()
    config, state = model.config.to_dict(), model.state_dict()
    for wrong, named in (
        (changed(state, post_layernorm__bias=None), "lacks post_layernorm.bias"),
        (changed(state, extra__weight=torch.zeros(1)), "1 unknown tensors, such as extra.weight"),
        (changed(state, pre_layrnorm__bias=torch.zeros(7)), r"state.pre_layrnorm.bias: makes \[7\], expected \[24\]"),
        ({}, "expected one tensor embeddings.patch_embedding.weight, found 0"),
    ):
        with pytest.raises(InvalidArgumentError, match=named):
            clip.from_hf(config, wrong)


def test_configs_that_have_no_counterpart_are_named() -> None:
    model = FAMILIES["dinov2"].build()
    config, state = model.config.to_dict(), model.state_dict()
    for change, named in (
        ({"hidden_act": "relu"}, r"config.hidden_act: expected one of gelu, .*found 'relu'"),
        ({"image_size": [32, 16]}, r"config.image_size: expected a square, found \[32, 16\]"),
    ):
        with pytest.raises(InvalidArgumentError, match=named):
            dinov2.from_hf(config | change, state)
    with pytest.raises(InvalidArgumentError, match="config.hidden_width: 25 is no whole multiple of width=24"):
        dinov2.to_hf(dinov2.Dinov2Config(width=24, num_heads=3, hidden_width=25), {})
    with pytest.raises(InvalidArgumentError, match="config.activation"):
        clip.to_hf(clip.ClipVisionConfig(activation="swiglu"), {})


def test_what_a_config_leaves_out_has_the_default_of_its_class(family: Family) -> None:
    """A config.json may hold only what differs."""
    defaults = type(family.build().config)().to_dict()
    assert family.hf.config_from_hf({"model_type": defaults["model_type"]}) == family.hf.config_from_hf(defaults)
