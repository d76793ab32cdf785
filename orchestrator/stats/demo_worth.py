"""What each demonstration is worth: outcomes of arms that learned from different subsets, regressed on
membership. Pure.

Arms of one cell (policy, ratio, demo count) differ in their subset and in the luck of training. Their success
rates are compared scene by scene with the mean of the cell, so the difficulty of scenes cancels, and put on
the log-odds scale by the cell's rate. The effect of a demonstration is proportional to its share of the
demos. Effects of all demonstrations are normal random effects, whose variance is estimated by restricted
maximum likelihood; the effect of one, unshrunk, is that of generalised least squares with all others random
(mixed-model association, Kang et al. 2010). Datamodels (Ilyas et al. 2022) regress on subsets likewise.

A permutation test decides whether subsets matter at all: whole seeds, which are nested orders, exchange their
outcomes among those with the same cells. Names are listed at a false discovery rate (Benjamini and Hochberg
1995), and only if that test rejects. Shapes: A arms, E episodes of the store, S scenes, D degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import norm, t

from orchestrator.stats.fixed_sample import LEVEL, Interval
from orchestrator.stats.sample_efficiency import Floats

FALSE_DISCOVERIES = 0.1
"""Largest expected share of wrong names among those listed."""
POWER = 0.8
"""Probability of naming a demonstration for which arms are counted."""
PERMUTATIONS = 2000
FEWEST_ARMS = 8
"""Arms, beyond one per cell, below which nothing is estimated."""
GRID = np.exp(np.linspace(-5, 5, 21))
"""Ratios of the variance of effects to that of noise, both per arm, of the permutation test."""
EFFECT = 0.05
"""Change of the success rate for which the necessary number of arms is stated."""


@dataclass(frozen=True)
class ScoredSubsets:
    """Arms with the demos that they learned from and their outcomes on common scenes."""

    episodes: tuple[str, ...]
    """(E,) ids of the demos that any arm has."""
    cells: NDArray[np.int64]
    """(A,) number of each arm's cell: arms of one cell differ in their seed alone."""
    demos: Floats
    """(A,) demo counts, the same within a cell."""
    seeds: NDArray[np.int64]
    """(A,) seeds of subset and training; arms of one seed have nested subsets."""
    members: NDArray[np.bool_]
    """(A, E) whether an arm learned from a demo."""
    outcomes: Floats
    """(A, S) 1 success, 0 failure, nan not played."""


@dataclass(frozen=True)
class EpisodeWorth:
    """What one demonstration does to the success rate."""

    episode: str
    change: float
    """Of the success rate if it takes the place of an average other demo among `DemoWorth.demos`."""
    interval: Interval
    """95 %, of `change`."""
    shrunk: float
    """`change`, shrunk by how much it is known: the best guess."""
    p_value: float
    """One-sided, of the hypothesis that it does not hurt."""
    arms: int
    """Number of arms that learned from it."""


@dataclass(frozen=True)
class DemoWorth:
    """Worth of every demonstration that some arms have and others of their cell lack."""

    episodes: tuple[EpisodeWorth, ...]
    """The most harmful first."""
    demos: int
    """Demo count at which changes are stated."""
    arms: int
    """Number of arms that were compared."""
    p_value: float
    """Of the permutation test that subsets do not matter."""
    hurting: tuple[EpisodeWorth, ...]
    """Those named as harmful; empty if nothing can be told."""
    detectable: float
    """Change of the success rate that one demonstration must make to be named with probability POWER."""

    @property
    def told(self) -> bool:
        """Whether outcomes depend on subsets by more than chance."""
        return self.p_value < LEVEL

    def arms_for(self, change: float) -> int:
        """Return the number of arms, of the same cells and scenes, with which a demonstration that changes
        the success rate by this much is named with probability POWER.
        """
        return ceil(self.arms * (self.detectable / change) ** 2)


@dataclass(frozen=True)
class _Regression:
    """Weighted differences of arms and memberships; `rotation` removes the mean of every cell."""

    response: Floats
    """(A,) differences of log odds to the cell's mean, over their standard error for one scene's variance."""
    shares: Floats
    """(A, E) memberships likewise, relative to a share of 1 / `demos`."""
    rotation: Floats
    """(A, D)"""
    demos: float
    slope: float
    """Change of the success rate per log odds at `demos`."""


