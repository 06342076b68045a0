"""Cards against sums by hand, ``rebus.models.flops``, and the bytes of a model saved twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from rebus.data.encoding import EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.log_mel import LogMelConfig
from rebus.data.preprocess.media import MediaSettings
from rebus.models import load_model, save_model
from rebus.models.audio import AudioConfig
from rebus.models.card import Card, Cost, describe
from rebus.models.causal_lm import CausalLm, CausalLmConfig
from rebus.models.dual_encoder import DualEncoder, DualEncoderConfig
from rebus.models.encoders.video import FramePositionsConfig
from rebus.models.flops import decoder_token_flops, encoder_image_flops
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.moe import MoeConfig, MoeLayer
from rebus.models.moe.placement import replace_mlps

LLAMA = {"name": "llama", "width": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "hidden_width": 12}
VIT = {"name": "vit", "image_size": 16, "patch_size": 8, "width": 16, "num_layers": 1, "num_heads": 2}
# Of one layer: four projections of the attention, three of the feed-forward block, two norms.
ATTENTION, DENSE, NORMS = 4 * 8 * 8, 3 * 8 * 12, 2 * 8


def language_model(**settings: object) -> CausalLm:
    return CausalLm(CausalLmConfig(decoder={**LLAMA, "max_positions": 16, **settings}, vocab_size=10))


def dual_encoder() -> DualEncoder:
    text = {"name": "ngram-bag", "width": 8, "num_buckets": 64}
    return DualEncoder(DualEncoderConfig(vision_encoder=VIT, text_encoder=text, width=4, image_hidden_width=6))


def multimodal() -> Mllm:
    config = MllmConfig(
        encoder=VIT,
        decoder={**LLAMA, "width": 32},
        vocab_size=50,
        image_token_id=3,
        preprocess=ImageProcessorConfig(image_size=16),
        encoding=EncodingConfig(max_length_tokens=256),
    )
    return Mllm(config)


def sizes(card: Card) -> dict[str, tuple[int, int, int]]:
    return {part.name: (part.parameters, part.active, part.num_bytes) for part in card.parts}


def test_a_decoder_by_hand() -> None:
    card = describe(language_model())
    layers = 2 * (ATTENTION + DENSE + NORMS) + 8
    assert sizes(card) == {"embeddings": (80, 80, 320), "decoder": (layers, layers, 4 * layers)}
    attention = 2 * 4 * 8 * 16
    flops = 2 * 2 * (ATTENTION + DENSE) + attention + 2 * 80
    assert card.costs == (Cost("a text token, the last of 16", flops),)
    text = card.markdown()
    assert "\n| decoder | `llama` | 1,128 (1.13 k) | 1,128 (1.13 k) | 4,512 (4.41 KiB) |\n" in text
    assert "\n| **all** |  | 1,208 (1.21 k) | 1,208 (1.21 k) | 4,832 (4.72 KiB) |\n" in text
    assert f"\n| a text token, the last of 16 | {flops:,} (3.36 k) |\n" in text
    assert "\n| context, tokens | 16 |\n" in text


def test_an_output_layer_of_its_own_is_among_the_embeddings() -> None:
    assert sizes(describe(language_model(tie_embeddings=False)))["embeddings"] == (160, 160, 640)


def test_experts_by_hand_are_active_as_chosen() -> None:
    model = language_model()
    config = MoeConfig(num_experts=4, hidden_width=12, router={"name": "top-k", "top_k": 1}, num_shared_experts=1)
    replace_mlps(model.decoder.layers, [1], lambda _: MoeLayer(config, width=8))
    card = describe(model)
    # The second layer's block is a router, four experts and the shared one; a token passes two of the five.
    added = 4 * 8 + 4 * DENSE
    layers = 2 * (ATTENTION + DENSE + NORMS) + 8 + added
    assert sizes(card)["decoder"] == (layers, layers - 3 * DENSE, 4 * layers)
    assert (card.parameters, card.active) == (80 + layers, 80 + layers - 3 * DENSE)
    assert card.costs[0].flops == decoder_token_flops(model.decoder, 16)


def test_a_multimodal_model() -> None:
    model = multimodal()
    card = describe(model)
    assert [part.name for part in card.parts] == ["encoder", "connector", "embeddings", "decoder"]
    assert card.parameters == card.active == sum(weight.numel() for weight in model.parameters())
    assert sizes(card)["encoder"][0] == sum(weight.numel() for weight in model.vision_encoder.parameters())
    encoder = encoder_image_flops(model.vision_encoder)
    connector = 4 * 2 * (16 * 32 + 32 * 32)
    assert card.costs == (
        Cost("a text token, the last of 256", round(decoder_token_flops(model.decoder, 256))),
        Cost("an image in the encoder", round(encoder)),
        Cost("an image in the connector", connector),
        Cost("an image", round(encoder) + connector),
    )
    facts = dict(card.facts)
    assert facts["tokens an image"] == model.image_tokens == 4
    assert facts["digest of the preprocessing"] == model.config.preprocess_digest
    assert "- connector `mlp`: MM1: multimodal LLM pre-training, <https://arxiv.org/abs/2403.09611>" in card.markdown()


def test_the_audio_part_and_frame_positions_count_too() -> None:
    whisper = {"name": "whisper", "num_mels": 8, "num_frames": 20, "width": 8, "num_layers": 1, "num_heads": 2}
    model = Mllm(
        replace(
            multimodal().config,
            media=MediaSettings(audio=LogMelConfig(num_mels=8, chunk_seconds=0.2)),
            audio=AudioConfig(encoder={**whisper, "hidden_width": 8}, connector={"name": "linear"}),
            frame_positions=FramePositionsConfig(num_frames=2),
            preprocess_digest="",
        )
    )
    card = describe(model)
    assert model.audio is not None
    found = sizes(card)
    assert card.parameters == sum(weight.numel() for weight in model.parameters())
    assert found["audio encoder"][0] == sum(weight.numel() for weight in model.audio.encoder.parameters())
    assert found["audio connector"][0] == 8 * 32 + 32
    assert found["frame positions"][0] == 2 * 16
    assert dict(card.facts)["tokens a piece of sound"] == 10
    # Convolutions of 3 over 20 and then 10 frames, a block on 10 tokens, the projection.
    convolutions = 2 * 3 * 8 * 8 * (20 + 10)
    block = 2 * 10 * (4 * 8 * 8 + 2 * 8 * 8) + 2 * 2 * 10 * 10 * 8
    assert card.costs[-1] == Cost("a piece of sound", convolutions + block + 2 * 10 * 8 * 32)


def test_a_dual_encoder() -> None:
    model = dual_encoder()
    card = describe(model)
    assert card.parameters == sum(weight.numel() for weight in model.parameters())
    tensors = model.state_dict().values()
    assert card.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert [cost.flops for cost in card.costs[1:2]] == [2 * (16 * 6 + 6 * 4)]


def test_hubs_can_read_the_front_matter() -> None:
    front = describe(multimodal()).markdown().split("---\n")[1]
    assert yaml.safe_load(front) == {
        "library_name": "rebus",
        "pipeline_tag": "image-text-to-text",
        "tags": ["rebus", "mllm", "vit", "mlp", "llama"],
    }


def test_a_part_without_a_place_is_listed() -> None:
    model = multimodal()
    model.register_parameter("extra", nn.Parameter(torch.zeros(3)))
    assert sizes(describe(model))["other"] == (3, 3, 12)


class ReadsValues(nn.Module):
    num_tokens, grid = 4, None

    def forward(self, features: Tensor) -> Tensor:
        return features[:, : int(features.max())]


def test_a_part_that_cannot_be_counted_can_be_saved(tmp_path: Path) -> None:
    model = multimodal()
    model.connector = ReadsValues()
    save_model(model, tmp_path)
    assert "\n| an image | not counted |\n" in (tmp_path / "model.md").read_text()


@pytest.mark.parametrize("make", [language_model, multimodal, dual_encoder])
def test_a_model_saved_twice_has_the_same_bytes(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    state = torch.get_rng_state()
    save_model(model.train(), tmp_path / "first")
    assert torch.equal(torch.get_rng_state(), state)
    save_model(load_model(tmp_path / "first"), tmp_path / "second")
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / at).iterdir()} for at in ("first", "second"))
    assert first == second
    assert sorted(first) == ["config.json", "model.md", "model.safetensors"]
    (tmp_path / "second" / "model.md").unlink()
    load_model(tmp_path / "second")
