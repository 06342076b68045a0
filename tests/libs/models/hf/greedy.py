"""Text that is the likeliest token by token, by the model's own functions alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rebus.models.mllm import Mllm


@torch.no_grad()
def greedy(model: Mllm, ids: Tensor, features: Tensor, count: int, *, cached: bool) -> list[int]:
    """The next ``count`` tokens of one row, none of which stands for an image; ``features`` are its images'."""
    cache = model.new_cache(1, ids.shape[1] + count) if cached else None
    made: list[int] = []
    seen = ids
    for _ in range(count):
        goes_on = cache is not None and cache.length > 0
        embeds = model.embed(seen[:, -1:]) if goes_on else model.embed(seen, features)
        first = seen.shape[1] - embeds.shape[1]
        positions = torch.arange(first, seen.shape[1])[None]
        scores = model.logits(model.decode(embeds, positions, cache=cache)[0, -1])
        scores[model.config.image_token_id] = -torch.inf
        made.append(int(scores.argmax()))
        seen = torch.cat([seen, torch.tensor([made[-1:]])], dim=1)
    return made


def assert_same_text(
    ours: Mllm, theirs: Any, ids: Tensor, features: Tensor, inputs: Mapping[str, Tensor], *, cached: bool
) -> None:
    """The next 64 tokens of a row ``[1, S]`` agree, and are not one token over and over, which any model might say.

    ``features`` are those of its images, and ``inputs`` how transformers reads these.
    """
    expected = theirs.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **inputs,
        max_new_tokens=64,
        do_sample=False,
        use_cache=cached,
        suppress_tokens=[ours.config.image_token_id],
    )[0, ids.shape[1] :].tolist()
    assert greedy(ours, ids, features, 64, cached=cached) == expected
    assert len(set(expected)) > 5
