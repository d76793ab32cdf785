"""Anytime-valid statistics, against the integral of the mixture, and by simulation with a look after every
episode.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta

from orchestrator.stats.fixed_sample import blaker
from orchestrator.stats.sequential import (
    INTERVAL_PRIOR,
    PAIRED_PRIOR,
    PairedEvidence,
    anytime_interval,
    log_e_value,
    log_paired_e_value,
    side_of,
)

RUNS, LONGEST = 2000, 500
COUNTS = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def running(won: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Return the counts after every episode: successes, episodes."""
    return np.cumsum(won, axis=1), np.arange(1, won.shape[1] + 1)


def mixture(prior: float, wins: int, losses: int) -> float:
    """Return the mean likelihood over the prior, by numerical integration in the angle, where the prior has
    no poles.
    """

    def integrand(angle: float) -> float:
        p = math.sin(angle) ** 2
        return beta.pdf(p, prior, prior) * p**wins * (1 - p) ** losses * 2 * math.sin(angle) * math.cos(angle)

    value, _ = quad(integrand, 0, math.pi / 2, epsabs=0, epsrel=1e-9, limit=200)
    return float(value)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 9), (40, 10), (0, 25), (60, 61)])
def test_e_values_equal_the_numerically_integrated_mixture(wins: int, losses: int) -> None:
    paired = mixture(PAIRED_PRIOR, wins, losses) * 2 ** (wins + losses)
    assert math.exp(log_paired_e_value(wins, losses)) == pytest.approx(paired, rel=1e-6)
    assert PairedEvidence(wins, losses).p_value == pytest.approx(min(1, 1 / paired), rel=1e-6)
    rate = 0.8
    single = mixture(INTERVAL_PRIOR, wins, losses) / (rate**wins * (1 - rate) ** losses)
    assert math.exp(log_e_value(rate, wins, wins + losses)) == pytest.approx(single, rel=1e-6)


@given(COUNTS, st.sampled_from([0.8, 0.95, 0.99]))
def test_anytime_interval_bounds_lie_where_the_e_value_reaches_the_limit(
    counts: tuple[int, int], confidence: float
) -> None:
    k, n = counts
    low, high = anytime_interval(k, n, confidence)
    limit = math.log(1 / (1 - confidence))
    assert 0 <= low <= k / n <= high <= 1
    for bound, outwards in ((low, -1e-6), (high, 1e-6)):
        if 0 < bound < 1:
            assert log_e_value(bound, k, n) == pytest.approx(limit, abs=1e-4)
            assert log_e_value(bound, k, n) >= limit - 1e-12, "a bound is rounded outwards"
            assert not 0 < bound + outwards < 1 or log_e_value(bound + outwards, k, n) > limit


@given(COUNTS)
def test_anytime_interval_is_symmetric_and_wider_than_that_of_a_fixed_sample(
    counts: tuple[int, int],
) -> None:
    k, n = counts
    low, high = anytime_interval(k, n)
    assert anytime_interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    once = blaker(k, n)
    assert high - low > once[1] - once[0]
    sure = anytime_interval(k, n, 0.99)
    assert sure[0] <= low
    assert high <= sure[1]


def test_anytime_statistics_without_episodes_are_undecided() -> None:
    assert anytime_interval(0, 0) == (0.0, 1.0)
    assert PairedEvidence(0, 0).p_value == 1.0
    assert side_of(0.5, 0, 0) == PairedEvidence(0, 0).better() == ""


@given(st.integers(0, 400), st.integers(0, 400))
def test_paired_e_value_is_symmetric_and_grows_with_the_lead(first: int, second: int) -> None:
    evidence, p_value = log_paired_e_value(first, second), PairedEvidence(first, second).p_value
    assert evidence == pytest.approx(log_paired_e_value(second, first))
    assert p_value <= 1
    if first > second:  # the first win after a tie may as well be the other policy's: it carries no evidence
        assert log_paired_e_value(first + 1, second) > evidence
        assert PairedEvidence(first + 1, second).p_value <= p_value


def test_anytime_statistics_of_overwhelming_evidence_are_finite() -> None:
    assert 0 <= PairedEvidence(5000, 0).p_value < 1e-300
    assert anytime_interval(100_000, 100_000)[0] > 0.999


def test_side_of_and_better_follow_from_interval_and_evidence() -> None:
    assert side_of(0.5, 40, 50) == "above"
    assert side_of(0.5, 10, 50) == "below"
    assert side_of(0.5, 30, 50) == ""
    assert (
        PairedEvidence(30, 5).better(),
        PairedEvidence(5, 30).better(),
        PairedEvidence(8, 5).better(),
    ) == ("first", "second", "")
    assert PairedEvidence(16, 3).p_value < 0.05 < 2 * PairedEvidence(16, 3).p_value
    assert PairedEvidence(16, 3).better(0.99) == ""


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5, 0.8, 0.97])
def test_anytime_interval_at_every_episode_covers_in_95_percent_of_runs(
    rate: float,
) -> None:
    won, episodes = running(np.random.default_rng(round(100 * rate)).random((RUNS, LONGEST)) < rate)
    holds = (log_e_value(rate, won, episodes) < math.log(20)).all(axis=1)
    assert holds.mean() >= 0.95
    # The simulation checks the evidence; that the interval agrees is checked on some of its runs.
    for run, at in np.random.default_rng(0).integers(0, (RUNS, LONGEST), (200, 2)):
        low, high = anytime_interval(int(won[run, at]), int(at) + 1)
        assert (low <= rate <= high) == bool(log_e_value(rate, won[run, at], at + 1) < math.log(20) + 1e-9)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("differ", [0.1, 0.5, 1.0])
def test_paired_evidence_at_every_pair_keeps_the_false_positive_rate(
    differ: float, confidence: float
) -> None:
    """`differ` is the share of pairs that end differently. A fixed-sample test at every pair exceeds its
    error rate several times.
    """
    draws = np.random.default_rng(7).random((RUNS, LONGEST))
    first, _ = running(draws < differ / 2)
    second, _ = running((differ / 2 <= draws) & (draws < differ))
    wrong = (log_paired_e_value(first, second) >= math.log(1 / (1 - confidence))).any(axis=1)
    assert wrong.mean() <= 1 - confidence
    discordant = np.maximum(1, first + second)
    plain = (np.abs(first - second) / np.sqrt(discordant) > 1.96)[:, 20:].any(axis=1)
    assert plain.mean() > 0.15, "the simulation must detect a test that repeated looks invalidate"


def test_anytime_statistics_of_unequal_tasks_are_conservative() -> None:
    """Four tasks with rates from 0.05 to 0.95, policies that differ on every task but not on average, looks
    after one episode of each.
    """
    rates = np.tile([0.05, 0.35, 0.75, 0.95], LONGEST // 4)
    rng = np.random.default_rng(3)
    won, episodes = running(rng.random((RUNS, LONGEST)) < rates)
    looks = slice(3, None, 4)
    assert (log_e_value(rates.mean(), won, episodes)[:, looks] < math.log(20)).all(axis=1).mean() >= 0.95
    other = np.tile([0.25, 0.15, 0.95, 0.75], LONGEST // 4)
    a, b = rng.random((RUNS, LONGEST)) < rates, rng.random((RUNS, LONGEST)) < other
    evidence = log_paired_e_value(running(a & ~b)[0], running(b & ~a)[0])[:, looks]
    assert (evidence >= math.log(20)).any(axis=1).mean() <= 0.05
