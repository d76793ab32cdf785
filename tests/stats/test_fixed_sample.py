"""Statistics at a fixed number of episodes, against textbook formulas, enumeration, statsmodels and
simulation.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.optimize import brentq
from scipy.special import bdtrc
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from orchestrator.stats.fixed_sample import (
    band,
    best_of_bias,
    blaker,
    clopper_pearson,
    hierarchical_draws,
    holm,
    interval_of,
    paired_comparison,
    rank_correlation,
    unpaired_p_value,
)

RATES = np.concatenate([np.linspace(0.5, 0.95, 91), np.linspace(0.951, 0.999, 97)])
SCORES = (25, 50, 75, 100)
"""Numbers of episodes of the table in docs/statistics.md."""


def mid_p(k: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of Clopper and Pearson's interval with half of the observed count's probability."""

    def low(own: int) -> float:
        return brentq(lambda p: bdtrc(own, n, p) / 2 + bdtrc(own - 1, n, p) / 2 - 0.025, 0, 1) if own else 0.0

    lows = np.array([low(int(own)) for own in k])
    return lows, 1 - lows[::-1]


def ours(k: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array([blaker(int(own), n) for own in k]).T
    return low, high


METHODS: dict[str, Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]] = {
    "Wilson": lambda k, n: proportion_confint(k, n, method="wilson"),
    "Jeffreys": lambda k, n: proportion_confint(k, n, method="jeffreys"),
    "mid-p": mid_p,
    "**Blaker**": ours,
    "Clopper-Pearson": lambda k, n: proportion_confint(k, n, method="beta"),
}


def coverage_and_width(name: str, n: int, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and mean width of a method's intervals at every rate, exactly."""
    k = np.arange(n + 1)
    low, high = METHODS[name](k, n)
    low, high = np.nan_to_num(low)[:, None], np.where(np.isnan(high), 1.0, high)[:, None]
    likely = binom.pmf(k[:, None], n, rates)
    return (likely * ((low <= rates) & (rates <= high))).sum(0), (likely * (high - low)).sum(0)


@pytest.mark.parametrize("n", [10, 25, 50, 100, 300])
def test_blaker_covers_at_every_rate_and_is_narrower_than_clopper_pearson(n: int) -> None:
    """Policies live at 0.98, where Wilson's interval of 25 episodes covers 0.91."""
    covered, width = coverage_and_width("**Blaker**", n, RATES)
    assert covered.min() >= 0.95
    assert (width < coverage_and_width("Clopper-Pearson", n, RATES)[1]).all()


def interval_table() -> list[str]:
    """Return the rows of the table of intervals in docs/statistics.md."""
    rows = []
    for name in METHODS:
        near, least = [], []
        for n in SCORES:
            near.append(coverage_and_width(name, n, np.array([0.98, 0.99]))[0].min())
            least.append(coverage_and_width(name, n, RATES)[0].min())
        widths = " | ".join(f"{w:.3f}" for w in coverage_and_width(name, 50, np.array([0.5, 0.9, 0.98]))[1])
        rows.append(f"| {name} | {min(near):.3f} | {min(least):.3f} | {widths} |")
    return rows


def test_table_of_intervals_in_the_docs_is_the_computed_one() -> None:
    text = (CHECKOUT / "docs/statistics.md").read_text()
    assert [row for row in interval_table() if row not in text] == []


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_blaker_holds_the_rates_that_its_test_does_not_reject(counts: tuple[int, int]) -> None:
    """By definition: a rate is rejected if counts with a tail as improbable as the observed one have less
    than 5 %.
    """
    k, n = counts
    low, high = blaker(k, n)

    def p_value(rate: float) -> float:
        likely = binom.pmf(range(n + 1), n, rate)
        tail = np.minimum(np.cumsum(likely), np.cumsum(likely[::-1])[::-1])
        return float(likely[tail <= tail[k] * (1 + 1e-9)].sum())

    for bound, outwards in ((low, -1e-6), (high, 1e-6)):
        if 0 < bound < 1:
            assert p_value(bound + outwards) <= 0.05 < p_value(bound - outwards)


def test_blaker_equals_published_values() -> None:
    """Those of the R package exactci: binom.exact(3, 10, tsmethod = "blaker")."""
    assert blaker(3, 10) == pytest.approx((0.0873, 0.6194), abs=5e-5)
    assert blaker(0, 0) == (0.0, 1.0)
    assert blaker(7, 7).high == 1.0


def test_paired_comparison_counts_discordant_outcomes_of_common_episodes() -> None:
    first = {"a": True, "b": True, "c": True, "d": False, "only here": True}
    second = {"a": True, "b": False, "c": False, "d": True, "only there": False}
    result = paired_comparison(first, second)
    assert (result.episodes, result.only_first, result.only_second) == (4, 2, 1)
    assert result.difference == pytest.approx(0.25)
    # By hand: of three fair coins, two or more agree on one side always, so p = 1.
    assert result.p_value == 1.0


def test_paired_comparison_p_value_is_the_exact_binomial_one() -> None:
    first = {str(i): i < 12 for i in range(30)}
    second = {str(i): 10 <= i < 14 for i in range(30)}
    result = paired_comparison(first, second)
    assert (result.only_first, result.only_second) == (10, 2)
    assert result.p_value == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)


