"""Batched autoregressive decoding over a key/value cache."""

# Shape suffixes: B batch, S prompt tokens, C cached + new tokens, V vocabulary.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebus.data.encoding import Row, attention_allowed
from rebus.models.mllm import Mllm

_PADDING = -1  # branch id of padding


@dataclass(frozen=True, kw_only=True)
class PaddedRows:
    """Rows of a batch, padded on the left so that all end at the same column."""

    input_ids_BS: Tensor
    positions_BS: Tensor
    branches_BS: Tensor
    # Whether attention is causal as it stands: no padding, and no row with two branches beside the shared one.
    plain: bool

    @classmethod
    def of(cls, rows: Sequence[Row], pad_token_id: int, device: torch.device) -> PaddedRows:
        """Pads ``rows`` to the longest."""
        longest = max(len(row) for row in rows)
        columns = np.full((3, len(rows), longest), 0, dtype=np.int64)
        columns[0], columns[2] = pad_token_id, _PADDING
        for index, row in enumerate(rows):
            columns[:, index, longest - len(row) :] = row.input_ids, row.positions, row.branches
        ids, positions, branches = torch.from_numpy(columns).to(device)
        return cls(input_ids_BS=ids, positions_BS=positions, branches_BS=branches, plain=_plain(rows, longest))


def _plain(rows: Sequence[Row], longest: int) -> bool:
    return all(len(row) == longest and len(set(row.branches.tolist()) - {0}) <= 1 for row in rows)


@torch.inference_mode()
def decode(
    model: Mllm,
    rows: PaddedRows,
    image_features: Tensor | None,
    *,
    choose: Callable[[Tensor], Tensor],
    max_new_tokens: int,
) -> Iterator[Tensor]:
    """Yields the next token of every row, ``[B]``, up to ``max_new_tokens`` times; the caller decides when to stop.

    ``image_features`` (see ``Mllm.embed``) stand in order of their placeholders. ``choose`` maps logits ``[B, V]``
    to token ids ``[B]``. New tokens belong to the last branch of their row: they see it and the shared context.
    """
    batch_size, length = rows.input_ids_BS.shape
    cache = model.new_cache(batch_size, length + max_new_tokens - 1)
    embeds = model.embed(rows.input_ids_BS, image_features)
    mask_BSS = _prompt_mask(rows)
    images = model.images_beside(rows.input_ids_BS, embeds, image_features, mask_BSS)
    hidden_BSD = model.decode(embeds, rows.positions_BS, mask_BSS, cache, images)
    images = None if images is None else images.at_last
    visible_BC = _visible_to_new(rows)
    positions_B1 = rows.positions_BS[:, -1:]
    for step in range(max_new_tokens):
        tokens_B = choose(model.logits(hidden_BSD[:, -1]))
        yield tokens_B
        if step == max_new_tokens - 1:
            return
        positions_B1 = positions_B1 + 1
        mask_B1C = None
        if visible_BC is not None:
            visible_BC = torch.cat([visible_BC, torch.ones_like(visible_BC[:, :1])], dim=1)
            mask_B1C = visible_BC[:, None]
        hidden_BSD = model.decode(model.embed(tokens_B[:, None]), positions_B1, mask_B1C, cache, images)


def _prompt_mask(rows: PaddedRows) -> Tensor | None:
    if rows.plain:
        return None
    allowed = attention_allowed(rows.branches_BS.cpu().numpy())
    return torch.from_numpy(allowed).to(rows.branches_BS.device)


def _visible_to_new(rows: PaddedRows) -> Tensor | None:
    if rows.plain:
        return None
    return (rows.branches_BS == 0) | (rows.branches_BS == rows.branches_BS[:, -1:])


def suppress(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """``logits`` ``[B, V]`` with these tokens made impossible."""
    return logits.index_fill(-1, torch.tensor(list(token_ids), device=logits.device), -torch.inf)
