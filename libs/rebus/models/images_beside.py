"""Which images the tokens of rows look at by cross-attention: the last one whose placeholder a token may attend to.

A row holds one placeholder an image, and Flamingo's rule (arXiv 2204.14198, section 2.3) is read off the attention that
text has anyway, so that branches of a row do not see each other's images.
"""

# Shape suffixes: B rows, S tokens, T flat tokens, M images a row, N images, V tokens an image, D width.

from __future__ import annotations

import torch
from torch import Tensor

from rebus.models.gated_cross_attention import Images
from rebus.models.packing import PackedRows


def of_rows(is_image_BS: Tensor, features_NVD: Tensor | None, embeds_BSD: Tensor, mask_BSS: Tensor | None) -> Images:
    """The images of whole rows, each with its own in order; ``mask`` as the decoder's, causal without it."""
    counts_B = is_image_BS.sum(1)
    batch, length = is_image_BS.shape
    if features_NVD is None or not len(features_NVD):
        return _nothing(embeds_BSD)
    given_BM = torch.arange(int(counts_B.max()), device=counts_B.device) < counts_B[:, None]
    places_BM = torch.zeros_like(given_BM, dtype=torch.int64)
    places_BM[given_BM] = is_image_BS.nonzero()[:, 1]
    features_BMVD = features_NVD.new_zeros(*given_BM.shape, *features_NVD.shape[1:])
    features_BMVD = features_BMVD.masked_scatter(given_BM[..., None, None], features_NVD)
    order_S = torch.arange(length, device=counts_B.device)
    if mask_BSS is None:
        sees_BSM = order_S[None, :, None] >= places_BM[:, None]
    else:
        sees_BSM = mask_BSS.expand(batch, length, length).gather(2, places_BM[:, None].expand(-1, length, -1))
    return Images(features=features_BMVD, visible=_last(sees_BSM & given_BM[:, None]))


def of_packed(is_image_T: Tensor, features_NVD: Tensor | None, embeds_TD: Tensor, rows: PackedRows) -> Images:
    """The same of a flat batch, as one row of all its images."""
    length = len(is_image_T)
    if features_NVD is None or not len(features_NVD):
        return _nothing(embeds_TD[None])
    device = is_image_T.device
    row_T = torch.from_numpy(rows.origins[:, 0].copy()).to(device)
    at_N, run_T, place_T = is_image_T.nonzero()[:, 0], rows.runs.to(device), torch.arange(length, device=device)
    same_run_TN = run_T[:, None] == run_T[at_N]
    # Prefixes come first, one a row: whatever else is of a row comes after its prefix.
    in_prefix_N = run_T[at_N] <= row_T.max()
    sees_TN = torch.where(same_run_TN, place_T[:, None] >= at_N, in_prefix_N & (row_T[:, None] == row_T[at_N]))
    return Images(features=features_NVD[None], visible=_last(sees_TN[None]))


def _last(sees_BSM: Tensor) -> Tensor:
    """Of the images that a token sees, the last alone."""
    return sees_BSM & (sees_BSM.flip(-1).cumsum(-1).flip(-1) == 1)


def _nothing(embeds_BSD: Tensor) -> Images:
    """One image that nobody sees: layers do the same for a text whether or not its neighbours have images."""
    batch, length, width = embeds_BSD.shape
    visible = torch.zeros(batch, length, 1, dtype=torch.bool, device=embeds_BSD.device)
    return Images(features=embeds_BSD.new_zeros(batch, 1, 1, width), visible=visible)