def test_paired_comparison_of_equal_policies_rejects_at_most_five_percent() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        a, b = rng.random((2, 40)) < 0.5
        result = paired_comparison(dict(enumerate(a)), dict(enumerate(b)))  # type: ignore[arg-type]
        wrong += result.p_value < 0.05
    assert wrong <= 50


def test_paired_comparison_without_a_common_episode_raises() -> None:
    with pytest.raises(ValueError, match="no episode in common"):
        paired_comparison({"a": True}, {"b": True})


counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_clopper_pearson_equals_statsmodels_and_contains_blaker(
    counted: tuple[int, int], confidence: float
) -> None:
    low, high = proportion_confint(*counted, alpha=1 - confidence, method="beta")
    wide = clopper_pearson(*counted, confidence)
    assert wide == pytest.approx((np.nan_to_num(low), 1.0 if np.isnan(high) else high), abs=1e-9)
    narrow = blaker(*counted, confidence)
    assert wide.low - 1e-9 <= narrow.low <= counted[0] / counted[1] <= narrow.high <= wide.high + 1e-9


def test_clopper_pearson_covers_at_every_rate() -> None:
    for episodes in (10, 50):
        intervals = [clopper_pearson(k, episodes) for k in range(episodes + 1)]
        for rate in np.linspace(0.01, 0.99, 99):
            held = [low <= rate <= high for low, high in intervals]
            assert scipy_stats.binom.pmf(range(episodes + 1), episodes, rate) @ held >= 0.95


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_paired_comparison_p_value_equals_statsmodels_mcnemar(
    both: int, only_first: int, only_second: int
) -> None:
    first = {str(i): i < both + only_first for i in range(both + only_first + only_second + 1)}
    second = {str(i): i < both or i >= both + only_first for i in range(both + only_first + only_second)} | {
        str(len(first) - 1): False
    }
    first[str(len(first) - 1)] = False
    table = [[both, only_first], [only_second, 1]]
    assert paired_comparison(first, second).p_value == pytest.approx(mcnemar(table, exact=True).pvalue)


@pytest.mark.parametrize("seed", range(20))
def test_holm_equals_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_values = list(np.round(rng.random(1 + seed) ** 3, 3))  # rounded, so that there are ties
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert all(corrected >= p for corrected, p in zip(holm(p_values), p_values, strict=True))


def test_unpaired_p_value_of_the_paper_tables() -> None:
    """RoboCasa, 24 tasks of 50 episodes: 0.63 with 50 demos, 0.66 with 300, a baseline at 0.57, and 0.58 in
    an independent run of the 0.66 recipe.
    """
    of = {rate: (round(rate * 1200), 1200) for rate in (0.57, 0.58, 0.63, 0.66)}
    assert unpaired_p_value(of[0.63], of[0.57]) == pytest.approx(0.003, abs=0.0005)
    assert unpaired_p_value(of[0.63], of[0.66]) == pytest.approx(0.135, abs=0.005), "not shown to differ"
    assert unpaired_p_value(of[0.66], of[0.58]) < 1e-4


def test_best_of_bias_equals_the_simulated_selection_bias() -> None:
    rng = np.random.default_rng(0)
    for policies, episodes, told in ((1, 50, 0.0), (5, 50, 0.08), (10, 50, 0.105), (20, 20, 0.197)):
        simulated = rng.binomial(episodes, 0.6, (20_000, policies)).max(1).mean() / episodes - 0.6
        assert best_of_bias(policies, episodes, 0.6) == pytest.approx(simulated, abs=0.003)
        assert best_of_bias(policies, episodes, 0.6) == pytest.approx(told, abs=0.002)


