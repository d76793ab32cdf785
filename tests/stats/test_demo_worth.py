"""Worth of demonstrations: against generalised least squares, on planted harm, and with too little data."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import false_discovery_control

from orchestrator.stats.demo_worth import (
    DemoWorth,
    ScoredSubsets,
    _exchanges,
    _informative,
    _regression,
    demo_worth,
    discoveries,
)

STORE, SCENES = 16, 40
BAD = 3


def planted(harm: float, seeds: int = 40, counts: tuple[int, ...] = (6,), seed: int = 0) -> ScoredSubsets:
    """Return arms whose log odds fall by `harm` per bad demo among six; the first BAD of the store are bad."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(STORE) for _ in range(seeds)]
    members = np.array([np.isin(np.arange(STORE), order[:count]) for order in orders for count in counts])
    demos = members.sum(1).astype(float)
    odds = -harm * 6 * (members[:, :BAD].sum(1) / demos - BAD / STORE)
    odds = odds[:, None] + 0.2 * rng.normal(size=(len(odds), 1)) - rng.normal(size=SCENES)
    return ScoredSubsets(
        tuple(f"e{number:02}" for number in range(STORE)),
        np.tile(np.arange(len(counts)), seeds),
        demos,
        np.repeat(np.arange(seeds), len(counts)),
        members,
        (rng.random(odds.shape) < expit(odds)).astype(float),
    )


@pytest.mark.parametrize("counts", [(6,), (4, 6, 9)])
def test_planted_bad_demonstrations_are_named(counts: tuple[int, ...]) -> None:
    told = demo_worth(planted(1.2, counts=counts))
    assert told is not None
    assert {one.episode for one in told.hurting} == {"e00", "e01", "e02"}
    assert all(one.interval.high < 0 and one.change < one.shrunk < 0 for one in told.hurting)
    assert told.p_value < 0.002
    # an average scene: 0.25 per log odds, less for easy and hard ones
    assert np.mean([one.change for one in told.hurting]) == pytest.approx(-1.2 * 13 / 15 * 0.2, rel=0.4)


def test_without_harm_nothing_is_named_and_the_arms_it_takes_are_stated() -> None:
    told = demo_worth(planted(0.0))
    assert told is not None
    assert not told.told
    assert told.hurting == ()
    assert told.arms == 40
    assert told.arms_for(told.detectable) == 40
    assert told.arms_for(told.detectable / 2) == 160


def test_effects_and_errors_are_those_of_generalised_least_squares() -> None:
    """The closed form against an explicit covariance of all other demonstrations' effects and noise."""
    scored = planted(0.6, counts=(4, 6))
    told = demo_worth(scored)
    kept = _informative(scored)
    assert told is not None
    assert kept is not None
    regression = _regression(kept)
    response = regression.rotation.T @ regression.response
    shares = regression.rotation.T @ regression.shares
    by_name = {one.episode: one for one in told.episodes}
    found = by_name["e05"]
    # the variances follow from the shrinkage and the spread of all estimates
    own, others = shares[:, 5], np.delete(shares, 5, axis=1)

    def estimate(effects: float, noise: float) -> tuple[float, float]:
        covariance = effects * others @ others.T + noise * np.eye(len(response))
        weights = np.linalg.solve(covariance, own)
        return float(weights @ response / (weights @ own)), float(np.sqrt(1 / (weights @ own)))

    likelihood = {
        (effects, noise): -0.5 * (np.linalg.slogdet(whole)[1] + response @ np.linalg.solve(whole, response))
        for effects in np.geomspace(0.001, 1, 25)
        for noise in np.geomspace(0.2, 5, 25)
        for whole in [effects * shares @ shares.T + noise * np.eye(len(response))]
    }
    effect, error = estimate(*max(likelihood, key=lambda pair: likelihood[pair]))
    assert found.change / regression.slope == pytest.approx(effect, abs=0.1 * error)
    half = (found.interval.high - found.interval.low) / 2 / regression.slope
    assert half == pytest.approx(2 * error, rel=0.1)


def test_a_permutation_exchanges_whole_seeds_with_the_same_cells() -> None:
    scored = planted(0.0, seeds=6, counts=(4, 6, 9))
    without = np.ones(18, bool)
    without[5] = False  # the second seed lacks the last cell
    fewer = replace(
        scored,
        **{
            name: getattr(scored, name)[without]
            for name in ("cells", "demos", "seeds", "members", "outcomes")
        },
    )
    orders = _exchanges(fewer, np.random.default_rng(0))
    assert (np.sort(orders, axis=0) == np.arange(17)[:, None]).all()
    assert (fewer.cells[orders] == fewer.cells[:, None]).all()
    assert (orders[fewer.seeds == 1] == np.flatnonzero(fewer.seeds == 1)[:, None]).all()
    for seed in range(6):
        givers = fewer.seeds[orders[fewer.seeds == seed]]
        assert (givers == givers[0]).all()
    assert (orders[0] != 0).any()


def test_too_few_arms_and_cells_without_failures_tell_nothing() -> None:
    scored = planted(1.0, seeds=8)
    assert demo_worth(scored) is None
    solved = planted(1.0)
    assert demo_worth(replace(solved, outcomes=np.ones_like(solved.outcomes))) is None


def test_scenes_that_an_arm_did_not_play_do_not_count() -> None:
    whole = planted(1.2)
    outcomes = whole.outcomes.copy()
    outcomes[::2, :8] = np.nan
    told: DemoWorth | None = demo_worth(replace(whole, outcomes=outcomes))
    assert told is not None
    assert {"e00", "e01", "e02"} <= {one.episode for one in told.hurting}


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        p_values = rng.random(30) ** 3
        expected = tuple(np.flatnonzero(false_discovery_control(p_values) <= 0.1).tolist())
        assert discoveries(p_values.tolist()) == expected
