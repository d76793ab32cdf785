"""What a number of seeds allows to say."""

import pytest

from orchestrator.stats.claims import Claim, enough_seeds
from orchestrator.stats.fixed_sample import Interval

ABOVE, AROUND, BELOW = Interval(0.1, 0.3), Interval(-0.1, 0.5), Interval(-0.3, -0.1)


@pytest.mark.parametrize(
    ("seeds", "better_by", "p_value", "interval", "verdict"),
    [
        (1, 0.2, 0.01, ABOVE, "these trained policies differ"),
        (2, -0.2, 0.01, BELOW, "these trained policies differ"),
        (2, 0.2, 0.06, ABOVE, "no evidence that these trained policies differ"),
        (3, 0.2, 0.01, ABOVE, "better"),
        (3, -0.2, 0.01, BELOW, "worse"),
        (3, 0.2, 0.01, AROUND, "no evidence of a difference"),
        (3, 0.2, 0.06, ABOVE, "no evidence of a difference"),
    ],
)
def test_verdict_is_about_the_recipe_from_three_seeds_on(
    seeds: int, better_by: float, p_value: float, interval: Interval, verdict: str
) -> None:
    claim = Claim(seeds)
    assert claim.verdict(better_by, p_value, interval) == verdict
    assert claim.of_recipe is (claim.about == "recipe") is (claim.needs == "") is (seeds >= 3)


def test_enough_seeds_keep_those_that_a_sweep_has() -> None:
    assert [enough_seeds(seeds) for seeds in ([0], [7], [0, 1, 2], [1, 4])] == [
        [0, 1, 2],
        [7, 8, 9],
        [0, 1, 2],
        [1, 4, 5],
    ]
