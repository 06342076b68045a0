"""Images of different sizes in one sequence ("Patch n' Pack", arXiv 2307.06304), without padding."""

# Shape suffixes: B batch, T tokens, N heads, H head dim.

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from rebus.models.attention import dense_attention


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Patches ``[rows * columns, C * patch_size ** 2]`` of an image ``[C, H, W]``, row by row.

    A row is laid out as a convolution's weights; what is left over at the right and the bottom is cut.
    """
    rows, columns = (side // patch_size for side in image.shape[1:])
    whole = image[:, : rows * patch_size, : columns * patch_size]
    cells = whole.unflatten(2, (columns, patch_size)).unflatten(1, (rows, patch_size))
    return cells.permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)


def packed_attention(q_1TNH: Tensor, k_1TNH: Tensor, v_1TNH: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention ``[1, T, N, H]`` within each of the consecutive segments of ``lengths``, which make up T.

    The same as a block-diagonal mask, but a call a run of equal lengths: a masked kernel would compute the blocks that
    the mask then hides.
    """
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    outs: list[Tensor] = []
    for (length, count), *parts in zip(runs, *(x.split(sizes, 1) for x in (q_1TNH, k_1TNH, v_1TNH)), strict=True):
        q_BTNH, k_BTNH, v_BTNH = (part[0].unflatten(0, (count, length)) for part in parts)
        outs.append(dense_attention(q_BTNH, k_BTNH, v_BTNH, causal=False).flatten(0, 1))
    return torch.cat(outs)[None]
