"""Forecast of success beyond the demo counts tried: how many demos a rate will take, and how sure that is.
Pure.

Several shapes of success over demos are fitted to the arms and weighed by their evidence. Successes of an arm
are beta-binomial, so trainings of one point may differ; scenes are the suite's sample of all scenes, which
moves all arms together. A ratio of action-free video multiplies demos by (1 + ratio) to a power: 0 if video
is worth nothing, 1 if a video is worth a demonstration.

Posteriors are importance samples around the mode with heavier tails than the normal distribution (Geweke
1989), adapted to the weighted sample and weighed by the mixture of all proposals (Cornuet et al. 2012); a
shape's evidence is the mean of the weights.
Shapes: A arms, G demo counts, D draws, K parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import expit, gammaln, logit, logsumexp

from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.outcome_matrix import outcome_matrix
from orchestrator.stats.sample_efficiency import Floats

CONFIDENCE = 0.9
"""Of predictive intervals."""
FURTHEST = 1000.0
"""Multiple of the largest demo count tried beyond which an answer is "more than"."""
WIDEST = 30.0
"""Ratio of an interval's bounds above which the data do not identify an answer."""
DRAWS = 4000
FEWEST_COUNTS = 3
"""Demo counts below which nothing is forecast."""
ADAPTATIONS = 4
FREEDOM = 5.0
"""Degrees of freedom of the t distribution that is sampled from."""
CEILING = (3.0, 1.5)
"""Prior of the logit of the rate that unlimited demos reach: median 0.95, below 0.9 with probability 0.3."""
CORRELATION = (-3.0, 1.2)
"""Prior of the logit of the correlation within a training: median 0.05, 95 % from 0.005 to 0.34."""
VIDEO = (0.3, 0.6)
"""Prior of the power of (1 + ratio): mostly between harmful (below 0) and as good as demonstrations (1)."""


@dataclass(frozen=True)
class Arms:
    """Scores of the arms of one policy."""

    demos: Floats
    """(A,) demo counts."""
    ratios: Floats
    """(A,) action-free episodes per demo."""
    successes: Floats
    """(A,)"""
    episodes: Floats
    """(A,)"""
    scene_sd: float = 0.0
    """Standard deviation of the mean difficulty of the suite's scenes, as a sample of all scenes, in
    logits.
    """

    @classmethod
    def of(
        cls, demos: Sequence[float], ratios: Sequence[float], outcomes: Sequence[Mapping[str, bool]]
    ) -> "Arms":
        """Return the scores of arms from the outcomes of their episodes. outcomes: per arm, whether an
        episode succeeded, by its id, which is the scene's.
        """
        _, won = outcome_matrix(outcomes)
        return cls(
            np.array(demos, np.float64),
            np.array(ratios, np.float64),
            np.nansum(won, axis=1),
            (~np.isnan(won)).sum(axis=1).astype(np.float64),
            scene_sd(won),
        )

    def those(self, chosen: NDArray[np.bool_]) -> "Arms":
        """Return some of the arms. chosen: (A,)."""
        return Arms(
            self.demos[chosen],
            self.ratios[chosen],
            self.successes[chosen],
            self.episodes[chosen],
            self.scene_sd,
        )

    def joined(self, other: "Arms") -> "Arms":
        """Return these arms and others that were scored on the same scenes."""
        demos, ratios, successes, episodes = (
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("demos", "ratios", "successes", "episodes")
        )
        return Arms(demos, ratios, successes, episodes, self.scene_sd)

    @property
    def counts(self) -> Floats:
        """Demo counts tried, rising."""
        return np.unique(self.demos)


Parameters = NDArray[np.float64]
Curve = Callable[[Parameters, Floats], Floats]


@dataclass(frozen=True)
class Shape:
    """A family of rising curves: success rate over log demos, counted from the middle of those tried."""

    name: str
    rates: Curve
    """Maps parameters (D, K) and log demos (D or 1, G) to rates (D, G)."""
    prior: tuple[tuple[float, float], ...]
    """Mean and standard deviation of each parameter, normal and independent."""
    weight: float = 1.0
    """Prior weight, relative to those of other shapes."""


def _logistic(parameters: Parameters, x: Floats) -> Floats:
    ceiling, middle, slope = (column[:, None] for column in parameters.T[:3])
    return np.asarray(expit(ceiling) * expit(np.exp(slope) * (x - middle)))


def _power_law(parameters: Parameters, x: Floats) -> Floats:
    ceiling, middle, power = (column[:, None] for column in parameters.T[:3])
    return np.asarray(expit(ceiling) * -np.expm1(-np.exp(power) * np.logaddexp(0, x - middle)))


def _stretched(parameters: Parameters, x: Floats) -> Floats:
    ceiling, middle, power = (column[:, None] for column in parameters.T[:3])
    return np.asarray(expit(ceiling) * -np.expm1(-np.exp(np.minimum(np.exp(power) * (x - middle), 50))))


