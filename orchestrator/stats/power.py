"""Power of a comparison of two points of a curve: which difference its seeds and episodes can show. Pure.

What is computed is the power of the curve's own verdict (`claims.Claim.verdict`), from a model with two
assumptions that a plan states: the spread between trainings, and how much scenes differ in difficulty. The
tests compare it with verdicts on simulated outcomes.
"""

from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import chdtri, expit, ndtr, ndtri, stdtrit

from orchestrator.stats.claims import Claim
from orchestrator.stats.fixed_sample import LEVEL

POWER = 0.8
"""Probability with which a difference is to be found."""
TRAINING_SD = 0.05
"""Assumed standard deviation of the success rate between trainings of one recipe."""
SCENE_SD = 1.0
"""Assumed standard deviation of scenes' difficulty, on a logit scale."""
AROUND = 0.5
"""Assumed mean rate of the two points: the one where a difference is hardest to find."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(40)  # type: ignore[no-untyped-call]
_QUANTILES = (np.arange(200) + 0.5) / 200  # at which the power is averaged over observed spreads


@dataclass(frozen=True)
class Comparison:
    """A planned comparison of two points."""

    seeds: int
    """Trainings of each point."""
    episodes: int
    """Episodes per training, of all tasks."""
    compared: int = 1
    """Number of comparisons of the same question, for whose number the p-value is corrected; the first of
    Holm's steps counts.
    """
    paired: bool = True
    """Whether both points are scored on the same episodes; else on as many of their own."""
    training_sd: float = TRAINING_SD
    scene_sd: float = SCENE_SD

    def power(self, difference: float, around: float = AROUND) -> float:
        """Return the probability of a verdict for the better one: between the recipes, or with too few seeds
        between the trained policies.

        difference: of the two success rates, above 0. around: their mean.
        """
        first, second = self._by_scene(around + difference / 2), self._by_scene(around - difference / 2)
        noise = _mean(first * (1 - first) + second * (1 - second))
        if self.paired:
            differ = _mean(first * (1 - second) + second * (1 - first))
            scenes = _mean((first - second) ** 2) - _mean(first - second) ** 2
        else:
            differ = 2 * around * (1 - around)
            scenes = sum(_mean(rates**2) - _mean(rates) ** 2 for rates in (first, second))
        pairs = self.seeds * self.episodes
        # Exact tests are conservative: with this, powers of 15 to 400 pairs are within 0.02 of exact ones.
        tested = ndtri(1 - LEVEL / 2 / self.compared) * sqrt(differ / pairs) + 0.6 / pairs
        between = (2 * self.training_sd**2 + noise / self.episodes) / self.seeds
        shared = scenes / self.episodes
        if not Claim(self.seeds).of_recipe:
            return float(ndtr((difference - tested) / sqrt(noise / pairs + shared)))
        freedom = self.seeds - 1
        observed = between * chdtri(freedom, _QUANTILES) / freedom
        half = np.sqrt(stdtrit(freedom, 1 - LEVEL / 2) ** 2 * observed + ndtri(1 - LEVEL / 2) ** 2 * shared)
        return float(np.mean(ndtr((difference - np.maximum(half, tested)) / sqrt(between + shared))))

    def smallest_difference(self, power: float = POWER) -> float:
        """Return the smallest difference that is found with this power; infinite if none is."""
        largest = 2 * min(AROUND, 1 - AROUND) - 1e-6
        if self.power(largest) < power:
            return inf
        return float(brentq(lambda difference: self.power(difference) - power, 1e-6, largest, xtol=1e-4))

    def _by_scene(self, rate: float) -> NDArray[np.float64]:
        """Return success rates by scene whose mean is `rate`, at `_NODES`."""

        def rates(mean: float) -> NDArray[np.float64]:
            return np.asarray(expit(mean + self.scene_sd * _NODES))

        return rates(brentq(lambda mean: _mean(rates(mean)) - rate, -40, 40))


def fewest_episodes(planned: Comparison, difference: float, most: int, power: float = POWER) -> int | None:
    """Return the fewest episodes per training with which a difference is found with this power; None if it
    takes more than `most`.
    """
    if replace(planned, episodes=most).power(difference) < power:
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        enough = replace(planned, episodes=middle).power(difference) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def _mean(by_scene: NDArray[Any]) -> float:
    """Return the mean over scenes of values at `_NODES`."""
    return float(_WEIGHTS @ by_scene / _WEIGHTS.sum())
