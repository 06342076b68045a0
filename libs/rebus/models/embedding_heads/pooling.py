"""One hidden state a document: its last token's, or the mean of its tokens'; of padded rows and of packed documents."""

# Shape suffixes: B rows, S tokens of a row, T tokens of all documents, G documents, D width.

from __future__ import annotations

import torch
from torch import Tensor


def last_token(hidden_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """The last token that is not padding, ``[B, D]``; ``ValueError`` for a row that is nothing but padding."""
    places_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
    last_B = torch.where(mask_BS, places_S, -1).amax(1)
    _check(last_B >= 0)
    return hidden_BSD[torch.arange(len(last_B), device=last_B.device), last_B]


def last_token_packed(hidden_TD: Tensor, documents_T: Tensor, num_documents: int) -> Tensor:
    """The same of packed documents, ``[G, D]``."""
    kept = documents_T >= 0
    places_T = torch.arange(len(documents_T), device=documents_T.device)
    last_G = torch.full((num_documents,), -1, device=documents_T.device)
    last_G = last_G.scatter_reduce(0, documents_T[kept], places_T[kept], "amax")
    _check(last_G >= 0)
    return hidden_TD[last_G]


def mean(hidden_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """The mean over tokens that are not padding, ``[B, D]``, summed in float32; ``ValueError`` as ``last_token``."""
    counts_B = mask_BS.sum(1)
    _check(counts_B > 0)
    sums_BD = hidden_BSD.masked_fill(~mask_BS[..., None], 0.0).sum(
        1, dtype=torch.promote_types(hidden_BSD.dtype, torch.float32)
    )
    return (sums_BD / counts_B[:, None]).to(hidden_BSD.dtype)


def mean_packed(hidden_TD: Tensor, documents_T: Tensor, num_documents: int) -> Tensor:
    """The same of packed documents, ``[G, D]``."""
    kept = documents_T >= 0
    documents_T, hidden_TD = documents_T[kept], hidden_TD[kept]
    counts_G = torch.bincount(documents_T, minlength=num_documents)
    _check(counts_G > 0)
    wide_TD = hidden_TD.to(torch.promote_types(hidden_TD.dtype, torch.float32))
    sums_GD = wide_TD.new_zeros(num_documents, wide_TD.shape[1]).index_add(0, documents_T, wide_TD)
    return (sums_GD / counts_G[:, None]).to(hidden_TD.dtype)


def _check(has_tokens: Tensor) -> None:
    if not has_tokens.all():
        raise ValueError(f"documents {torch.nonzero(~has_tokens)[:, 0].tolist()} have no tokens to embed")
