"""Losses by hand and against plain computations of the whole logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.data.encoding import IGNORE_INDEX, Encoder, EncodingConfig
from rebus.data.sample import Sample, Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.models.media import MediaBatch
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.packing import pack_rows
from rebus.objectives.base import MllmBatch, MllmOutputs
from rebus.objectives.language_modeling import LanguageModeling, LanguageModelingConfig, document_losses
from rebus.objectives.region_words import RegionWords, RegionWordsConfig, cell_of, telling_words

TOKENIZER = Tokenizer.train(["a red cube, a blue cone. what is this? yes no"], TokenizerConfig(vocab_size=300))


@pytest.fixture(scope="module")
def model() -> Mllm:
    torch.manual_seed(0)
    return Mllm(
        MllmConfig(
            encoder={"name": "conv-vit", "image_size": 64, "channels": [4, 4, 8, 8]},
            connector={"name": "average-pool", "grid_side": 2},
            decoder={
                "name": "llama",
                "width": 16,
                "num_layers": 1,
                "num_heads": 2,
                "num_kv_heads": 2,
                "hidden_width": 24,
            },
            vocab_size=TOKENIZER.vocab_size,
            image_token_id=TOKENIZER.image_token_id,
        )
    ).eval()


def outputs(model: Mllm) -> MllmOutputs:
    """Two rows: an image with a caption of two regions and a question, and a plain text."""
    segments = [
        Segment(type="image", media=0),
        Segment(text="a red cube,", role="assistant", loss=True, branch=1, regions=((0.0, 0.0, 0.4, 0.4),)),
        Segment(text="a blue cone.", role="assistant", loss=True, branch=1, regions=((0.6, 0.5, 0.9, 0.9),)),
        Segment(text="what is this?", branch=2),
        Segment(text="yes", role="assistant", loss=True, branch=2),
    ]
    encoder = Encoder(TOKENIZER, image_tokens=4, config=EncodingConfig())
    rows = [
        encoder.encode(Sample(id="a", segments=segments, media=[b""])),
        encoder.encode(Sample(id="b", segments=[Segment(text="no no", role="assistant", loss=True)])),
    ]
    packed = pack_rows(rows, image_token_id=TOKENIZER.image_token_id)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = model.encode_images(pixels)
    hidden = model.forward_packed(packed, features)
    return MllmOutputs(
        batch=MllmBatch(rows=packed, media=MediaBatch.of_images(pixels)), image_features=features, hidden_states=hidden
    )


def plain(model: Mllm, out: MllmOutputs, power: float) -> Tensor:
    """All logits, a loop over labels, and the weights written out."""
    assert out.hidden_states is not None
    rows = out.batch.rows
    logits = model.logits(out.hidden_states)
    total, weight_sum = torch.zeros(()), 0.0
    for at, label in enumerate(rows.targets.tolist()):
        if label != IGNORE_INDEX:
            same = (rows.runs == rows.runs[at]) & (rows.targets != IGNORE_INDEX)
            weight = float(same.sum()) ** -power
            total = total - weight * F.log_softmax(logits[at], -1)[label]
            weight_sum += weight
    return total / weight_sum


@pytest.mark.parametrize(("averaging", "power"), [("token", 0.0), ("square", 0.5), ("branch", 1.0)])
@pytest.mark.parametrize("chunk", [4096, 3])
def test_label_only_and_chunked_losses_equal_the_plain_one(
    model: Mllm, averaging: str, power: float, chunk: int
) -> None:
    config = LanguageModelingConfig(averaging=averaging, chunk_tokens=chunk)  # pyright: ignore[reportArgumentType]
    out = outputs(model)
    parameters = [p for p in model.parameters() if p.requires_grad]

    loss = LanguageModeling(config)(model, out)
    expected = plain(model, out, power)
    torch.testing.assert_close(loss, expected)

    got = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    want = torch.autograd.grad(expected, parameters, allow_unused=True)
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("chunk", [4096, 3])
def test_losses_of_documents_are_the_means_of_their_own_labels(model: Mllm, chunk: int) -> None:
    out = outputs(model)
    rows = out.batch.rows
    assert out.hidden_states is not None
    told = model.logits(out.hidden_states).log_softmax(-1)
    expected: dict[int, list[float]] = {}
    for at, label in enumerate(rows.targets.tolist()):
        if label != IGNORE_INDEX:
            expected.setdefault(int(rows.origins[at, 0]), []).append(-told[at, label].item())
    found = document_losses(model, out.hidden_states, rows, chunk_tokens=chunk)
    assert found == pytest.approx({row: sum(losses) / len(losses) for row, losses in expected.items()}, rel=1e-5)


def test_targets_are_the_assistants_words_and_their_end(model: Mllm) -> None:
    rows = outputs(model).batch.rows
    told = [rows.targets[(rows.runs == run) & (rows.targets != IGNORE_INDEX)].tolist() for run in rows.runs.unique()]
    end = TOKENIZER.eos_token_id
    caption = TOKENIZER.encode("a red cube,") + TOKENIZER.encode("a blue cone.")
    expected = [[*TOKENIZER.encode("no no"), end], [*TOKENIZER.encode("yes"), end], [*caption, end]]
    assert sorted(filter(None, told)) == sorted(expected)


def test_region_words_equals_a_hand_made_divergence(model: Mllm) -> None:
    out = outputs(model)
    features = out.image_features
    assert features is not None
    # The boxes' centres lie in the top left and the bottom right of the 2 x 2 grid. What stands in both phrases (" a")
    # tells nothing; every other token stands in one.
    first, second = set(TOKENIZER.encode("a red cube,")), set(TOKENIZER.encode("a blue cone."))
    shared = first & second
    words = [TOKENIZER.image_token_id, *sorted(first ^ second)]
    targets = torch.zeros(4, len(words))
    for cell, named in ((0, first - shared), (3, second - shared)):
        targets[cell, [words.index(word) for word in named]] = 1 / len(named)
    targets[[1, 2], 0] = 1.0
    log_p = F.log_softmax(model.logits(model.decoder.norm(features[0]))[:, words], -1)
    entropy = torch.special.entr(targets).sum(-1)
    divergence = -(targets * log_p).sum(-1) - entropy
    weights = torch.tensor([1.0, 0.25, 0.25, 1.0])

    loss = RegionWords(RegionWordsConfig(background_weight=0.25))(model, out)

    torch.testing.assert_close(loss, (divergence * weights).sum() / weights.sum())


def test_a_batch_without_images_costs_nothing(model: Mllm) -> None:
    out = outputs(model)
    none = MllmOutputs(batch=out.batch, image_features=None, hidden_states=out.hidden_states)
    assert RegionWords(RegionWordsConfig())(model, none) == 0


def test_cells_and_telling_words_by_hand() -> None:
    assert cell_of((0.0, 0.0, 0.2, 0.2), (4, 4)) == 0
    assert cell_of((0.5, 0.3, 0.7, 0.5), (4, 4)) == 4 + 2
    assert cell_of((1.0, 1.0, 1.0, 1.0), (4, 4)) == 15
    phrases = [[1, 2, 2], [1, 3], [1, 3], [1, 4]]
    assert telling_words(phrases, 0.5) == {2, 3, 4}
    assert telling_words(phrases, 0.25) == {2, 4}
    assert telling_words(phrases, 1.0) == {1, 2, 3, 4}
