"""Exchange rates of planted worlds: verdicts, and coverage of the interval."""

import math
from collections import Counter

import pytest

from experiments.exchange_rates import RATIO, swept
from orchestrator.stats.exchange_rate import ExchangeRate
from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.sample_efficiency import Estimate

WORLDS = 25


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


@pytest.mark.parametrize(
    ("factor", "wrong"), [(2.0, "hurt"), (1.0, ""), (0.5, "replace demonstrations")]
)  # a demonstration is worth four videos; videos are worth nothing; they hurt
def test_verdict_and_interval_in_planted_worlds(factor: float, wrong: str) -> None:
    """At least 80 % of intervals hold the planted factor, 90 % where videos are worth nothing."""
    found = [swept(factor, seed) for seed in range(WORLDS)]
    verdicts = Counter(one.verdict for one in found)
    held = sum(one.factor.interval.low <= factor <= one.factor.interval.high for one in found)
    assert held >= (0.9 if factor == 1 else 0.8) * WORLDS
    assert verdicts[wrong] == 0  # type: ignore[index]
    if factor == 1:
        assert verdicts["no evidence"] >= 0.9 * WORLDS
    else:
        right = "replace demonstrations" if factor > 1 else "hurt"
        assert verdicts[right] >= WORLDS // 5, "three seeds find it in a fifth of the worlds or more"
