"""Forecasts of the demos that a rate takes: against closed forms, an independent sampler, and simulation."""

import numpy as np
import pytest
from scipy.special import betaln, expit, gammaln
from scipy.stats import norm

from experiments.forecast import world
from orchestrator.stats.forecast import (
    CORRELATION,
    SHAPES,
    VIDEO,
    Arms,
    Forecast,
    Shape,
    forecast,
    predicted,
    scene_sd,
)

COUNTS = np.array([10.0, 20.0, 40.0, 80.0])
LOGISTIC, *_ = SHAPES


def arms_of(rates: list[float], episodes: float = 50, seeds: int = 3, ratio: float = 0.0) -> Arms:
    """Return arms whose successes are exactly as expected."""
    demos, rate = np.repeat(COUNTS[: len(rates)], seeds), np.repeat(rates, seeds)
    return Arms(demos, np.full(len(demos), ratio), np.round(rate * episodes), np.full(len(demos), episodes))


@pytest.fixture(scope="module")
def rising() -> Forecast:
    """Return the forecast of a line that rises to 0.85."""
    return forecast(arms_of([0.3, 0.5, 0.7, 0.85]))


def test_forecast_of_a_rising_line_is_identified_and_holds_its_continuation(rising: Forecast) -> None:
    inside, beyond = rising.demos_to_reach(0.8), rising.demos_to_reach(0.9)
    assert inside.identified
    assert inside.interval.low < 66 < inside.interval.high
    assert 80 < beyond.interval.low < 115 < beyond.interval.high
    assert sum(rising.weights) == pytest.approx(1)
    low, high = np.quantile(rising.rates(COUNTS), [0.05, 0.95], axis=0)
    assert ((low < [0.3, 0.5, 0.7, 0.85]) & (high > [0.3, 0.5, 0.7, 0.85])).all()
    assert (np.diff(rising.rates(np.geomspace(1, 1e4, 30)), axis=1) >= -1e-9).all(), "every draw rises"


def test_forecast_of_a_flat_line_identifies_no_answer() -> None:
    found = forecast(arms_of([0.5, 0.5, 0.5, 0.5])).demos_to_reach(0.9)
    assert not found.identified
    assert found.interval.high == np.inf
    assert found.never > 0.4


def test_forecast_narrows_with_episodes(rising: Forecast) -> None:
    low, high = forecast(arms_of([0.3, 0.5, 0.7, 0.85], episodes=1000, seeds=10)).demos_to_reach(0.9).interval
    wide = rising.demos_to_reach(0.9).interval
    assert high / low < 0.7 * wide.high / wide.low


def test_forecast_with_scenes_that_differ_is_wider() -> None:
    alike = arms_of([0.3, 0.5, 0.7, 0.85])
    differing = Arms(alike.demos, alike.ratios, alike.successes, alike.episodes, scene_sd=0.5)
    first, second = (forecast(arms).demos_to_reach(0.8).interval for arms in (alike, differing))
    assert second.high / second.low > 1.3 * first.high / first.low


def test_forecast_measures_what_video_is_worth() -> None:
    """Twice as many episodes, half of them action-free and worth as much: the line moves by a factor of two."""
    plain, mixed = arms_of([0.3, 0.5, 0.7, 0.85], 400), arms_of([0.5, 0.7, 0.85], 400, ratio=1.0)
    both = Arms(
        *(
            np.concatenate([getattr(plain, name), getattr(mixed, name)])
            for name in ("demos", "ratios", "successes", "episodes")
        )
    )
    fitted = forecast(both)
    low, high = fitted.worth()
    assert low < 1 < high
    assert high - low < 0.5
    without, with_video = (fitted.demos_to_reach(0.6, ratio).demos for ratio in (0.0, 1.0))
    assert without / with_video == pytest.approx(2, rel=0.15)


def test_forecast_with_two_demo_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="2 demo counts are too few; it takes 3"):
        forecast(arms_of([0.3, 0.6]))


def test_predicted_successes_of_one_arm_scatter_as_a_beta_binomial(rising: Forecast) -> None:
    drawn = rising.successes(20, 0.0, np.array([50.0, 50.0]))
    assert drawn.shape[1] == 2
    assert drawn.mean() == pytest.approx(25, abs=3)
    assert drawn.std() > np.sqrt(50 * 0.25), "wider than the binomial"
    assert np.corrcoef(drawn.T)[0, 1] > 0.1, "both trainings share the curve"