KNOT_EVERY = 0.7
"""Distance of the flexible shape's knots in log demos: a factor of two."""
KNOTS_BEFORE, KNOTS = 3, 8
"""Number of its knots before the middle of the counts tried, and of all."""


def _flexible(parameters: Parameters, x: Floats) -> Floats:
    """Piecewise linear in the logit; slopes are a random walk of their logarithms, so that they go on beyond
    the counts tried as they were, more or less.
    """
    start, walk = parameters[:, :1], np.cumsum(parameters[:, 1 : 1 + KNOTS], axis=1)
    left = -KNOT_EVERY * KNOTS_BEFORE
    logits = start + np.exp(walk[:, :1]) * np.minimum(x - left, 0)
    for place in range(KNOTS):
        low = left + place * KNOT_EVERY
        width = KNOT_EVERY if place < KNOTS - 1 else inf
        logits = logits + np.exp(walk[:, place : place + 1]) * np.clip(x - low, 0, width)
    return np.asarray(expit(logits))


MIDDLE = (0.0, 2.5)
SHAPES = (
    Shape("logistic in log demos", _logistic, (CEILING, MIDDLE, (0.0, 0.7))),
    Shape("power law in the error", _power_law, (CEILING, MIDDLE, (0.0, 0.9))),
    Shape("stretched exponential in the error", _stretched, (CEILING, MIDDLE, (-0.3, 0.6))),
    Shape("flexible", _flexible, ((-1.5, 1.5), (-0.2, 0.7), *[(0.0, 0.6)] * (KNOTS - 1)), 3.0),
)


@dataclass(frozen=True)
class Fit:
    """The posterior of one shape."""

    shape: Shape
    evidence: float
    """Logarithm of the marginal likelihood."""
    draws: Parameters
    """(D, K + 2) equally weighted draws; the last two are of the video's power and the correlation."""
    effective: float
    """Number of independent draws that the weighted sample was worth."""


@dataclass(frozen=True)
class Forecast:
    """The posterior over curves: draws from all shapes, as many of each as its evidence says."""

    arms: Arms
    fits: tuple[Fit, ...]
    weights: tuple[float, ...]
    """Posterior probability of each shape."""
    _chosen: tuple[Parameters, ...]
    _scenes: Floats

    def rates(self, demos: Floats, ratio: float = 0.0) -> Floats:
        """Return draws of the mean success rate at demo counts, over trainings and all scenes, (D, G)."""
        x = np.log(demos)[None, :] - _centre(self.arms)
        found = []
        for fit, draws in zip(self.fits, self._chosen, strict=True):
            moved = x + draws[:, -2:-1] * log(1 + ratio)
            found.append(fit.shape.rates(draws, np.broadcast_to(moved, (len(draws), len(demos)))))
        rates = np.clip(np.concatenate(found), 1e-12, 1 - 1e-12)
        return np.asarray(expit(logit(rates) + self._scenes[:, None]))

    def trained(self, demos: float, ratio: float) -> tuple[Floats, Floats]:
        """Return draws of the two parameters of the beta distribution of a new training's success rate on the
        suite's scenes, each (D,).
        """
        on_these_scenes = replace(self, _scenes=np.zeros_like(self._scenes))
        rate = on_these_scenes.rates(np.array([demos]), ratio)[:, 0]
        size = _size(np.concatenate([draws[:, -1] for draws in self._chosen]))
        return rate * size, (1 - rate) * size

    def trained_arm(self, arm: int) -> tuple[Floats, Floats]:
        """Return `trained` of one of the arms, given its scores. arm: its place."""
        arms = self.arms
        first, second = self.trained(float(arms.demos[arm]), float(arms.ratios[arm]))
        return first + arms.successes[arm], second + arms.episodes[arm] - arms.successes[arm]

    def successes(self, demos: float, ratio: float, episodes: Floats, seed: int = 0) -> NDArray[np.int64]:
        """Return draws of the successes that new trainings of one point would have on the suite's scenes,
        (D, number of trainings). episodes: per training, (number of trainings,).
        """
        rng = np.random.default_rng(seed)
        first, second = self.trained(demos, ratio)
        rates = rng.beta(first[:, None], second[:, None], (len(first), len(episodes)))
        return np.asarray(rng.binomial(episodes.astype(np.int64), rates))

    def needed(self, rate: float, ratio: float = 0.0) -> Floats:
        """Return draws of the demos that a rate takes at a ratio, (D,): infinite where it takes more than
        FURTHEST times the largest count tried, or is never reached.
        """
        counts = self.arms.counts
        demos = np.geomspace(counts[0] / FURTHEST, counts[-1] * FURTHEST, 600)
        reached = self.rates(demos, ratio) >= rate
        return np.where(reached.any(axis=1), demos[reached.argmax(axis=1)], inf)

    def demos_to_reach(self, rate: float, ratio: float = 0.0) -> "DemosForecast":
        """Return how many demos a rate takes at a ratio."""
        needed = self.needed(rate, ratio)
        return DemosForecast(
            rate,
            ratio,
            float(np.median(needed)),
            predicted(needed),
            float(np.isinf(needed).mean()),
            float(self.arms.counts[-1]),
        )

    @property
    def powers(self) -> Floats:
        """Draws of the power of (1 + ratio) by which video multiplies demos, (D,)."""
        return np.concatenate([draws[:, -2] for draws in self._chosen])

    def worth(self) -> Interval:
        """Return the predictive interval of `powers`."""
        return predicted(self.powers)


