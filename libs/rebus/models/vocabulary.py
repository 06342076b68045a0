"""A decoder's tables for another vocabulary: rows for tokens that were added, none for ids that no token has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rebus.models.decoders.transformer import Decoder

# Names of the tables in a decoder's state; the second is there where they are not tied.
_TABLES = ("embed_tokens.weight", "lm_head.weight")


def with_vocabulary(decoder: Decoder, size: int, added: Mapping[int, Sequence[int]]) -> dict[str, Tensor]:
    """The decoder's state with tables of ``size`` rows.

    A row of ``added`` is the mean of the old rows that it lists, or of all that are kept where it lists none: a row
    drawn at random would start with a logit far from the others' (Hewitt, 2021). Every other row is the old one; ids
    from ``size`` on, padding of the table, are dropped. Raises ``ValueError`` for an id that has neither.
    """
    state = {name: value.detach().clone() for name, value in decoder.state_dict().items()}
    for name in _TABLES:
        if name in state:
            state[name] = _table(state[name], size, added)
    return state


def _table(old_VD: Tensor, size: int, added: Mapping[int, Sequence[int]]) -> Tensor:
    if bad := [index for index in range(len(old_VD), size) if index not in added]:
        raise ValueError(f"ids {bad[0]} to {bad[-1]} are beyond the {len(old_VD)} rows of the decoder's table")
    kept = [index for index in range(min(size, len(old_VD))) if index not in added]
    new_VD = torch.empty(size, old_VD.shape[1], dtype=old_VD.dtype)
    new_VD[kept] = old_VD[kept]
    for index, like in added.items():
        new_VD[index] = old_VD[list(like) or kept].mean(0)
    return new_VD
