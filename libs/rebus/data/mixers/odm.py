"""Online data mixing: a bandit draws more of the sources whose loss is still high.

Exp3 over the sources, its rewards the training losses (Albalak et al. 2023, arXiv 2312.02406, algorithm 1). With K
sources, t - 1 updates done and estimates R of the rewards::

    eps_t = min(1/K, sqrt(ln K / (K t)))
    pi_t(i) = (1 - K eps_t) softmax(eps_{t-1} R)_i + eps_t
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from rebus.data.mixers.base import Mixture, Portion, normalised, pieces
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class OdmConfig:
    """How rewards are summed up."""

    # R <- smoothing R + (1 - smoothing) L / pi ("average", the paper) or R <- R + L / (10 pi) ("sum", its public code).
    accumulate: Literal["average", "sum"] = "average"
    smoothing: float = 0.9
    # Updates during which the stage's own mixture is drawn.
    warmup_updates: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1 or self.warmup_updates < 0:
            raise ValueError(
                f"smoothing={self.smoothing} must be in 0..1 and not 1, warmup_updates={self.warmup_updates} >= 0"
            )


@dataclass(frozen=True, kw_only=True)
class OdmState:
    """What the losses have taught so far."""

    # Source -> estimated reward; a source without one counts as the mean of the others.
    rewards: dict[str, float] = field(default_factory=dict)
    updates: int = 0


@register("mixer", "odm", config=OdmConfig, paper="odm")
class OdmMixer:
    """Draws each sample's source at random by probabilities that follow the losses; none falls below eps_t."""

    learns = True
    state_type = OdmState

    def __init__(
        self, config: OdmConfig, *, mixture: Mixture, sizes: Mapping[str, int], key: tuple[int, ...] = ()
    ) -> None:
        del sizes
        self._config, self._mixture, self._key = config, mixture, key

    def probabilities(self, sample: int, state: OdmState) -> dict[str, float]:
        """Source -> probability at a sample; sums to 1."""
        shares = normalised(self._mixture.at(sample))
        if state.updates < self._config.warmup_updates:
            return shares
        return exp3_probabilities({name: _estimate(name, state) for name in shares}, state.updates + 1)

    def draw(self, start: int, count: int, state: OdmState) -> tuple[list[Portion], OdmState]:
        """One draw a sample; the sample's number and the seed decide it."""
        drawn: list[tuple[str, float]] = []
        for first, stop in pieces(start, start + count, self._mixture.boundaries):
            odds = self.probabilities(first, state)
            drawn += [self._draw(sample, odds) for sample in range(first, stop)]
        return [Portion(name, len(list(group)), odds) for (name, odds), group in itertools.groupby(drawn)], state

    def _draw(self, sample: int, odds: Mapping[str, float]) -> tuple[str, float]:
        point = np.random.default_rng((*self._key, sample)).random()
        bounds = itertools.accumulate(odds.values())
        name = next((name for name, bound in zip(odds, bounds, strict=True) if point < bound), None)
        name = name or list(odds)[-1]  # rounding may leave the sum just below 1
        return name, odds[name]

    def learn(self, rewards: Mapping[str, float], state: OdmState) -> OdmState:
        """One update by the importance-weighted rewards of the sources that a step drew."""
        if not rewards:
            return state
        keep = self._config.smoothing
        known = {name: _estimate(name, state) for name in (*state.rewards, *rewards)}
        for name, reward in rewards.items():
            average = keep * known[name] + (1 - keep) * reward
            known[name] = average if self._config.accumulate == "average" else known[name] + reward / 10
        return OdmState(rewards=known, updates=state.updates + 1)


def _estimate(name: str, state: OdmState) -> float:
    # An exact sum, since documents do not keep the order of names.
    mean = math.fsum(state.rewards.values()) / len(state.rewards) if state.rewards else 0.0
    return state.rewards.get(name, mean)


def exploration(sources: int, update: int) -> float:
    """``eps_t``: the least probability of each of K sources at update t; eps_0 is its limit 1/K."""
    if update == 0:
        return 1 / sources
    return min(1 / sources, math.sqrt(math.log(sources) / (sources * update)))


def exp3_probabilities(estimates: Mapping[str, float], update: int) -> dict[str, float]:
    """``pi_t`` of estimates R at update t >= 1."""
    count = len(estimates)
    least = exploration(count, update)
    scores = exploration(count, update - 1) * np.array(list(estimates.values()))
    powers = np.exp(scores - scores.max())
    odds = (1 - count * least) * powers / powers.sum() + least
    return dict(zip(estimates, odds.tolist(), strict=True))


class DrawnSample(Protocol):
    """What ``rewards`` reads of a sample."""

    @property
    def source(self) -> str: ...

    @property
    def odds(self) -> float: ...


def rewards(losses: Mapping[int, float], drawn: Sequence[DrawnSample]) -> dict[str, float]:
    """Importance-weighted rewards of a step's samples: of source i, ``sum(loss / odds) / m`` over its samples.

    ``losses`` holds the loss of the samples that have one, by their place in ``drawn``. With ``m`` samples in the step,
    the expectation is the source's mean loss whatever the odds were (a source not drawn counts as 0); with one sample
    it is the paper's L / pi.
    """
    found: dict[str, float] = {}
    for place, loss in losses.items():
        sample = drawn[place]
        found[sample.source] = found.get(sample.source, 0.0) + loss / sample.odds / len(drawn)
    return found
