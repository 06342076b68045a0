"""Recognition from regions: each image token names the words said of the region it lies in.

A bag of words is predicted through the connector and the decoder's own embedding table, so nothing is added to the
model, and image tokens learn to look like the words they mean before the decoder first reads them. Captions with boxes
as a pre-training signal: MMGiC (arXiv 2412.05939); bag-of-words targets through the language model's head:
arXiv 2401.11248.
"""

# Shape suffixes: N images, T image tokens, D width, C candidate words.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.models.mllm import Mllm
from rebus.models.packing import PackedRegion
from rebus.objectives.base import MllmOutputs
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class RegionWordsConfig:
    """Weights of the tokens."""

    # Weight of an image token that no region's centre lies in, against 1 for one that does. Such a token is to name
    # ``<image>``: nothing.
    background_weight: float = 0.2
    # Words that a larger share of a batch's phrases hold are not asked for.
    common_share: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.common_share <= 1:
            raise ValueError(f"common_share={self.common_share} is outside 0..1")
        if self.background_weight < 0:
            raise ValueError(f"background_weight={self.background_weight} must not be negative")


@register("objective", "region-words", config=RegionWordsConfig, paper="mmgic")
class RegionWords:
    """Cross-entropy between an image token's words and those said of its region, common words left out."""

    needs_decoder = False

    def __init__(self, config: RegionWordsConfig) -> None:
        self._config = config

    def __call__(self, model: Mllm, outputs: MllmOutputs) -> Tensor:
        """Mean over image tokens of KL(target || predicted): 0 is reached when the words are named exactly.

        Only words that some region of the batch asks for compete. Were the whole vocabulary to, every other word would
        be pushed away from all images, and the decoder would start by unlearning that.
        """
        grid = model.image_grid  # asked first: it refuses models whose features have no such shape
        features_NTD = outputs.image_features
        regions = outputs.batch.rows.regions
        words = sorted(telling_words([region.token_ids for region in regions], self._config.common_share))
        if features_NTD is None or not words:
            return next(model.parameters()).new_zeros(())
        candidates = torch.tensor([model.config.image_token_id, *words], device=features_NTD.device)
        targets_NTC, found_NT = _targets(features_NTD, candidates, regions, grid)
        logits_NTC = model.logits(model.decoder.norm(features_NTD)).float()[..., candidates]
        losses_NT = F.kl_div(F.log_softmax(logits_NTC, dim=-1), targets_NTC, reduction="none").sum(-1)
        weights_NT = torch.where(found_NT, 1.0, self._config.background_weight)
        return (losses_NT * weights_NT).sum() / weights_NT.sum()


def _targets(
    features_NTD: Tensor, candidates: Tensor, regions: Sequence[PackedRegion], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Word distributions ``[N, T, C]`` over the candidates, the first "nothing", and which tokens show a region."""
    column = {int(word): at for at, word in enumerate(candidates)}
    targets = features_NTD.new_zeros(*features_NTD.shape[:2], len(candidates))
    for region in regions:
        asked = sorted({column[token] for token in region.token_ids if token in column})
        targets[region.image, cell_of(region.region, grid), asked] = 1.0
    found = targets.sum(-1) > 0
    targets[..., 0] = torch.where(found, 0.0, 1.0)
    return targets / targets.sum(-1, keepdim=True), found


def cell_of(region: tuple[float, float, float, float], grid: tuple[int, int]) -> int:
    """Index of the grid cell (rows first) that holds the region's centre."""
    rows, columns = grid
    row = min(int((region[1] + region[3]) / 2 * rows), rows - 1)
    column = min(int((region[0] + region[2]) / 2 * columns), columns - 1)
    return row * columns + column


def telling_words(phrases: Sequence[Sequence[int]], common_share: float) -> set[int]:
    """Tokens that at most ``common_share`` of the phrases hold: the others (articles, commas) tell nothing."""
    counts = Counter(token for phrase in phrases for token in set(phrase))
    return {token for token, count in counts.items() if count <= common_share * len(phrases)}