@dataclass(frozen=True)
class DemosForecast:
    """How many demos a success rate will take."""

    rate: float
    ratio: float
    demos: float
    """Median; infinite if it is more than FURTHEST times the counts tried, or never."""
    interval: Interval
    """Central CONFIDENCE of the prediction."""
    never: float
    """Probability that no number of demos up to FURTHEST times the counts tried reaches the rate."""
    tried: float
    """Largest demo count tried."""

    @property
    def identified(self) -> bool:
        """Whether the data bound the answer from both sides, by no more than a factor of WIDEST."""
        low, high = self.interval
        return high < inf and high <= WIDEST * low


def forecast(arms: Arms, shapes: tuple[Shape, ...] = SHAPES, draws: int = DRAWS, seed: int = 0) -> Forecast:
    """Fit the shapes to arms and weigh them by their evidence.

    Raises ValueError if there are fewer than FEWEST_COUNTS demo counts.
    """
    if len(arms.counts) < FEWEST_COUNTS:
        raise ValueError(f"{len(arms.counts)} demo counts are too few; it takes {FEWEST_COUNTS}")
    rng = np.random.default_rng(seed)
    fits = tuple(_fit(shape, arms, draws, rng) for shape in shapes)
    evidence = np.array([fit.evidence for fit in fits])
    evidence += np.log([shape.weight for shape in shapes])
    weights = np.exp(evidence - logsumexp(evidence))
    shares = rng.multinomial(draws, weights)
    chosen = tuple(fit.draws[rng.permutation(draws)[:share]] for fit, share in zip(fits, shares, strict=True))
    return Forecast(
        arms, fits, tuple(map(float, weights)), chosen, arms.scene_sd * rng.standard_normal(draws)
    )


def predicted(draws: NDArray[Any]) -> Interval:
    """Return the central CONFIDENCE of draws, which may be infinite."""
    (bounds,) = predicted_each(np.sort(draws), np.full((1, len(draws)), 1 / len(draws)))
    return Interval(*map(float, bounds))


def predicted_each(draws: NDArray[Any], weights: Floats) -> Floats:
    """Return the central CONFIDENCE of weighted draws, (W, 2). draws: (D,) rising, may be infinite; weights:
    (W, D), which sum to 1.
    """
    shares = np.cumsum(weights, axis=1)
    parts = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    # the sum of all weights may be below 1 by rounding
    places = [np.minimum((shares < part - 1e-9).sum(axis=1), len(draws) - 1) for part in parts]
    return np.asarray(np.stack([draws[place] for place in places], axis=1), np.float64)


def scene_sd(outcomes: NDArray[np.float64]) -> float:
    """Return by how much the mean difficulty of the scenes played may differ from that of all scenes, as a
    standard deviation in logits. outcomes: (A, number of scenes) 1 or 0, nan where not played.

    The variance between scenes' mean residuals less what chance alone gives them, over the number of scenes.
    """
    rates = np.nanmean(outcomes, axis=1, keepdims=True)
    played = ~np.isnan(outcomes)
    residuals = np.where(played, outcomes - rates, 0.0)
    times = played.sum(axis=0)
    kept = times > 0
    means = residuals.sum(axis=0)[kept] / times[kept]
    chance = np.where(played, rates * (1 - rates), 0.0).sum(axis=0)[kept] / times[kept] ** 2
    scenes, steepness = int(kept.sum()), float(np.mean(rates * (1 - rates)))
    if scenes < 2 or steepness <= 0:
        return 0.0
    between = max(0.0, float(np.sum(means**2) / (scenes - 1) - chance.mean()))
    return sqrt(between / scenes) / steepness


def _centre(arms: Arms) -> float:
    counts = np.log(arms.counts)
    return float(counts[0] + counts[-1]) / 2


def _size(correlation: Floats) -> Floats:
    """Return the sum of a beta distribution's two parameters. correlation: its logit."""
    return np.asarray(np.exp(-np.clip(correlation, -12, 12)))