def checkpoints(
    rng: np.random.Generator, arms: int, trend: float, link: float
) -> tuple[list[float], list[float], list[str], list[float]]:
    """Draw a video quality and a success rate at four steps of several arms, with the arms and the steps. Both
    have an effect of the arm and grow by `trend` per checkpoint; `link` is what quality adds to success.
    """
    steps = np.tile([100.0, 200.0, 300.0, 400.0], (arms, 1))
    quality, noise = (rng.normal(0, 1, (arms, 1)) + rng.normal(0, 1, (arms, 4)) for _ in range(2))
    columns = quality + trend * steps / 100, noise + link * quality + trend * steps / 100
    names = [f"arm-{arm}" for arm in range(arms) for _ in range(4)]
    return list(columns[0].ravel()), list(columns[1].ravel()), names, list(steps.ravel())


def test_rank_correlation_equals_scipy_and_partial_that_of_residual_ranks() -> None:
    quality, success, arms, steps = checkpoints(np.random.default_rng(0), 12, 1.0, 0.5)
    raw, partial = rank_correlation(quality, success, arms), rank_correlation(quality, success, arms, steps)
    assert raw
    assert partial
    assert (raw.number, raw.clusters) == (48, 12)
    assert raw.rho == pytest.approx(scipy_stats.spearmanr(quality, success).statistic)
    ranks, of = (scipy_stats.rankdata(column) for column in (quality, success)), scipy_stats.rankdata(steps)
    left = [own - np.polyval(np.polyfit(of, own, 1), of) for own in ranks]
    assert partial.rho == pytest.approx(np.corrcoef(left)[0, 1])


@pytest.mark.parametrize("link", [0.0, 1.5])
def test_partial_rank_correlation_shows_only_what_steps_do_not(link: float) -> None:
    rng, found = np.random.default_rng(1), []
    for _ in range(50):
        drawn = checkpoints(rng, 6, trend=2.0, link=link)
        raw, partial = rank_correlation(*drawn[:3]), rank_correlation(*drawn)
        assert raw
        assert partial
        found.append((raw.interval.low > 0, partial.rho, partial.interval.low > 0))
    raw_shown, rho, shown = np.mean(found, axis=0)
    assert raw_shown > 0.8, "success and quality both grow with steps"
    if link:
        assert rho > 0.5
        assert shown > 0.5
    else:
        assert rho == pytest.approx(0, abs=0.1)
        assert shown <= 0.08


def test_rank_correlation_interval_covers_where_only_arms_are_independent() -> None:
    rng = np.random.default_rng(2)
    truth = scipy_stats.spearmanr(*checkpoints(rng, 5_000, 0.5, 0.5)[:2]).statistic
    held = 0
    for _ in range(100):
        found = rank_correlation(*checkpoints(rng, 6, 0.5, 0.5)[:3])
        assert found
        held += found.interval.low <= truth <= found.interval.high
    assert held / 100 >= 0.9


def test_rank_correlation_of_too_few_arms_or_constant_pairs_is_none() -> None:
    five, arms = [1.0, 2.0, 3.0, 4.0, 5.0], list("aabbc")
    assert rank_correlation([1, 2, 3], [1, 2, 3], list("abc")) is None
    assert rank_correlation(five, five, list("aabbb")) is None
    assert rank_correlation(five, [1.0] * 5, arms) is None
    assert rank_correlation(five, [1.0, 3.0, 2.0, 5.0, 4.0], arms, [7.0] * 5) is None
    assert rank_correlation(five, [1.0, 3.0, 2.0, 5.0, 4.0], arms, five) is None
    perfect = rank_correlation(five, [2.0, 4.0, 6.0, 8.0, 9.0], arms)
    assert perfect
    assert (perfect.rho, *perfect.interval) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))


# -- the spread between trainings


def recipes(
    rng: np.random.Generator,
    ability: list[float],
    replicates: int,
    episodes: int,
    between: float,
    scenes: float,
) -> np.ndarray:
    """Draw (C, R, E) outcomes of recipes whose trainings and scenes vary, on a logit scale."""
    shift = rng.normal(0, between, (len(ability), replicates, 1))
    odds = np.asarray(ability)[:, None, None] + shift + rng.normal(0, scenes, (1, 1, episodes))
    return (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float)


def truth(ability: float, between: float, scenes: float) -> float:
    """Return the success rate over trainings and scenes."""
    places, weights = np.polynomial.hermite_e.hermegauss(64)
    odds = ability + math.hypot(between, scenes) * places
    return float(weights @ (1 / (1 + np.exp(-odds))) / weights.sum())


