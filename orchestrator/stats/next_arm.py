"""Which arm to train or score next: the one that narrows the forecast of a target most for its cost. Pure.

Preposterior analysis (Raiffa and Schlaifer 1961): every draw of the forecast predicts a candidate's successes
and has a value of the target. A possible score weighs the draws by the probability that they give it; the
target's distribution under these weights is the one that this score would leave. An interval is taken to
narrow as the standard deviation does, whose expectation is less noisy. Shapes: D draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from scipy.special import betaln

from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.forecast import FURTHEST, Forecast, predicted, predicted_each
from orchestrator.stats.sample_efficiency import Floats, area

SCORES = 32
"""Number of possible scores of a candidate that are weighed, equally probable ones."""
NARROWS = 0.01
"""Part of the target's interval below which a candidate is not worth its cost."""
CHANGES = 0.05
"""Probability below which a candidate's score does not change a verdict."""


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
    asks: float | None = None
    """Value that the verdict is about: whether the target is above or below it; None: there is no verdict."""
    in_demos: bool = False
    """Whether the values are logarithms of demos."""


def demos_for(rate: float, ratio: float) -> Target:
    """Return the target "log demos that a rate takes at a ratio"; never counts as FURTHEST times the largest
    count tried.
    """

    def of(fitted: Forecast) -> Floats:
        most = log(fitted.arms.counts[-1] * FURTHEST)
        return np.minimum(np.log(fitted.needed(rate, ratio)), most)

    return Target(f"the demos that {100 * rate:g} % takes", of, in_demos=True)


def equivalence() -> Target:
    """Return the target "power of (1 + ratio) by which action-free video multiplies demos", whose verdict is
    whether video helps (above 0) or harms (below 0).
    """
    return Target("what action-free video is worth in demos", lambda fitted: fitted.powers, 0.0)


def area_between(low: float, high: float, ratio: float) -> Target:
    """Return the target "mean success rate over log demos between two counts, at a ratio"."""
    demos = np.geomspace(low, high, 24)
    return Target("the area under the curve", lambda fitted: area(demos, fitted.rates(demos, ratio)))


@dataclass(frozen=True)
class Proposal:
    """A candidate with what it is worth."""

    candidate: Candidate
    interval: Interval
    """Of the target now."""
    expected: float
    """Width of the target's interval after the candidate's score, on average."""
    changes: float = 0.0
    """Probability that the candidate's score changes the verdict."""

    @property
    def width(self) -> float:
        """Width of the target's interval now."""
        return self.interval.width

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
    order = np.argsort(values)
    values, now = values[order], predicted(values)
    found = []
    for candidate in candidates:
        weights = _after(fitted, candidate)[:, order]
        means = weights @ values
        left = float(np.mean(weights @ values**2 - means**2))
        part = sqrt(max(0.0, left) / variance) if (variance := float(values.var())) > 0 else 1.0
        changes = 0.0
        if target.asks is not None:
            later = predicted_each(values, weights)
            changes = float(np.mean([_verdict(target, *one) != _verdict(target, *now) for one in later]))
        found.append(Proposal(candidate, now, min(1.0, part) * now.width, changes))
    return sorted(found, key=lambda one: -one.worth)


def worthwhile(best: Proposal, budget: float) -> bool:
    """Return whether a proposal is worth making: it narrows the interval by NARROWS or more, and the budget
    pays for it.
    """
    return best.narrows >= NARROWS and best.candidate.cost <= budget


def settled(target: Target, ranked: Sequence[Proposal]) -> bool:
    """Return whether there is a verdict on the target that no candidate's score changes, but with a
    probability below CHANGES.
    """
    return bool(ranked and _verdict(target, *ranked[0].interval)) and all(
        one.changes < CHANGES for one in ranked
    )


def _verdict(target: Target, low: float, high: float) -> int:
    """Return 1 if an interval lies above what the target asks, -1 if below, 0 if neither."""
    if target.asks is None:
        return 0
    return int(low > target.asks) - int(high < target.asks)


def _after(fitted: Forecast, candidate: Candidate) -> Floats:
    """Return the weights of the draws after each of the candidate's equally probable scores, (SCORES, D)."""
    if candidate.arm is None:
        first, second = fitted.trained(candidate.demos, candidate.ratio)
    else:
        first, second = fitted.trained_arm(candidate.arm)
    episodes, rng = candidate.episodes, np.random.default_rng(0)
    drawn = np.sort(rng.binomial(episodes, rng.beta(first, second)))
    won = drawn[((np.arange(SCORES) + 0.5) / SCORES * len(drawn)).astype(int)][:, None]
    likelihood = betaln(first + won, second + episodes - won) - betaln(first, second)
    weights = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
