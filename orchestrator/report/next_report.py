"""The next arm of a sweep: candidates with their costs from the arms so far, and the best in three lines."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from orchestrator.config.schema import Prices
from orchestrator.cost import Cost
from orchestrator.report.curve_types import Series
from orchestrator.report.forecast_report import PolicyForecast, SweepForecast
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.stats.forecast import Forecast
from orchestrator.stats.next_arm import (
    NARROWS,
    Candidate,
    Proposal,
    Target,
    area_between,
    demos_for,
    equivalence,
    proposals,
    worthwhile,
)

BEYOND = 4.0
"""Multiple of the largest demo count tried up to which counts are proposed."""
Wanted = Literal["demos", "equivalence", "area"]
"""What to know: demos that a rate takes, what action-free video is worth in demos, or the area under the
curve.
"""


@dataclass(frozen=True)
class NextArm:
    """The candidates of one policy of a sweep, the best first."""

    policy: str
    target: Target
    unit: str
    """Of the costs."""
    ranked: tuple[Proposal, ...]
    budget: float
    """In the same unit; infinite if there is none."""

    @property
    def best(self) -> Proposal | None:
        """The proposal; None if no candidate is worth its cost."""
        affordable = [one for one in self.ranked if worthwhile(one, self.budget)]
        return affordable[0] if affordable else None

    def in_words(self) -> list[str]:
        """Return the proposal and its reasons, in three lines; or that there is none, in one."""
        best = self.best
        if not best:
            return [
                f"{self.policy}: no candidate narrows {self.target.name} by {100 * NARROWS:g} % or more"
                " within the budget; stop here."
            ]
        second = next((one for one in self.ranked if one is not best), None)
        beside = ""
        if second:
            part = f"{100 * second.worth / best.worth:.0f} %"
            beside = f"; the next best, {describe(second.candidate)}, is worth {part} of that"
        return [
            f"{self.policy}: {describe(best.candidate)}.",
            f"It narrows the interval of {self.target.name} by {100 * best.narrows:.0f} % on average, for"
            f" {best.candidate.cost:,.3g} {self.unit}{beside}.",
            f"{len(self.ranked)} candidates were weighed, by the posterior of the forecast.",
        ]

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
        return f"train a further seed of {candidate.demos} demos{ratio}, {candidate.episodes} episodes"
    return f"play {candidate.episodes} further episodes of an arm of {candidate.demos} demos{ratio}"


def next_arms(curve: Curve, target: Wanted, rate: float, budget: float) -> list[NextArm | str]:
    """Return the next arm of every policy, or a sentence on why there is none."""
    found = list[NextArm | str]()
    for policy in SweepForecast(curve, rate).policies:
        if not policy.fitted:
            found.append(policy.refused)
            continue
        unit, candidates = _candidates(curve, policy, policy.fitted)
        if not candidates:
            name = policy.lines[0].policy
            found.append(f"{name}: the cost of its arms is not recorded, so nothing is proposed.")
            continue
        wanted = _target(policy.fitted, target, rate)
        if isinstance(wanted, str):
            found.append(f"{policy.lines[0].policy}: {wanted}")
            continue
        ranked = tuple(proposals(policy.fitted, wanted, candidates))
        found.append(NextArm(policy.lines[0].policy, wanted, unit, ranked, budget))
    return found


def _target(fitted: Forecast, target: Wanted, rate: float) -> Target | str:
    ratios, counts = np.unique(fitted.arms.ratios), fitted.arms.counts
    if target == "equivalence":
        if len(ratios) == 1:
            return "one action-free ratio says nothing about what video is worth."
        return equivalence()
    if target == "area":
        return area_between(float(counts[0]), float(counts[-1]), float(ratios[0]))
    return demos_for(rate, float(ratios[0]))


def _candidates(curve: Curve, policy: PolicyForecast, fitted: Forecast) -> tuple[str, list[Candidate]]:
    """Return the unit of the costs, and further seeds of counts tried, between them and beyond, at the ratios
    tried, and further episodes of every point's first arm.
    """
    prices = Prices(**curve.sweep.get("prices", {}))
    scored = [arm for arm in curve.arms if Series.of(arm.arm) in policy.lines]
    costs = [arm.cost for arm in scored if arm.cost and arm.cost.episodes]
    if not costs:
        return "", []
    unit, of = _unit(prices, costs)
    train = float(np.mean([of(_training(cost)) for cost in costs]))
    episode = float(np.mean([(of(cost) - of(_training(cost))) / cost.episodes for cost in costs]))
    counts, episodes = fitted.arms.counts, int(np.median(fitted.arms.episodes))
    between = np.sqrt(counts[:-1] * counts[1:])
    beyond = counts[-1] * np.array([2.0, BEYOND])
    tried = np.unique(np.round(np.concatenate([counts, between, beyond])))
    found = [
        Candidate(int(count), float(ratio), episodes, train + episode * episodes)
        for count in tried
        for ratio in np.unique(fitted.arms.ratios)
    ]
    first: dict[tuple[float, float], int] = {}
    for place, point in enumerate(zip(fitted.arms.demos, fitted.arms.ratios, strict=True)):
        first.setdefault((float(point[0]), float(point[1])), place)
    found += [
        Candidate(int(count), ratio, episodes, episode * episodes, place)
        for (count, ratio), place in first.items()
        if episode > 0
    ]
    return unit, found


def _training(cost: Cost) -> Cost:
    return Cost(train_gpu_s=cost.train_gpu_s, train_cpu_s=cost.train_cpu_s, bytes_read=cost.bytes_read)


def _unit(prices: Prices, costs: list[Cost]) -> Any:
    """Return the name of the unit in which arms are compared, and what gives a cost in it."""
    if prices != Prices():
        return "at the sweep's prices", lambda cost: cost.money(prices)
    if any(cost.gpu_s for cost in costs):
        return "GPU-hours", lambda cost: cost.gpu_s / 3600
    return "CPU-hours", lambda cost: cost.cpu_s / 3600
