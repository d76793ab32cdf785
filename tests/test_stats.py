"""What may be concluded: against textbook formulas, exhaustive counting, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.arms import Arm
from orchestrator.curve import Curve
from orchestrator.stats import paired_comparison, wilson
from orchestrator.tracking import ScoredArm


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_textbook_formula(counts: tuple[int, int]) -> None:
    k, n = counts
    z, p = 1.959963984540054, k / n
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(k, n) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)


def test_wilson_covers_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    for n in (20, 50):
        for p in (0.1, 0.5, 0.9):
            hits = [low <= p <= high for low, high in (wilson(int(k), n) for k in rng.binomial(n, p, 2000))]
            assert np.mean(hits) > 0.92


def test_no_episodes_no_knowledge() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_paired_test_counts_only_what_differs_on_common_episodes() -> None:
    first = {"a": True, "b": True, "c": True, "d": False, "only here": True}
    second = {"a": True, "b": False, "c": False, "d": True, "only there": False}
    result = paired_comparison(first, second)
    assert (result.episodes, result.only_first, result.only_second) == (4, 2, 1)
    assert result.difference == pytest.approx(0.25)
    # By hand: three coins, two or more on either side: always.
    assert result.p_value == 1.0


def test_the_paired_test_is_the_exact_binomial_one() -> None:
    first = {str(i): i < 12 for i in range(30)}
    second = {str(i): 10 <= i < 14 for i in range(30)}
    result = paired_comparison(first, second)
    assert (result.only_first, result.only_second) == (10, 2)
    assert result.p_value == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)
    assert result.verdict == "better"


def test_equal_policies_are_called_different_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        a, b = rng.random((2, 40)) < 0.5
        result = paired_comparison(dict(enumerate(a)), dict(enumerate(b)))  # type: ignore[arg-type]
        wrong += result.p_value < 0.05
    assert wrong <= 50


def test_policies_without_a_common_episode_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no episode in common"):
        paired_comparison({"a": True}, {"b": True})


def scored(demos: int, ratio: float, wins: int, episodes: int = 10, seed: int = 0) -> ScoredArm:
    outcomes = {f"Lift-{i}": i < wins for i in range(episodes)}
    return ScoredArm(Arm(demos, ratio, seed), "protocol", 100, wins, episodes, 0, outcomes)


def test_points_pool_replicates_and_keep_their_denominators() -> None:
    curve = Curve("c", (scored(2, 0, 3), scored(2, 0, 5, seed=1), scored(8, 0, 9)))
    first, second = curve.points
    assert (first.successes, first.episodes, first.seeds, second.seeds) == (8, 20, 2, 1)
    assert first.success_rate == 0.4


def test_demos_to_reach_interpolates_in_log_demos_or_says_not_reached() -> None:
    curve = Curve("c", (scored(2, 0, 2), scored(8, 0, 6), scored(2, 1, 8), scored(8, 1, 9)))
    assert curve.demos_to_reach(0.4) == {0: pytest.approx(4.0), 1: 2.0}
    assert curve.demos_to_reach(0.7) == {0: "not reached", 1: 2.0}


def test_replicates_are_compared_with_the_replicate_of_their_seed() -> None:
    curve = Curve("c", (scored(2, 0, 0), scored(2, 0, 0, seed=1), scored(8, 0, 10), scored(8, 0, 10, seed=1)))
    (comparison,) = curve.comparisons()
    assert comparison.result.episodes == 20
    assert comparison.result.only_first == 20
    assert "20 won only by the first" in str(comparison)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_curve_draws(kind: str) -> None:
    curve = Curve("c", tuple(scored(d, r, w, seed=s) for s in (0, 1) for d, r, w in ((2, 0, 2), (8, 0, 6), (2, 1, 8), (8, 1, 9))))
    picture = curve.draw(kind)
    assert picture.startswith(b"\x89PNG") if kind == "png" else b"<svg" in picture