def test_evidence_of_a_shape_equals_that_of_a_sum_over_a_grid() -> None:
    """A shape with one parameter besides the video's power, which has no effect here, and the correlation."""

    def rates(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.asarray(expit(parameters[:, :1] + 0 * x))

    arms, prior = arms_of([0.3, 0.5, 0.4]), (0.5, 1.5)
    (fit,) = forecast(arms, (Shape("constant", rates, (prior,)),)).fits
    middle, correlation = np.meshgrid(np.linspace(-6, 6, 1201), np.linspace(-9, 3, 601), indexing="ij")
    log_density = norm.logpdf(middle, *prior) + norm.logpdf(correlation, *CORRELATION)
    for won, played in zip(arms.successes, arms.episodes, strict=True):
        size, lost = np.exp(-correlation), played - won
        first, second = expit(middle) * size, expit(-middle) * size
        log_density += gammaln(played + 1) - gammaln(won + 1) - gammaln(lost + 1)
        log_density += betaln(won + first, lost + second) - betaln(first, second)
    cell = (12 / 1200) * (12 / 600)
    assert fit.evidence == pytest.approx(np.log(np.exp(log_density).sum() * cell), abs=0.03)
    weights = np.exp(log_density)
    assert fit.draws[:, 0].mean() == pytest.approx((weights * middle).sum() / weights.sum(), abs=0.03)
    assert fit.draws[:, 1].mean() == pytest.approx(VIDEO[0], abs=0.05), "the prior's"
    assert fit.effective > 1000


@pytest.mark.full
def test_posterior_of_a_shape_equals_that_of_an_independent_sampler() -> None:
    """Quantiles of PyMC's NUTS: tests/helpers/forecast_oracle.py, 20,000 draws."""
    won = np.array([12, 15, 17, 22, 26, 25, 33, 36, 35, 44, 42, 41], float)
    fitted = forecast(
        Arms(np.repeat(COUNTS, 3), np.zeros(12), won, np.full(12, 50.0)), (LOGISTIC,), draws=20_000
    )
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    ceiling, correlation = (np.quantile(fitted.fits[0].draws[:, column], levels) for column in (0, -1))
    assert ceiling == pytest.approx([1.993, 2.779, 3.515, 4.357, 5.636], abs=0.12)
    assert correlation == pytest.approx([-6.145, -5.307, -4.758, -4.230, -3.523], abs=0.12)
    for rate, demos in (
        (0.7, [33.951, 37.897, 40.961, 44.660, 51.718]),
        (0.8, [52.203, 60.085, 67.036, 76.062, 98.881]),
    ):
        assert np.quantile(fitted.needed(rate), levels) == pytest.approx(demos, rel=0.04)


def test_scene_sd_measures_how_far_a_suites_mean_lies_from_that_of_all_scenes() -> None:
    """Rates of 500 suites of 50 scenes, each played by the same 12 arms: their spread is what one suite tells."""
    rng = np.random.default_rng(0)
    scenes = rng.normal(0, 1.0, (500, 1, 50))
    won = (rng.random((500, 12, 50)) < expit(scenes)).astype(float)
    means = won.mean(axis=(1, 2))
    told = np.array([scene_sd(own) for own in won])
    chance = 0.25 / (12 * 50)
    expected = np.sqrt(means.var() - chance) / 0.25
    assert np.mean(told) == pytest.approx(expected, rel=0.25)
    alike = (rng.random((500, 12, 50)) < 0.5).astype(float)
    assert np.mean([scene_sd(own) for own in alike]) < 0.4 * np.mean(told)


def test_predicted_interval_of_draws_with_infinity_has_an_open_end() -> None:
    low, high = predicted(np.array([1.0] * 50 + [2.0] * 44 + [np.inf] * 6))
    assert (low, high) == (1.0, np.inf)


def test_worlds_of_the_experiment_rise() -> None:
    for seed in range(30):
        rates = world(np.random.default_rng(seed)).rates(np.geomspace(0.1, 1e5, 50))
        assert ((rates > -1e-9) & (rates < 1 + 1e-9)).all()
        assert (np.diff(rates) >= -1e-9).all()
