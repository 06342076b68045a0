"""The dual encoder: unit vectors, standardised features, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rebus.errors import FailedPreconditionError, InvalidArgumentError
from rebus.models import load_model, save_model
from rebus.models.dual_encoder import DualEncoder, DualEncoderConfig
from rebus.models.feature_cache import pooled, pooled_width

ENCODER = {"name": "efficientnet-lite0", "image_size": 32}
TEXT = {"name": "ngram-bag", "width": 8, "num_buckets": 64}


def tiny(**settings: object) -> DualEncoder:
    torch.manual_seed(0)
    values = {"vision_encoder": ENCODER, "text_encoder": TEXT, "width": 16, **settings}
    return DualEncoder(DualEncoderConfig(**values))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("image_hidden_width", [0, 24])
def test_a_saved_model_embeds_as_before(tmp_path: Path, image_hidden_width: int) -> None:
    model = tiny(image_hidden_width=image_hidden_width).eval()
    features = torch.randn(5, pooled_width(model.vision_encoder))
    model.image_head.fit(features)
    tokens = model.text_encoder.tokenize(["one", "deux", "三"])
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)

    assert isinstance(loaded, DualEncoder)
    assert loaded.config == model.config
    for found, expected in (
        (loaded.embed_features(features), model.embed_features(features)),
        (loaded.embed_tokens(tokens), model.embed_tokens(tokens)),
    ):
        assert torch.equal(found, expected)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


def test_the_head_standardises_and_ignores_constant_features() -> None:
    model = tiny(image_dropout=0.0)
    features = torch.randn(50, pooled_width(model.vision_encoder)) * 7 + 3
    features[:, 0] = 5.0
    model.image_head.fit(features)
    seen: list[torch.Tensor] = []
    model.image_head.layers.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    model.embed_features(features)

    standardised = seen[0]
    torch.testing.assert_close(standardised.mean(0), torch.zeros(len(standardised[0])), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised[:, 1:].std(0, correction=0), torch.ones(len(standardised[0]) - 1))
    assert standardised[:, 0].abs().max() < 1e-5


def test_other_preprocessing_than_in_training_is_refused(tmp_path: Path) -> None:
    save_model(tiny(), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["preprocess"]["resample"] = "nearest"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(FailedPreconditionError, match="trained with preprocessing"):
        load_model(tmp_path)


def test_an_image_size_the_encoder_does_not_read_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"model\.preprocess\.image_size: is 64, the encoder reads 32"):
        tiny(preprocess=tiny(vision_encoder={**ENCODER, "image_size": 64}).processor.config)


def test_the_scale_is_bounded() -> None:
    model = tiny(initial_logit_scale=10.0, max_logit_scale=20.0)
    assert model.calibration.scale().item() == pytest.approx(10.0)
    with torch.no_grad():
        model.calibration.logit_scale.fill_(9.0)
    assert model.calibration.scale().item() == pytest.approx(20.0)


def test_encoders_without_a_pool_of_their_own_are_averaged() -> None:
    encoder = tiny(vision_encoder={"name": "vit", "image_size": 32, "width": 16, "num_layers": 1}).vision_encoder
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(pooled(encoder, pixels), encoder(pixels).mean(1))
    assert pooled_width(encoder) == 16
