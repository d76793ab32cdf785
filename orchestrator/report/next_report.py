"""The next arm of a sweep: candidates with their costs from the arms so far, and the best in three lines."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import nnls

from orchestrator.config.arms import in_demos
from orchestrator.config.schema import Prices
from orchestrator.cost import Cost
from orchestrator.report.curve_types import Series
from orchestrator.report.forecast_report import PolicyForecast, SweepForecast, demos_in_words
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.forecast import CONFIDENCE, FURTHEST, Forecast
from orchestrator.stats.next_arm import (
    CHANGES,
    NARROWS,
    Candidate,
    Proposal,
    Target,
    area_between,
    demos_for,
    equivalence,
    proposals,
    settled,
    worthwhile,
)

BEYOND = 4.0
"""Multiple of the largest demo count tried up to which counts are proposed."""
Wanted = Literal["demos", "equivalence", "area"]
"""What to know: demos that a rate takes, what action-free video is worth in demos, or the area under the
curve.
"""


@dataclass(frozen=True)
class ArmCosts:
    """What arms cost: training, which may rise with demos, and every episode of a score."""

    unit: str
    base: float
    """Of a training with no demos."""
    per_demo: float
    """Of a training, for every demo."""
    episode: float
    of: Callable[[Cost], float]
    """Returns a cost in the unit."""

    @classmethod
    def fitted(cls, prices: Prices, demos: Sequence[float], costs: Sequence[Cost]) -> "ArmCosts":
        """Return the costs of arms, by least squares from those of scored ones. demos, costs: per arm, with
        one episode or more. Arms that cost nothing count as one unit each.
        """
        unit, of = unit_of(prices, costs)
        trained = np.array([of(_training(cost)) for cost in costs])
        scored = [(of(cost) - of(_training(cost))) / cost.episodes for cost in costs]
        if not trained.any() and not any(scored):
            return cls("arms", 1.0, 0.0, 0.0, of)
        (base, per_demo), _ = nnls(np.column_stack([np.ones(len(demos)), demos]), trained)
        return cls(unit, float(base), float(per_demo), float(np.mean(scored)), of)

    def training(self, demos: float, episodes: int) -> float:
        """Return the cost of training an arm and scoring it."""
        return self.base + self.per_demo * demos + self.episode * episodes


@dataclass(frozen=True)
class NextArm:
    """The candidates of one policy of a sweep, the best first."""

    policy: str
    target: Target
    fitted: Forecast
    unit: str
    """Of the costs."""
    ranked: tuple[Proposal, ...]
    budget: float
    """In the same unit; infinite if there is none."""

    @property
    def settled(self) -> bool:
        """Whether no candidate changes the verdict on the target."""
        return settled(self.target, self.ranked)

    @property
    def best(self) -> Proposal | None:
        """The proposal; None if no candidate is worth its cost, or the verdict is settled."""
        affordable = [one for one in self.ranked if worthwhile(one, self.budget)]
        return affordable[0] if affordable and not self.settled else None

    def in_words(self) -> list[str]:
        """Return the proposal and its reasons, in three lines; or that there is none, in one."""
        best = self.best
        if not best:
            return [f"{self.policy}: {self._why_none()}; stop here."]
        second = next((one for one in self.ranked if one is not best), None)
        beside = ""
        if second:
            part = f"{100 * second.worth / best.worth:.0f} %"
            beside = f"; the next best, {describe(second.candidate)}, is worth {part} of that"
        return [
            f"{self.policy}: {describe(best.candidate)}.",
            f"It narrows the interval of {self.target.name} by {100 * best.narrows:.0f} % on average, for"
            f" {best.candidate.cost:,.3g} {self.unit}{beside}.",
            f"{len(self.ranked)} candidates were weighed, by the forecast from {len(self.fitted.arms.demos)}"
            f" arms: {100 * CONFIDENCE:g} % interval {self._interval(best.interval)}.",
        ]

    def _why_none(self) -> str:
        if not self.ranked:
            return "no candidate is left"
        if self.settled:
            now = self.ranked[0].interval
            side = "above" if now.low > (self.target.asks or 0.0) else "below"
            return (
                f"the interval of {self.target.name}, {self._interval(now)}, lies {side}"
                f" {self.target.asks:g}, and no candidate changes that with a probability of"
                f" {100 * CHANGES:g} % or more"
            )
        return f"no candidate narrows {self.target.name} by {100 * NARROWS:g} % or more within the budget"

    def _interval(self, interval: Interval) -> str:
        if not self.target.in_demos:
            return f"{interval.low:.2f} to {interval.high:.2f}"
        most = float(self.fitted.arms.counts[-1]) * FURTHEST
        low, high = (
            demos_in_words(math.exp(bound))
            if math.exp(bound) < 0.99 * most
            else f"more than {demos_in_words(most)}"
            for bound in interval
        )
        return f"{low} to {high} demos"

    def to_json(self) -> dict[str, Any]:
        """Return the candidates as a JSON-safe object."""
        return {
            "policy": self.policy,
            "target": self.target.name,
            "unit": self.unit,
            "stop": self.best is None,
            "candidates": [
                {
                    "demos": one.candidate.demos,
                    "ratio": one.candidate.ratio,
                    "episodes": one.candidate.episodes,
                    "new_training": one.candidate.arm is None,
                    "cost": one.candidate.cost,
                    "narrows": one.narrows,
                    "worth": one.worth,
                }
                for one in self.ranked
            ],
        }


def describe(candidate: Candidate) -> str:
    """Return a candidate in words."""
    ratio = f" and {candidate.ratio:g} action-free per demo" if candidate.ratio else ""
    if candidate.arm is None:
        return f"train a further seed of {in_demos(candidate.demos)}{ratio}, {candidate.episodes} episodes"
    return f"play {candidate.episodes} further episodes of an arm of {in_demos(candidate.demos)}{ratio}"


def next_arms(
    curve: Curve, target: Wanted, rate: float, budget: float, possible: Callable[[int, float], bool]
) -> list[NextArm | str]:
    """Return the next arm of every policy, or a sentence on why there is none. possible: whether the episode
    store has an arm's episodes, by demo count and ratio.
    """
    found = list[NextArm | str]()
    for policy in SweepForecast(curve, rate).policies:
        if not policy.fitted:
            found.append(policy.refused)
            continue
        unit, candidates = _candidates(curve, policy, policy.fitted, possible)
        if not candidates:
            name = policy.lines[0].policy
            found.append(f"{name}: the cost of its arms is not recorded, so nothing is proposed.")
            continue
        wanted = target_of(policy.fitted, target, rate)
        if isinstance(wanted, str):
            found.append(f"{policy.lines[0].policy}: {wanted}")
            continue
        ranked = tuple(proposals(policy.fitted, wanted, candidates))
        found.append(NextArm(policy.lines[0].policy, wanted, policy.fitted, unit, ranked, budget))
    return found


def target_of(fitted: Forecast, target: Wanted, rate: float) -> Target | str:
    """Return the target of a forecast, or a sentence on why it has none. rate: for `demos`."""
    ratios, counts = np.unique(fitted.arms.ratios), fitted.arms.counts
    if target == "equivalence":
        if len(ratios) == 1:
            return "one action-free ratio says nothing about what video is worth."
        return equivalence()
    if target == "area":
        return area_between(float(counts[0]), float(counts[-1]), float(ratios[0]))
    return demos_for(rate, float(ratios[0]))


def _candidates(
    curve: Curve, policy: PolicyForecast, fitted: Forecast, possible: Callable[[int, float], bool]
) -> tuple[str, list[Candidate]]:
    """Return the unit of the costs, and further seeds of counts tried, between them and beyond, at the ratios
    tried, and further episodes of every point's first arm.
    """
    prices = Prices(**curve.sweep.get("prices", {}))
    scored = [arm for arm in curve.arms if Series.of(arm.arm) in policy.lines]
    known = [(arm.arm.demo_count, arm.cost) for arm in scored if arm.cost and arm.cost.episodes]
    if not known:
        return "", []
    costs = ArmCosts.fitted(prices, [demos for demos, _ in known], [cost for _, cost in known])
    counts, episodes = fitted.arms.counts, int(np.median(fitted.arms.episodes))
    between = np.sqrt(counts[:-1] * counts[1:])
    beyond = counts[-1] * np.array([2.0, BEYOND])
    tried = np.unique(np.round(np.concatenate([counts, between, beyond])))
    found = [
        Candidate(int(count), float(ratio), episodes, costs.training(count, episodes))
        for count in tried
        for ratio in np.unique(fitted.arms.ratios)
        if possible(int(count), float(ratio))
    ]
    first: dict[tuple[float, float], int] = {}
    for place, point in enumerate(zip(fitted.arms.demos, fitted.arms.ratios, strict=True)):
        first.setdefault((float(point[0]), float(point[1])), place)
    found += [
        Candidate(int(count), ratio, episodes, costs.episode * episodes, place)
        for (count, ratio), place in first.items()
        if costs.episode > 0
    ]
    return costs.unit, found


def _training(cost: Cost) -> Cost:
    return Cost(train_gpu_s=cost.train_gpu_s, train_cpu_s=cost.train_cpu_s, bytes_read=cost.bytes_read)


def unit_of(prices: Prices, costs: Sequence[Cost]) -> tuple[str, Callable[[Cost], float]]:
    """Return the name of the unit in which arms are compared, and what gives a cost in it."""
    if prices != Prices():
        return "at the sweep's prices", lambda cost: cost.money(prices)
    if any(cost.gpu_s for cost in costs):
        return "GPU-hours", lambda cost: cost.gpu_s / 3600
    return "CPU-hours", lambda cost: cost.cpu_s / 3600