def demo_worth(scored: ScoredSubsets, seed: int = 0) -> DemoWorth | None:
    """Estimate what each demonstration is worth; None if fewer than FEWEST_ARMS arms beyond one per cell
    differ in subset and have outcomes that are neither all successes nor all failures.
    """
    kept = _informative(scored)
    if kept is None:
        return None
    regression = _regression(kept)
    rotation, freedom = regression.rotation, regression.rotation.shape[1]
    shares = rotation.T @ regression.shares
    varying = np.flatnonzero((shares**2).sum(0) > 1e-9)
    shares = shares[:, varying]
    eigenvalues, axes = np.linalg.eigh(shares @ shares.T)
    eigenvalues, turned = np.clip(eigenvalues, 0, None), axes.T @ shares
    response = axes.T @ rotation.T @ regression.response
    ratio = _variance_ratio(eigenvalues, response)
    spread = 1 + ratio * eigenvalues
    noise = float(np.mean(response**2 / spread))
    # Sherman and Morrison: leaving a demo out of the random effects changes its estimate's variance alone
    precision = (turned**2 / spread[:, None]).sum(0) / noise
    projected = turned.T @ (response / spread) / noise
    effects, errors = projected / precision, np.sqrt(1 / precision - ratio * noise)
    shrunk = ratio * noise * projected

    p_value = _permutation_test(kept, regression, axes, eigenvalues, seed)
    p_values = t.cdf(effects / errors, freedom - 1)
    reach, slope = t.ppf(1 - LEVEL / 2, freedom - 1), regression.slope
    counts = kept.members.sum(0)
    found = [
        EpisodeWorth(
            episode=kept.episodes[place],
            change=float(slope * effect),
            interval=Interval(
                float(slope * (effect - reach * error)), float(slope * (effect + reach * error))
            ),
            shrunk=float(slope * guess),
            p_value=float(p),
            arms=int(counts[place]),
        )
        for place, effect, error, guess, p in zip(varying, effects, errors, shrunk, p_values, strict=True)
    ]
    named = discoveries([one.p_value for one in found]) if p_value < LEVEL else ()
    needed = norm.ppf(1 - FALSE_DISCOVERIES / len(found)) + norm.ppf(POWER)
    return DemoWorth(
        episodes=tuple(sorted(found, key=lambda one: one.p_value)),
        demos=round(regression.demos),
        arms=len(kept.cells),
        p_value=p_value,
        hurting=tuple(sorted((found[place] for place in named), key=lambda one: one.p_value)),
        detectable=float(needed * slope * np.median(errors)),
    )


def discoveries(p_values: Sequence[float], rate: float = FALSE_DISCOVERIES) -> tuple[int, ...]:
    """Return the places of the hypotheses that are rejected at a false discovery rate (Benjamini and Hochberg
    1995).
    """
    order = np.argsort(p_values)
    bounds = rate * np.arange(1, len(p_values) + 1) / len(p_values)
    below = np.flatnonzero(np.asarray(p_values)[order] <= bounds)
    return tuple(sorted(order[: below[-1] + 1].tolist())) if len(below) else ()


def _informative(scored: ScoredSubsets) -> ScoredSubsets | None:
    """Return the arms of cells with at least two arms and both successes and failures; None if they are too
    few.
    """
    chosen = np.zeros(len(scored.cells), bool)
    beyond = 0
    for cell in np.unique(scored.cells):
        arms = np.flatnonzero((scored.cells == cell) & np.isfinite(scored.outcomes).any(1))
        rate = float(np.nanmean(scored.outcomes[arms])) if len(arms) else 0.0
        if len(arms) > 1 and 0 < rate < 1 and (scored.members[arms] != scored.members[arms[0]]).any():
            chosen[arms] = True
            beyond += len(arms) - 1
    if beyond < FEWEST_ARMS:
        return None
    return ScoredSubsets(
        scored.episodes,
        scored.cells[chosen],
        scored.demos[chosen],
        scored.seeds[chosen],
        scored.members[chosen],
        scored.outcomes[chosen],
    )


