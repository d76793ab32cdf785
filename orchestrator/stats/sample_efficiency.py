"""Sample efficiency: measures of a line of success rates over demo counts. Pure.

Rates are assumed to rise with demos, up to noise, so all measures but `area` use their isotonic fit (Barlow
et al. 1972), linear in log demos between the counts tried. Shapes: N demo counts, B draws.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import isotonic_regression

from orchestrator.stats.fixed_sample import Interval, interval_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; infinite bounds where the demo counts tried do not bound it."""

    value: float
    interval: Interval


def area(demos: Floats, rates: Floats) -> Floats:
    """Return the area under success over log demos divided by its width, 0 to 1; for one demo count its rate.
    rates: (..., N).
    """
    if len(demos) == 1:
        return rates[..., 0]
    return np.asarray(trapezoid(rates, np.log(demos)) / np.log(demos[-1] / demos[0]))


def demos_to_reach(demos: Floats, rates: Floats, rate: float) -> float:
    """Return the fewest demos with which the fitted line reaches a rate: 0 if the fewest tried suffice,
    infinity if it never does.

    Censored on both sides: nothing is known about fewer or more demos than were tried.
    """
    fitted = isotonic_regression(rates).x
    reached = np.flatnonzero(fitted >= rate)
    if not len(reached):
        return float("inf")
    first = int(reached[0])
    if first == 0:
        return 0.0
    part = (rate - fitted[first - 1]) / (fitted[first] - fitted[first - 1])
    return float(demos[first - 1] * (demos[first] / demos[first - 1]) ** part)


def data_equivalence(base: tuple[Floats, Floats], mixed: tuple[Floats, Floats]) -> float:
    """Return the data-equivalence factor: how many times as many demos the base line needs as the mixed line.
    Each line: (demos, rates).

    The distance between the two fitted lines along log demos, averaged over the rates that both reach.
    Infinite if the mixed line begins above the end of the base line, 0 in the opposite case, nan if both are
    flat at one rate.
    """
    lines = [isotonic_regression(rates).x for _, rates in (base, mixed)]
    low, high = max(line[0] for line in lines), min(line[-1] for line in lines)
    if high <= low:
        if lines[1][0] > lines[0][-1]:
            return float("inf")
        return 0.0 if lines[1][-1] < lines[0][0] else float("nan")
    rates = low + (high - low) * (np.arange(RATES) + 0.5) / RATES
    needed = [
        np.interp(rates, line, np.log(demos)) for line, (demos, _) in zip(lines, (base, mixed), strict=True)
    ]
    return float(np.exp(np.mean(needed[0] - needed[1])))


RATES = 16
"""Number of success rates at which two lines are compared."""


def estimated(value: float, draws: list[float]) -> Estimate:
    """Return the value with the central 95 % of its draws; nan draws are ignored."""
    known = np.asarray([draw for draw in draws if not np.isnan(draw)])
    return Estimate(value, interval_of(known) if len(known) else Interval(float("nan"), float("nan")))
