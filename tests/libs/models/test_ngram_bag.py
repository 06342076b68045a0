"""The bag of n-grams: what is hashed, and that the bag is a plain mean."""

from __future__ import annotations

import zlib

import pytest
import torch
import torch.nn.functional as F

from rebus.models.text_encoders.ngram_bag import NgramBag, NgramBagConfig

BUCKETS = 97


def bag(**settings: int | float) -> NgramBag:
    torch.manual_seed(0)
    return NgramBag(NgramBagConfig(width=8, num_buckets=BUCKETS, **settings)).eval()  # pyright: ignore[reportArgumentType]


def buckets(*ngrams: str) -> list[int]:
    return sorted(zlib.crc32(ngram.encode()) % BUCKETS for ngram in ngrams)


@pytest.mark.parametrize(
    ("text", "ngrams"),
    [
        ("Ab c", ["=ab", "<ab", "ab>", "<ab>", "=c", "<c>"]),
        ("\uff23\uff21t!", ["=cat", "<ca", "cat", "at>", "<cat", "cat>"]),  # full-width letters and punctuation
        ("猫", ["=猫", "<猫>", "猫"]),  # scripts without spaces give single characters too
        ("...", [""]),
    ],
)
def test_ngrams_by_hand(text: str, ngrams: list[str]) -> None:
    ids = bag(min_ngram=3, max_ngram=4).tokenize([text])[0]
    assert sorted(ids.tolist()) == buckets(*ngrams)


def test_features_are_the_normalised_mean_of_the_rows() -> None:
    model = bag()
    tokens = model.tokenize(["red heart", "x", "", "rouge cœur"])
    expected = torch.stack([F.layer_norm(model.table[ids.tolist()].mean(0), (8,)) for ids in tokens])
    torch.testing.assert_close(model(tokens), expected)


def test_dropout_leaves_a_mean_over_those_kept_and_only_in_training() -> None:
    model = bag(ngram_dropout=0.5).train()
    tokens = model.tokenize(["grinning face", "smiling cat"])
    lengths = [len(ids) for ids in tokens]
    torch.manual_seed(3)
    found = model(tokens)
    torch.manual_seed(3)
    kept = (torch.rand(sum(lengths)) >= 0.5).split(lengths)

    assert 0 < sum(int(part.sum()) for part in kept) < sum(lengths)
    rows = [model.table[ids[part.numpy()].tolist()].mean(0) for ids, part in zip(tokens, kept, strict=True)]
    torch.testing.assert_close(found, torch.stack([F.layer_norm(row, (8,)) for row in rows]))
    assert not torch.allclose(found, model.eval()(tokens))


def test_a_long_text_costs_no_more_than_its_bound() -> None:
    model = bag()
    short, long = model.tokenize(["a " * 2048, "a " * 100_000])
    assert len(short) == len(long)