def _regression(scored: ScoredSubsets) -> _Regression:
    arms = len(scored.cells)
    response, weights = np.zeros(arms), np.zeros(arms)
    centred = scored.members.astype(np.float64)
    information = dict[float, float]()
    slopes = dict[float, list[float]]()
    names = np.unique(scored.cells)
    intercepts = np.zeros((arms, len(names)))
    for column, cell in enumerate(names):
        own = scored.cells == cell
        outcomes, demos = scored.outcomes[own], float(scored.demos[own][0])
        played = np.isfinite(outcomes)
        difficulty = np.nansum(outcomes, 0) / np.maximum(played.sum(0), 1)
        differences = np.where(played, outcomes - difficulty, 0.0).sum(1) / played.sum(1)
        rate = float(np.nanmean(outcomes))
        slope = rate * (1 - rate)
        response[own], weights[own] = differences / slope, played.sum(1) * slope
        centred[own] -= centred[own].mean(0)
        intercepts[own, column] = 1.0
        varies = float((centred[own] ** 2).mean() / demos**2 * weights[own].sum())
        information[demos] = information.get(demos, 0.0) + varies
        slopes.setdefault(demos, []).append(slope)
    root = np.sqrt(weights)[:, None]
    stated = max(information, key=lambda demos: information[demos])
    whole, _ = np.linalg.qr(intercepts * root, mode="complete")
    return _Regression(
        response=response * root[:, 0],
        shares=centred * (stated / scored.demos)[:, None] * root,
        rotation=np.asarray(whole[:, len(names) :]),
        demos=stated,
        slope=float(np.mean(slopes[stated])),
    )


def _variance_ratio(eigenvalues: Floats, response: Floats) -> float:
    """Return the variance of effects over that of noise with the largest restricted likelihood."""
    unit = float(eigenvalues.mean())

    def loss(log_ratio: float) -> float:
        spread = 1 + np.exp(log_ratio) / unit * eigenvalues
        return float(len(response) * np.log(np.mean(response**2 / spread)) + np.log(spread).sum())

    found = minimize_scalar(loss, bounds=(-9.0, 6.0), method="bounded")
    none = float(len(response) * np.log(np.mean(response**2)))
    return float(np.exp(found.x) / unit) if found.fun < none else 0.0


def _permutation_test(
    scored: ScoredSubsets, regression: _Regression, axes: Floats, eigenvalues: Floats, seed: int
) -> float:
    """Return the p-value of the hypothesis that outcomes do not depend on subsets.

    The statistic is the restricted likelihood ratio of the effects' variance, maximised over GRID.
    """
    rng = np.random.default_rng(seed)
    turn = axes.T @ regression.rotation.T

    spreads = 1 + GRID[:, None] / eigenvalues.mean() * eigenvalues  # (G, D)
    penalties = np.log(spreads).sum(1)

    def statistic(responses: Floats) -> Floats:
        along = (turn @ responses) ** 2
        noise = np.maximum((1 / spreads) @ along, 1e-300)
        losses = len(eigenvalues) * np.log(noise) + penalties[:, None]
        return np.asarray(len(eigenvalues) * np.log(np.maximum(along.sum(0), 1e-300)) - losses.min(0))

    orders = _exchanges(scored, rng)
    observed = statistic(regression.response[:, None])[0]
    drawn = statistic(regression.response[orders])
    return float((1 + np.sum(drawn >= observed - 1e-9)) / (1 + PERMUTATIONS))


def _exchanges(scored: ScoredSubsets, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return (A, PERMUTATIONS) the arm whose outcome each arm gets when seeds with the same cells exchange
    theirs.
    """
    alike = dict[tuple[int, ...], list[NDArray[np.int64]]]()
    for seed in np.unique(scored.seeds):
        arms = np.flatnonzero(scored.seeds == seed)
        arms = arms[np.argsort(scored.cells[arms], kind="stable")]
        alike.setdefault(tuple(scored.cells[arms].tolist()), []).append(arms)
    orders = np.zeros((len(scored.seeds), PERMUTATIONS), np.int64)
    for seeds in map(np.stack, alike.values()):  # (number of seeds, arms of each)
        drawn = rng.permuted(np.tile(np.arange(len(seeds))[:, None], PERMUTATIONS), axis=0)
        orders[seeds] = np.moveaxis(seeds[drawn], 1, -1)
    return orders
