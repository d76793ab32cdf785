"""Exchange rates of planted worlds: verdicts, and coverage of the interval."""

import math
from collections import Counter

import numpy as np
import pytest

from orchestrator.stats.exchange_rate import ExchangeRate
from orchestrator.stats.fixed_sample import Interval, hierarchical_draws
from orchestrator.stats.sample_efficiency import Estimate, data_equivalence, estimated

RATIO, COUNTS, SEEDS, SCENES, WORLDS = 4.0, np.array([2.0, 6.0, 18.0]), 3, 40, 25


def rate(value: float, low: float, high: float) -> ExchangeRate:
    return ExchangeRate(RATIO, Estimate(value, Interval(low, high)))


@pytest.mark.parametrize(
    ("found", "verdict", "worth"),
    [
        (rate(2, 1.5, 3), "replace demonstrations", (4, 2, 8)),
        (rate(math.inf, 3, math.inf), "replace demonstrations", (0, 0, 2)),
        (rate(2, 0.9, 3), "no evidence", (4, 2, math.inf)),
        (rate(2, 1, 3), "no evidence", (4, 2, math.inf)),
        (rate(0.5, 0.2, 0.9), "hurt", (math.inf, math.inf, math.inf)),
        (rate(math.nan, math.nan, math.nan), "no evidence", (math.nan,) * 3),
    ],
)
def test_worth_is_the_ratio_over_what_the_factor_adds(
    found: ExchangeRate, verdict: str, worth: tuple[float, float, float]
) -> None:
    assert found.verdict == verdict
    assert (found.worth.value, *found.worth.interval) == pytest.approx(worth, nan_ok=True)


def world(factor: float, seed: int) -> ExchangeRate:
    """Return the rate found in a sweep of two lines on the same scenes, of which the second needs `factor`
    times fewer demonstrations; success is logistic in log demonstrations.
    """
    rng = np.random.default_rng(seed)
    hard, demos = rng.standard_normal(SCENES), np.concatenate([COUNTS, COUNTS * factor])
    trainings = 0.3 * rng.standard_normal((len(demos), SEEDS))
    odds = 1.2 * np.log(demos / 6)[:, None, None] + trainings[:, :, None] - hard
    won = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float)

    def found(rates: np.ndarray) -> float:
        return data_equivalence((COUNTS, rates[:3]), (COUNTS, rates[3:]))

    drawn = hierarchical_draws(won, np.zeros(SCENES, int), draws=200, seed=seed)
    return ExchangeRate(RATIO, estimated(found(won.mean((1, 2))), [found(own) for own in drawn]))


@pytest.mark.parametrize(
    ("factor", "wrong"), [(2.0, "hurt"), (1.0, ""), (0.5, "replace demonstrations")]
)  # a demonstration is worth four videos; videos are worth nothing; they hurt
def test_verdict_and_interval_in_planted_worlds(factor: float, wrong: str) -> None:
    """At least 80 % of intervals hold the planted factor, 90 % where videos are worth nothing."""
    found = [world(factor, seed) for seed in range(WORLDS)]
    verdicts = Counter(one.verdict for one in found)
    held = sum(one.factor.interval.low <= factor <= one.factor.interval.high for one in found)
    assert held >= (0.9 if factor == 1 else 0.8) * WORLDS
    assert verdicts[wrong] == 0  # type: ignore[index]
    if factor == 1:
        assert verdicts["no evidence"] >= 0.9 * WORLDS
    else:
        right = "replace demonstrations" if factor > 1 else "hurt"
        assert verdicts[right] >= WORLDS // 5, "three seeds find it in a fifth of the worlds or more"
