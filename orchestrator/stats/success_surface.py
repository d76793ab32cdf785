"""Success over demo count and action-free ratio: a monotone surface fitted to scattered arms. Pure.

The logit of the success rate is a constant plus a function of log demos plus a function of the ratio, both
rising and linear between knots: a monotone generalised additive model (Hastie and Tibshirani 1990; Pya and
Wood 2015), without interaction of the two. Bands are percentiles of fits to arms drawn with replacement,
widened by the degrees of freedom, so that they hold the spread between trainings. Shapes: A arms, B draws, K
coefficients.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from orchestrator.stats.fixed_sample import interval_of
from orchestrator.stats.sample_efficiency import Estimate, Floats, estimated

FEWEST_ARMS, FEWEST_COUNTS = 10, 4
"""Arms, and different demo counts, below which no surface is fitted."""
KNOTS = 3
"""Most pieces of each function."""
DRAWS = 200
SMOOTHNESS = 0.5
"""Weight of the squared differences between neighbouring slopes."""
GRID = 256
"""Number of demo counts at which a surface is looked up for the fewest that reach a rate."""


@dataclass(frozen=True)
class SuccessSurface:
    """A fitted surface and its draws, valid between the smallest and the largest values tried."""

    demo_knots: Floats
    """Log demos at which the slope may change, with both ends, rising."""
    ratio_knots: Floats
    """Ratios at which the slope may change, with both ends; one value if a single ratio was tried."""
    coefficients: Floats
    """(K,) constant and slopes."""
    draws: NDArray[np.float64]
    """(B, K) coefficients of fits to arms drawn with replacement."""

    def rate(self, demos: float, ratio: float) -> Estimate:
        """Return the success rate at a demo count and a ratio, with its 95 % band."""
        basis = self._basis(np.array([demos]), np.array([ratio]))[0]
        value, drawn = _rates(self.coefficients @ basis), _rates(self.draws @ basis)
        return Estimate(float(value), interval_of(drawn))

    def rates(self, demos: Floats, ratios: Floats) -> Floats:
        """Return the success rates on a grid, (number of ratios, number of demo counts)."""
        columns, rows = np.meshgrid(demos, ratios)
        basis = self._basis(columns.ravel(), rows.ravel())
        return _rates(basis @ self.coefficients).reshape(columns.shape)

    def demos_to_reach(self, rate: float, ratio: float) -> Estimate:
        """Return the fewest demos that reach a rate at a ratio: 0 if the fewest tried suffice, infinity if
        none tried does.
        """
        demos = np.exp(np.linspace(self.demo_knots[0], self.demo_knots[-1], GRID))
        basis = self._basis(demos, np.full(GRID, ratio))
        value = _first(demos, _rates(basis @ self.coefficients), rate)
        return estimated(value, [_first(demos, _rates(basis @ draw), rate) for draw in self.draws])

    def _basis(self, demos: Floats, ratios: Floats) -> Floats:
        """Return the basis at points, (number of points, K)."""
        return np.column_stack(
            [
                np.ones(len(demos)),
                *_ramps(np.log(demos), self.demo_knots),
                *_ramps(ratios, self.ratio_knots),
            ]
        )


def fit_surface(
    demos: Floats, ratios: Floats, successes: Floats, episodes: Floats, seed: int = 0
) -> SuccessSurface | None:
    """Fit a surface to arms, all (A,), by maximum likelihood; None if there are fewer than FEWEST_ARMS or
    FEWEST_COUNTS.
    """
    if len(demos) < FEWEST_ARMS or len(np.unique(demos)) < FEWEST_COUNTS:
        return None
    empty = np.zeros(0)
    surface = SuccessSurface(_knots(np.log(demos)), _knots(ratios), empty, empty)
    basis, rng = surface._basis(demos, ratios), np.random.default_rng(seed)
    pieces = len(surface.demo_knots) - 1, len(surface.ratio_knots) - 1
    fitted = _fit(basis, successes, episodes, pieces)
    draws = []
    for _ in range(DRAWS):
        chosen = rng.integers(len(demos), size=len(demos))
        draws.append(_fit(basis[chosen], successes[chosen], episodes[chosen], pieces, fitted))
    # fits to arms drawn with replacement spread too little for as many coefficients as there are
    degrees = max(len(demos) - basis.shape[1], 1)
    spread = fitted + np.sqrt(len(demos) / degrees) * (np.array(draws) - fitted)
    spread[:, 1:] = np.maximum(spread[:, 1:], 0)
    return SuccessSurface(surface.demo_knots, surface.ratio_knots, fitted, spread)


def pareto_front(success: Floats, cost: Floats) -> list[int]:
    """Return the indices of the arms that no other arm beats, by cost: none has at least as much success for
    at most as much cost, and an advantage in one.
    """
    order = sorted(range(len(cost)), key=lambda arm: (cost[arm], -success[arm]))
    front, best = list[int](), -np.inf
    for arm in order:
        if success[arm] > best:
            front.append(arm)
            best = success[arm]
    return front


def _knots(values: Floats) -> Floats:
    """Return the ends of the values and quantiles between them; one value if all are equal."""
    pieces = min(KNOTS, len(np.unique(values)) - 1)
    return np.asarray(np.unique(np.quantile(values, np.linspace(0, 1, pieces + 1))), np.float64)


def _ramps(values: Floats, knots: Floats) -> list[Floats]:
    """Return a function for each piece between knots that rises from 0 to 1 on it."""
    return [np.clip((values - low) / (high - low), 0, 1) for low, high in pairwise(knots)]


def _fit(
    basis: Floats,
    successes: Floats,
    episodes: Floats,
    pieces: tuple[int, int],
    start: Floats | None = None,
) -> Floats:
    """Return the coefficients with the largest penalised likelihood; slopes are not negative.

    Half a success and half a failure per arm keep the rates off 0 and 1 (Jeffreys' prior).
    """
    wins, losses = successes + 0.5, episodes - successes + 0.5
    neighbours = _neighbours(pieces)

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        logit = basis @ coefficients
        rates, steps = _rates(logit), neighbours @ coefficients
        value = -np.sum(wins * logit - (wins + losses) * np.logaddexp(0, logit))
        gradient = -basis.T @ (wins - (wins + losses) * rates) + SMOOTHNESS * neighbours.T @ steps
        return float(value + SMOOTHNESS * steps @ steps / 2), gradient

    size = basis.shape[1]
    begin = np.concatenate([[0.0], np.full(size - 1, 0.5)]) if start is None else start
    bounds = [(-20.0, 20.0), *[(0.0, 20.0)] * (size - 1)]
    found: Floats = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def _neighbours(pieces: tuple[int, int]) -> Floats:
    """Return the matrix that maps coefficients to differences of neighbouring slopes."""
    rows, first = list[Floats](), 1
    for number in pieces:
        for place in range(first, first + number - 1):
            row = np.zeros(1 + sum(pieces))
            row[place], row[place + 1] = -1, 1
            rows.append(row)
        first += number
    return np.array(rows).reshape(-1, 1 + sum(pieces))


def _rates(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _first(demos: Floats, rates: Floats, rate: float) -> float:
    """Return the fewest of rising demo counts whose rate is reached."""
    reached = np.flatnonzero(rates >= rate)
    if not len(reached):
        return float("inf")
    return 0.0 if reached[0] == 0 else float(demos[reached[0]])
