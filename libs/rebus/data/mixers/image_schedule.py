"""Text first, pictures later: images enter language-model pre-training once a share of its budget is spent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rebus.data.mixers.base import Mixture, normalised
from rebus.data.mixers.scheduled import ScheduledMixer
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ImageScheduleConfig:
    """When images come, which sources hold them, and how many of the samples they are then."""

    # Samples of the whole pre-training.
    total_samples: int
    # Sources with images; all others of the mixture are text.
    image_sources: list[str]
    # Share of the samples drawn before the first image.
    image_start: float = 0.8
    # Share of image sources among the samples after that.
    image_share: float = 0.1

    def __post_init__(self) -> None:
        if self.total_samples < 1 or not 0 <= self.image_start <= 1 or not 0 < self.image_share <= 1:
            raise ValueError(
                f"total_samples={self.total_samples} must be positive, image_start={self.image_start} in 0..1, "
                f"image_share={self.image_share} in 0..1 and not 0"
            )

    @property
    def first_image_sample(self) -> int:
        """Number of the first sample drawn from text and images."""
        return round(self.image_start * self.total_samples)


@register("mixer", "vlm-when-images", config=ImageScheduleConfig, paper="vlm-when-images")
class ImageScheduleMixer(ScheduledMixer):
    """Draws text alone, then image sources in a fixed share; weights are relative within text and within images."""

    def __init__(
        self, config: ImageScheduleConfig, *, mixture: Mixture, sizes: Mapping[str, int], key: tuple[int, ...] = ()
    ) -> None:
        del sizes, key
        super().__init__(mixture, [config.first_image_sample])
        self._config = config
        for sample in (0, *self._boundaries):
            self.weights(sample)

    def weights(self, sample: int) -> Mapping[str, float]:
        """``ValueError`` where the mixture has no source of a kind that is due."""
        text, images = self._kind(sample, images=False), self._kind(sample, images=True)
        share = self._config.image_share if sample >= self._config.first_image_sample else 0.0
        _require(text, share < 1, "text")
        _require(images, share > 0, f"images (image_sources={self._config.image_sources})")
        return {
            **{name: weight * (1 - share) for name, weight in text.items()},
            **{name: weight * share for name, weight in images.items()},
        }

    def _kind(self, sample: int, *, images: bool) -> dict[str, float]:
        """Shares of the image sources, or of the others, among themselves."""
        chosen = {n: w for n, w in self.mixture.at(sample).items() if (n in self._config.image_sources) is images}
        return normalised(chosen)


def _require(found: Collection[str], needed: bool, kind: str) -> None:
    if needed and not found:
        raise ValueError(f"the mixture has no source of {kind}")
