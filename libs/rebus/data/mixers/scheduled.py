"""Mixers whose weights follow from the sample's number alone: every source is drawn in its exact share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rebus.data.mixers.base import Mixture, Portion, normalised, pieces


@dataclass(frozen=True, kw_only=True)
class ShareState:
    """What was drawn since the weights last changed."""

    # Global number of the first sample of these weights.
    since: int = 0
    # Source -> samples drawn since.
    taken: dict[str, int] = field(default_factory=dict)


class ScheduledMixer:
    """Draws by ``weights(sample)``, which changes at known samples and nowhere else.

    After any draw each source is within one sample of its share since the last change; the heaviest takes what
    rounding leaves over. A draw too small to afford that catches up in the next ones.
    """

    learns = False
    state_type = ShareState

    def __init__(self, mixture: Mixture, boundaries: Iterable[int] = ()) -> None:
        self.mixture = mixture
        self._boundaries = sorted({*mixture.boundaries, *boundaries})

    def weights(self, sample: int) -> Mapping[str, float]:
        """Weights of the sources at a sample; constant between the boundaries."""
        return self.mixture.at(sample)

    def draw(self, start: int, count: int, state: ShareState) -> tuple[list[Portion], ShareState]:
        """The exact shares of the samples, source by source between two changes of the weights."""
        portions: list[Portion] = []
        for first, stop in pieces(start, start + count, self._boundaries):
            since = max((at for at in self._boundaries if at <= first), default=0)
            taken = state.taken if state.since == since else {}
            shares = normalised(self.weights(first))
            counts = _apportion(shares, stop - since, taken, stop - first)
            portions += [Portion(name, counts[name], share) for name, share in shares.items()]
            state = ShareState(since=since, taken={name: taken.get(name, 0) + counts[name] for name in shares})
        return portions, state

    def learn(self, rewards: Mapping[str, float], state: ShareState) -> ShareState:
        """Schedules do not learn."""
        del rewards
        return state


def _apportion(shares: Mapping[str, float], slots: int, taken: Mapping[str, int], count: int) -> dict[str, int]:
    """``count`` more samples, after which each source but the heaviest has ``slots * share`` samples, rounded."""
    heaviest = max(shares, key=lambda name: shares[name])
    due = {name: int(slots * share + 0.5) - taken.get(name, 0) for name, share in shares.items() if name != heaviest}
    counts: dict[str, int] = {}
    for name in sorted(due, key=lambda name: -due[name]):
        counts[name] = min(max(due[name], 0), count - sum(counts.values()))
    return {**counts, heaviest: count - sum(counts.values())}