def _log_posterior(shape: Shape, arms: Arms) -> Callable[[Parameters], Floats]:
    """Return the unnormalised log posterior density of parameters (D, K + 2), (D,)."""
    prior = np.array([*shape.prior, VIDEO, CORRELATION])
    won, lost = arms.successes, arms.episodes - arms.successes
    choices = gammaln(arms.episodes + 1) - gammaln(won + 1) - gammaln(lost + 1)
    # arms of one point have one rate, so that it is computed once
    points, at = np.unique(np.stack([arms.demos, arms.ratios]), axis=1, return_inverse=True)
    x, video = np.log(points[0]) - _centre(arms), np.log1p(points[1])
    at, times = at.ravel(), np.bincount(at.ravel())

    def density(parameters: Parameters) -> Floats:
        rates = shape.rates(parameters, x[None, :] + parameters[:, -2:-1] * video[None, :])
        rates = np.clip(rates, 1e-9, 1 - 1e-9)
        size = _size(parameters[:, -1:])
        first, second = rates * size, (1 - rates) * size
        scored = gammaln(won + first[:, at]) + gammaln(lost + second[:, at]) - gammaln(arms.episodes + size)
        before = (gammaln(first) + gammaln(second) - gammaln(size)) @ times
        standard = (parameters - prior[:, 0]) / prior[:, 1]
        priors = -0.5 * np.sum(standard**2 + np.log(2 * np.pi * prior[:, 1] ** 2), axis=1)
        return np.asarray((choices + scored).sum(axis=1) - before + priors)

    return density


def _fit(shape: Shape, arms: Arms, draws: int, rng: np.random.Generator) -> Fit:
    density, prior = _log_posterior(shape, arms), np.array([*shape.prior, VIDEO, CORRELATION])
    means, sds = prior.T
    starts = means + sds * rng.standard_normal((400, len(means)))
    start = starts[int(np.argmax(density(starts)))]
    found = minimize(
        lambda unit: -float(density((means + sds * unit)[None, :])[0]), (start - means) / sds, method="BFGS"
    )
    centre, spread = means + sds * found.x, np.outer(sds, sds) * found.hess_inv
    proposals = [_Proposal(means, np.diag(sds**2))]
    sample = proposals[0].sample(draws // 4, rng)
    densities, mixed = density(sample), [proposals[0].log_density(sample)]
    for _ in range(ADAPTATIONS):
        proposals.append(_Proposal(centre, _bounded(spread, sds)))
        newest = proposals[-1].sample(draws, rng)
        sample, densities = np.concatenate([sample, newest]), np.concatenate([densities, density(newest)])
        mixed = [
            np.concatenate([known, proposal.log_density(newest)])
            for known, proposal in zip(mixed, proposals[:-1], strict=True)
        ] + [proposals[-1].log_density(sample)]
        shares = np.log([draws // 4, *[draws] * (len(proposals) - 1)]) - log(len(sample))
        log_weights = densities - logsumexp(np.array(mixed) + shares[:, None], axis=0)
        weights = np.exp(log_weights - logsumexp(log_weights))
        centre = weights @ sample
        spread = (sample - centre).T @ ((sample - centre) * weights[:, None])
    evidence = float(logsumexp(log_weights) - log(len(sample)))
    chosen = sample[rng.choice(len(sample), draws, p=weights)]
    return Fit(shape, evidence, chosen, float(1 / np.sum(weights**2)))


def _bounded(spread: Parameters, sds: Floats) -> Parameters:
    """Return a covariance matrix that no direction has vanished from, by a small part of the prior's."""
    return np.asarray((spread + spread.T) / 2 + np.diag((0.1 * sds) ** 2))


class _Proposal:
    """A multivariate t distribution with FREEDOM degrees of freedom."""

    def __init__(self, centre: Floats, spread: Parameters) -> None:
        self.centre, self.factor = centre, np.linalg.cholesky(spread)

    def sample(self, draws: int, rng: np.random.Generator) -> Parameters:
        """Return draws, (D, K)."""
        normal = rng.standard_normal((draws, len(self.centre)))
        stretch = np.sqrt(rng.chisquare(FREEDOM, draws) / FREEDOM)
        return np.asarray(self.centre + (normal / stretch[:, None]) @ self.factor.T)

    def log_density(self, at: Parameters) -> Floats:
        """Return the logarithm of the density at points (D, K), (D,)."""
        size = len(self.centre)
        distance = np.sum(solve_triangular(self.factor, (at - self.centre).T, lower=True) ** 2, axis=0)
        norm = (
            gammaln((FREEDOM + size) / 2)
            - gammaln(FREEDOM / 2)
            - size / 2 * log(FREEDOM * np.pi)
            - np.sum(np.log(np.diag(self.factor)))
        )
        return np.asarray(norm - (FREEDOM + size) / 2 * np.log1p(distance / FREEDOM))
