"""Which arm to train or score next: the one that narrows the forecast of a target most for its cost. Pure.

Preposterior analysis (Raiffa and Schlaifer 1961): every draw of the forecast predicts a candidate's successes
and has a value of the target; draws that predict like successes are those that would remain, so the target's
interval within them is the one that the candidate would leave (by grouping, as Strong et al. 2014 do by
regression). Shapes: D draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from orchestrator.stats.forecast import CONFIDENCE, FURTHEST, Forecast
from orchestrator.stats.sample_efficiency import Floats, area

GROUPS = 12
"""Number of groups of like predicted successes."""
NARROWS = 0.01
"""Part of the target's interval below which a candidate is not worth its cost."""


@dataclass(frozen=True)
class Candidate:
    """A new training of a point with a score of so many episodes, or further episodes of a trained arm."""

    demos: int
    ratio: float
    episodes: int
    cost: float
    """In whatever unit; the same for all candidates."""
    arm: int | None = None
    """Place of the trained arm among those of the forecast; None for a new training."""


@dataclass(frozen=True)
class Target:
    """The number to know: one value for each draw of a forecast."""

    name: str
    of: Callable[[Forecast], Floats]
    """Returns (D,) finite values, on the scale on which the width of an interval counts."""


def demos_for(rate: float, ratio: float) -> Target:
    """Return the target "log demos that a rate takes at a ratio"; never counts as FURTHEST times the largest
    count tried.
    """

    def of(fitted: Forecast) -> Floats:
        most = log(fitted.arms.counts[-1] * FURTHEST)
        return np.minimum(np.log(fitted.needed(rate, ratio)), most)

    return Target(f"the demos that {100 * rate:g} % takes", of)


def equivalence() -> Target:
    """Return the target "power of (1 + ratio) by which action-free video multiplies demos"."""
    return Target("what action-free video is worth in demos", lambda fitted: fitted.powers)


def area_between(low: float, high: float, ratio: float) -> Target:
    """Return the target "mean success rate over log demos between two counts, at a ratio"."""
    demos = np.geomspace(low, high, 24)
    return Target("the area under the curve", lambda fitted: area(demos, fitted.rates(demos, ratio)))


@dataclass(frozen=True)
class Proposal:
    """A candidate with what it is worth."""

    candidate: Candidate
    width: float
    """Of the target's interval now."""
    expected: float
    """Of the target's interval after the candidate's score, on average."""

    @property
    def narrows(self) -> float:
        """The expected narrowing, as a part of the interval."""
        return 1 - self.expected / self.width if self.width > 0 else 0.0

    @property
    def worth(self) -> float:
        """The expected narrowing per unit of cost."""
        return self.narrows / self.candidate.cost


def proposals(fitted: Forecast, target: Target, candidates: Sequence[Candidate]) -> list[Proposal]:
    """Return the candidates by what they are worth, the best first."""
    values = target.of(fitted)
    width = _width(values)
    found = []
    for number, candidate in enumerate(candidates):
        if candidate.arm is None:
            episodes = np.array([float(candidate.episodes)])
            drawn = fitted.successes(candidate.demos, candidate.ratio, episodes, seed=number)[:, 0]
        else:
            drawn = fitted.more_successes(candidate.arm, candidate.episodes, seed=number)
        found.append(Proposal(candidate, width, _remaining(values, drawn.astype(np.float64))))
    return sorted(found, key=lambda one: -one.worth)


def worthwhile(best: Proposal, budget: float) -> bool:
    """Return whether a proposal is worth making: it narrows the interval by NARROWS or more, and the budget
    pays for it.
    """
    return best.narrows >= NARROWS and best.candidate.cost <= budget


def _remaining(values: Floats, successes: Floats) -> float:
    """Return the mean width of the target's interval within groups of draws that predict like successes, less
    what grouping at random narrows. values, successes: (D,).
    """
    order = np.argsort(successes + np.random.default_rng(0).random(len(successes)) * 1e-6)
    grouped = _mean_width(values[order])
    chance = _mean_width(np.random.default_rng(1).permutation(values))
    return grouped * _width(values) / chance if chance > 0 else 0.0


def _mean_width(values: Floats) -> float:
    groups = np.array_split(values, GROUPS)
    return float(np.mean([_width(group) for group in groups]))


def _width(values: Floats) -> float:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(high - low)