@pytest.mark.full
@pytest.mark.parametrize(
    ("replicates", "episodes", "between", "scenes"),
    [
        (1, 50, 0.0, 1.0),
        (3, 50, 0.3, 0.0),
        (3, 50, 0.3, 1.0),
        (3, 50, 0.0, 1.0),
        (5, 100, 0.3, 1.0),
        (3, 50, 0.1, 2.0),
    ],
)
@pytest.mark.parametrize("ability", [0.0, 2.0])
def test_band_covers_the_rate_over_trainings_and_scenes(
    replicates: int, episodes: int, between: float, scenes: float, ability: float
) -> None:
    rng, held, tries = np.random.default_rng(0), 0, 600
    rate, tasks = truth(ability, between, scenes), np.zeros(episodes, int)
    for seed in range(tries):
        outcomes = recipes(rng, [ability], replicates, episodes, between, scenes)
        low, high = band(
            hierarchical_draws(outcomes, tasks, draws=400, seed=seed)[:, 0],
            clopper_pearson(int(outcomes.sum()), outcomes.size),
        )
        held += low <= rate <= high
    error = math.sqrt(0.95 * 0.05 / tries)
    assert held / tries >= 0.95 - 0.01 - 2 * error


@pytest.mark.full
def test_hierarchical_draws_difference_of_paired_recipes_covers_the_gap() -> None:
    rng, held, tries, tasks = np.random.default_rng(1), 0, 400, np.zeros(100, int)
    gap = truth(1.0, 0.3, 1.5) - truth(0.3, 0.3, 1.5)
    widths = []
    for seed in range(tries):
        draws = hierarchical_draws(recipes(rng, [1.0, 0.3], 3, 100, 0.3, 1.5), tasks, draws=400, seed=seed)
        low, high = interval_of(draws[:, 0] - draws[:, 1])
        held += low <= gap <= high
        widths.append((np.std(draws[:, 0] - draws[:, 1]), math.hypot(*draws.std(0))))
    assert held / tries >= 0.92
    alone = hierarchical_draws(np.repeat(recipes(rng, [1.0], 1, 100, 0, 2), 2, axis=0), tasks)
    assert np.allclose(alone[:, 0], alone[:, 1]), "the same outcomes on the same scenes never differ"


def test_hierarchical_draws_of_one_replicate_vary_by_scene_alone() -> None:
    outcomes = recipes(np.random.default_rng(0), [0.5, -0.5], 3, 60, 0.3, 1.0)
    draws = hierarchical_draws(outcomes, np.arange(60) % 3, draws=20_000)
    assert np.median(draws, axis=0) == pytest.approx(outcomes.mean((1, 2)), abs=0.01)
    one = hierarchical_draws(outcomes[:, :1], np.zeros(60, int), draws=20_000)
    assert one.std(0) == pytest.approx(outcomes[:, 0].std(1, ddof=1) / math.sqrt(60), rel=0.03)


def test_hierarchical_draws_of_a_cell_with_a_missing_replicate_keep_its_rate() -> None:
    outcomes = recipes(np.random.default_rng(0), [0.5, -0.5], 3, 60, 0.3, 1.0)
    outcomes[1, 2] = np.nan
    draws = hierarchical_draws(outcomes, np.zeros(60, int), draws=20_000)
    assert np.median(draws, axis=0) == pytest.approx([outcomes[0].mean(), outcomes[1, :2].mean()], abs=0.01)
    assert not np.isnan(draws).any()


def test_hierarchical_draws_do_not_resample_tasks() -> None:
    """One task always succeeds, the other never: with the tasks fixed, nothing varies."""
    outcomes = np.concatenate([np.ones((1, 1, 50)), np.zeros((1, 1, 50))], axis=2)
    assert hierarchical_draws(outcomes, np.repeat([0, 1], 50)).std() == 0


def test_band_is_never_narrower_than_the_interval_of_the_episodes() -> None:
    outcomes = np.ones((1, 3, 20))
    draws = hierarchical_draws(outcomes, np.zeros(20, int))
    assert band(draws[:, 0], clopper_pearson(60, 60)) == clopper_pearson(60, 60)


def test_fixed_sample_module_imports_no_heavy_package() -> None:
    import orchestrator.stats.fixed_sample

    source = Path(str(orchestrator.stats.fixed_sample.__file__)).read_text()
    assert not any(f"import {package}" in source for package in ("ray", "mlflow", "torch", "matplotlib"))
