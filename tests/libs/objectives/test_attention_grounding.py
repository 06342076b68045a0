"""Supervised attention against the scores that the decoder itself computes for whole rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rebus.data.encoding import Encoder, EncodingConfig, Row
from rebus.data.sample import Box, Sample, Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import InvalidArgumentError
from rebus.models.attention import dense_attention
from rebus.models.media import MediaBatch
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.packing import pack_rows
from rebus.objectives.attention_grounding import AttentionGrounding, AttentionGroundingConfig
from rebus.objectives.base import MllmBatch, MllmOutputs

TOKENIZER = Tokenizer.train(["is there a red cube? yes no"], TokenizerConfig(vocab_size=300))
ENCODER = Encoder(TOKENIZER, image_tokens=4, config=EncodingConfig())
TOP_LEFT, BOTTOM_RIGHT = (0.0, 0.0, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9)
Regions = tuple[Box, ...] | None


@pytest.fixture(scope="module")
def model() -> Mllm:
    torch.manual_seed(0)
    decoder = {"name": "llama", "width": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 24}
    return Mllm(
        MllmConfig(
            encoder={"name": "conv-vit", "image_size": 64, "channels": [4, 4, 8, 8]},
            connector={"name": "average-pool", "grid_side": 2},
            decoder=decoder,
            vocab_size=TOKENIZER.vocab_size,
            image_token_id=TOKENIZER.image_token_id,
        )
    ).eval()


def row(*asked: Regions, task: str = "existence") -> Row:
    """An image and one question a branch, each about the regions given."""
    segments = [Segment(type="image", media=0)]
    for branch, regions in enumerate(asked, start=1):
        segments.append(Segment(text="is there a red cube?", branch=branch, task=task, regions=regions, media=0))
        segments.append(Segment(text="yes", role="assistant", loss=True, branch=branch, task=task))
    return ENCODER.encode(Sample(id="a", segments=segments, media=[b""]))


def outputs(model: Mllm, *rows: Row) -> MllmOutputs:
    packed = pack_rows(rows, image_token_id=TOKENIZER.image_token_id)
    pixels = torch.randn(len(rows), 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features, layer_inputs = model.encode_images(pixels), []
    hidden = model.forward_packed(packed, features, layer_inputs)
    return MllmOutputs(
        batch=MllmBatch(rows=packed, media=MediaBatch.of_images(pixels)),
        image_features=features,
        hidden_states=hidden,
        layer_inputs=layer_inputs,
    )


def scores_of_whole_row(model: Mllm, single: Row, features: Tensor, layer: int) -> Tensor:
    """Scores ``[N, S, S]`` that one layer computes for a row of one branch, taken from inside its forward pass."""
    kept: dict[int, Tensor] = {}

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        every = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        kept[index] = torch.einsum("bqnh,bknh->bnqk", q, every)[0] / math.sqrt(q.shape[-1])
        return dense_attention(q, k, v, None)

    embeds = model.embed(torch.from_numpy(single.input_ids)[None], features)
    model.decoder._layers(embeds, torch.from_numpy(single.positions)[None], attend)
    return kept[layer]


@pytest.mark.parametrize(("layer", "first_head", "num_heads"), [(0, 0, 3), (1, 0, 3), (1, 2, 2)])
@pytest.mark.parametrize(
    ("regions", "target"),
    [
        ((TOP_LEFT,), {1: 1.0}),
        ((TOP_LEFT, BOTTOM_RIGHT), {1: 0.5, 4: 0.5}),
        ((TOP_LEFT, TOP_LEFT), {1: 1.0}),
        ((), {0: 1.0}),
    ],
)
def test_equals_the_cross_entropy_of_the_layers_own_attention(
    model: Mllm, layer: int, first_head: int, num_heads: int, regions: Regions, target: dict[int, float]
) -> None:
    single = row(regions)
    out = outputs(model, single)
    config = AttentionGroundingConfig(layer=layer, first_head=first_head, num_heads=num_heads)
    loss = AttentionGrounding(config)(model, out)

    assert out.image_features is not None
    scores = scores_of_whole_row(model, single, out.image_features, layer)
    query = single.input_ids.tolist().index(TOKENIZER.assistant_token_id)
    # The row's first token, then the image's four.
    log_weights = scores[first_head : first_head + num_heads, query, :5].log_softmax(-1)
    expected = -sum(share * log_weights[:, column].mean() for column, share in target.items())
    torch.testing.assert_close(loss, torch.as_tensor(expected))


def test_questions_of_all_rows_and_branches_count_alike(model: Mllm) -> None:
    objective = AttentionGrounding(AttentionGroundingConfig(layer=0, num_heads=1))
    together = objective(model, outputs(model, row((TOP_LEFT,), ()), row((BOTTOM_RIGHT,))))
    features = outputs(model, row((TOP_LEFT,), ()), row((BOTTOM_RIGHT,))).image_features
    assert features is not None
    losses = []
    for image, regions in ((0, (TOP_LEFT,)), (0, ()), (1, (BOTTOM_RIGHT,))):
        single = row(regions)
        scores = scores_of_whole_row(model, single, features[image : image + 1], 0)
        query = single.input_ids.tolist().index(TOKENIZER.assistant_token_id)
        cell = {(TOP_LEFT,): 1, (): 0, (BOTTOM_RIGHT,): 4}[regions]
        losses.append(-scores[0, query, :5].log_softmax(-1)[cell])
    torch.testing.assert_close(together, torch.stack(losses).mean())


def test_questions_of_unknown_regions_teach_nothing(model: Mllm) -> None:
    objective = AttentionGrounding(AttentionGroundingConfig(layer=0))
    assert objective(model, outputs(model, row(None))).item() == 0.0
    mixed, known = outputs(model, row((TOP_LEFT,), None)), outputs(model, row((TOP_LEFT,)))
    torch.testing.assert_close(objective(model, mixed), objective(model, known))


def test_training_on_it_makes_the_heads_look(model: Mllm) -> None:
    torch.manual_seed(1)
    learner = Mllm(model.config)
    objective = AttentionGrounding(AttentionGroundingConfig(layer=1, num_heads=2))
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    for _ in range(60):
        loss = objective(learner, outputs(learner, row((TOP_LEFT,)), row((BOTTOM_RIGHT,)), row(())))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_a_layer_or_head_that_is_not_there_is_named(model: Mllm) -> None:
    for settings in ({"layer": 2}, {"layer": 0, "num_heads": 5}, {"layer": 0, "first_head": 3}):
        config = AttentionGroundingConfig(**settings)
        with pytest.raises(InvalidArgumentError, match="does not fit a decoder of 2 layers of 4 heads"):
            AttentionGrounding(config)(model, outputs(model, row(())))
