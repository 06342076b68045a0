"""The embedder: batches equal single calls, bounds, refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from rebus import cancellation
from rebus.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from rebus.models import save_model
from rebus.models.feature_cache import encode_images
from rebus.models.mllm import Mllm, MllmConfig
from rebus.retrieval import Embedder, embedder
from rebus.retrieval.embedder import DualEncoderEmbedder
from tests.libs.retrieval import tiny


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> DualEncoderEmbedder:
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny.model(), folder)
    found = Embedder.load(folder)
    assert isinstance(found, DualEncoderEmbedder)
    return found


def test_batches_equal_single_calls_whatever_the_chunks(
    loaded: DualEncoderEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, images = [f"text {at}" for at in range(7)], [tiny.picture(at) for at in range(5)]
    one_by_one = np.concatenate([loaded.embed_texts([text]) for text in texts])
    alone = np.concatenate([loaded.embed_images([image]) for image in images])
    monkeypatch.setattr(embedder, "_TEXTS_AT_A_TIME", 3)
    monkeypatch.setattr(embedder, "_IMAGES_AT_A_TIME", 2)
    np.testing.assert_allclose(loaded.embed_texts(texts), one_by_one, atol=1e-6)
    np.testing.assert_allclose(loaded.embed_images(images), alone, atol=1e-5)
    assert np.linalg.norm(one_by_one, axis=1) == pytest.approx(1.0)


def test_cached_features_embed_as_the_image_does(loaded: DualEncoderEmbedder) -> None:
    images = [tiny.picture(at) for at in range(3)]
    features = encode_images(loaded.model.vision_encoder, loaded.processor, images)
    np.testing.assert_allclose(loaded.embed_features(features), loaded.embed_images(images), atol=1e-5)


def test_threads_get_what_one_caller_gets(loaded: DualEncoderEmbedder) -> None:
    images = [tiny.picture(at) for at in range(6)]
    alone = [loaded.embed_images([image]) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: loaded.embed_images([image]), images))
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-5)


def test_nothing_in_gives_nothing_out(loaded: DualEncoderEmbedder) -> None:
    assert loaded.embed_texts([]).shape == loaded.embed_images([]).shape == (0, loaded.dimension)


def test_a_broken_image_is_named_across_chunks(loaded: DualEncoderEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "_IMAGES_AT_A_TIME", 2)
    with pytest.raises(InvalidArgumentError, match=r"images\[3\]"):
        loaded.embed_images([tiny.picture(0)] * 3 + [b"GIF89a"])


def test_too_many_inputs_are_refused(loaded: DualEncoderEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "MAX_INPUTS", 2)
    with pytest.raises(ResourceExhaustedError, match="3 inputs"):
        loaded.embed_texts(["a"] * 3)


def test_a_model_that_generates_does_not_embed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {
        "encoder": {"name": "vit", "width": 16, "num_layers": 1},
        "decoder": {"name": "llama", "width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2},
    }
    save_model(Mllm(MllmConfig(**parts, vocab_size=32, image_token_id=4)), tmp_path)
    with pytest.raises(FailedPreconditionError, match="does not embed"):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_embedding_stops_between_batches_when_its_call_ends(
    loaded: DualEncoderEmbedder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(embedder, "_TEXTS_AT_A_TIME", 1)
    monkeypatch.setattr(embedder, "_IMAGES_AT_A_TIME", 1)
    scope = cancellation.Scope()
    batches = 0

    # Each batch ends in one of these.
    last = (loaded.model, "embed_tokens") if kind == "texts" else (loaded, "embed_features")
    embed = getattr(*last)

    def count(*args: object) -> object:
        nonlocal batches
        batches += 1
        if batches == 2:
            scope.cancel()
        return embed(*args)

    monkeypatch.setattr(*last, count)

    def work() -> None:
        cancellation.enter(scope)
        if kind == "texts":
            loaded.embed_texts(["a"] * 50)
        else:
            loaded.embed_images([tiny.picture(at) for at in range(50)])

    with ThreadPoolExecutor(1) as pool, pytest.raises(CancelledError):
        pool.submit(work).result()
    assert batches == 2
