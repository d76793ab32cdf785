"""Power of planned comparisons, against textbook values and against verdicts on simulated outcomes."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from orchestrator.stats.claims import POLICY_VERDICTS, RECIPE_VERDICTS, Claim
from orchestrator.stats.fixed_sample import (
    hierarchical_draws,
    interval_of,
    paired_comparison,
    unpaired_p_value,
)
from orchestrator.stats.power import Comparison, fewest_episodes

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)


@cache
def logits(scene_sd: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean logits, and the success rate over all scenes that each of them has."""
    means = np.linspace(-12, 12, 4801)
    return means, WEIGHTS @ expit(means + scene_sd * NODES[:, None]) / WEIGHTS.sum()


def exact_mcnemar_power(pairs: int, only_first: float, only_second: float) -> float:
    """Return the probability that the first is found better, summed over all counts that may happen."""
    found = 0.0
    for differ in range(1, pairs + 1):
        least = binom.isf(0.025, differ, 0.5) + 1  # wins of the first that are significant
        share = only_first / (only_first + only_second)
        found += binom.pmf(differ, pairs, only_first + only_second) * binom.sf(least - 1, differ, share)
    return found


@pytest.mark.parametrize(("pairs", "difference"), [(15, 0.5), (25, 0.4), (100, 0.2), (400, 0.1)])
def test_power_between_two_trained_policies_is_that_of_the_exact_mcnemar_test(
    pairs: int, difference: float
) -> None:
    planned = Comparison(seeds=1, episodes=pairs, scene_sd=0)
    first, second = 0.5 + difference / 2, 0.5 - difference / 2
    exact = exact_mcnemar_power(pairs, first * (1 - second), second * (1 - first))
    assert planned.power(difference) == pytest.approx(exact, abs=0.025)


def test_smallest_difference_shrinks_with_seeds_and_episodes() -> None:
    planned = Comparison(seeds=5, episodes=100, compared=4)
    smallest = planned.smallest_difference()
    assert planned.power(smallest) == pytest.approx(0.8, abs=0.005)
    assert replace(planned, compared=1).smallest_difference() <= smallest
    assert replace(planned, paired=False).smallest_difference() > smallest
    assert replace(planned, seeds=10).smallest_difference() < smallest
    assert replace(planned, episodes=400).smallest_difference() < smallest
    assert Comparison(seeds=1, episodes=3).smallest_difference() == math.inf


def test_fewest_episodes_are_the_fewest_that_find_the_difference() -> None:
    planned = Comparison(seeds=10, episodes=1)
    fewest = fewest_episodes(planned, 0.1, most=2000)
    assert fewest
    assert (
        replace(planned, episodes=fewest).power(0.1) >= 0.8 > replace(planned, episodes=fewest - 1).power(0.1)
    )
    assert fewest_episodes(replace(planned, seeds=3), 0.1, most=2000) is None, "seeds beat episodes"


def verdicts(planned: Comparison, difference: float, tries: int, rng: np.random.Generator) -> float:
    """Return the share of simulated comparisons in which the curve's verdict is for the better one."""
    found, seeds, episodes = 0, planned.seeds, planned.episodes
    recipes, tasks = Claim(seeds).of_recipe, np.zeros(episodes, int)
    for number in range(tries):
        scenes = planned.scene_sd * rng.standard_normal((1 if planned.paired else 2, 1, episodes))
        spread = planned.training_sd * rng.standard_normal((2, seeds)) if recipes else np.zeros((2, seeds))
        rates = 0.5 + difference / 2 * np.array([[1], [-1]]) + spread
        means, over_scenes = logits(planned.scene_sd)
        odds = np.interp(rates.clip(0.01, 0.99), over_scenes, means)
        won = rng.random((2, seeds, episodes)) < expit(odds[:, :, None] + scenes)
        if planned.paired:
            first, second = ({i: bool(one) for i, one in enumerate(own.ravel())} for own in won)
            p_value = paired_comparison(first, second).p_value  # type: ignore[arg-type]
            draws = hierarchical_draws(won.astype(float), tasks, 400, seed=number)
            apart = draws[:, 0] - draws[:, 1]
        else:
            p_value = unpaired_p_value(*((int(own.sum()), own.size) for own in won))
            alone = [
                hierarchical_draws(own[None].astype(float), tasks, 400, seed=2 * number + place)[:, 0]
                for place, own in enumerate(won)
            ]
            apart = alone[0] - alone[1]
        better_by = float(won[0].mean() - won[1].mean())
        verdict = Claim(seeds).verdict(better_by, p_value * planned.compared, interval_of(apart))
        found += better_by > 0 and verdict in (RECIPE_VERDICTS[1], POLICY_VERDICTS[1])
    return found / tries


@pytest.mark.full
@pytest.mark.parametrize("difference", [0.2, 0.3])
@pytest.mark.parametrize(
    "planned",
    [
        Comparison(seeds=1, episodes=50),
        Comparison(seeds=1, episodes=50, compared=4),
        Comparison(seeds=1, episodes=50, paired=False),
        Comparison(seeds=3, episodes=50),
        Comparison(seeds=3, episodes=50, paired=False),
        Comparison(seeds=5, episodes=25, compared=4),
        Comparison(seeds=5, episodes=100, scene_sd=2.0),
        Comparison(seeds=5, episodes=100, training_sd=0.1),
    ],
    ids=str,
)
def test_power_is_the_share_of_simulated_verdicts(planned: Comparison, difference: float) -> None:
    found = verdicts(planned, difference, 300, np.random.default_rng(0))
    # 300 tries have a standard deviation of up to 0.03; the largest gap seen is 0.08
    assert planned.power(difference) == pytest.approx(found, abs=0.1)
