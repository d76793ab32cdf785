"""What candidates are worth: against an exact posterior, and by order where it is plain."""

import numpy as np
import pytest
from scipy.special import expit

from orchestrator.stats.forecast import Arms, Forecast, Shape, forecast
from orchestrator.stats.next_arm import (
    Candidate,
    Target,
    area_between,
    demos_for,
    equivalence,
    proposals,
    worthwhile,
)

COUNTS = np.array([10.0, 20.0, 40.0])


def constant(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(expit(parameters[:, :1] + 0 * x))


@pytest.fixture(scope="module")
def fitted() -> Forecast:
    """Return the forecast of two ratios, whose line of demos alone ends at 0.6."""
    demos, ratios = np.repeat(COUNTS, 6), np.tile([0, 0, 0, 1, 1, 1], 3)
    rates = np.repeat([0.3, 0.4, 0.45, 0.55, 0.6, 0.7], 3)
    return forecast(Arms(demos, ratios.astype(float), np.round(50 * rates), np.full(18, 50.0)))


def test_narrowing_by_a_further_training_equals_that_of_the_normal_posterior() -> None:
    """One unknown rate, of which 150 episodes are known and further 150 are played: its interval narrows by
    1 - sqrt(1/2), as far as trainings do not differ.
    """
    arms = Arms(COUNTS, np.zeros(3), np.full(3, 25.0), np.full(3, 50.0))
    one = forecast(arms, (Shape("constant", constant, ((0.0, 5.0),)),))
    same = Forecast(
        one.arms,
        one.fits,
        one.weights,
        tuple(np.column_stack([draws[:, :2], np.full(len(draws), -12.0)]) for draws in one._chosen),
        one._scenes,
    )
    rate = Target("rate", lambda told: told.rates(np.array([20.0]))[:, 0])
    spread = rate.of(same).std()
    known = 0.25 / spread**2  # episodes that the posterior is worth
    (told,) = proposals(same, rate, [Candidate(20, 0, 150, 1.0)])
    assert told.narrows == pytest.approx(1 - np.sqrt(known / (known + 150)), abs=0.06)
    assert told.width == pytest.approx(2 * 1.645 * spread, rel=0.06)


def test_counts_far_from_the_target_and_dear_ones_are_worth_less(fitted: Forecast) -> None:
    near, far, dear = Candidate(160, 0, 50, 1.0), Candidate(10, 0, 50, 1.0), Candidate(160, 0, 50, 10.0)
    ranked = [one.candidate for one in proposals(fitted, demos_for(0.9, 0.0), [far, dear, near])]
    assert ranked[0] == near
    (cheap,) = proposals(fitted, demos_for(0.9, 0.0), [near])
    (same,) = proposals(fitted, demos_for(0.9, 0.0), [dear])
    assert same.narrows == cheap.narrows
    assert same.worth == pytest.approx(cheap.worth / 10)


def test_worth_of_video_takes_arms_with_other_ratios(fitted: Forecast) -> None:
    mixed, plain = Candidate(20, 1.0, 400, 1.0), Candidate(20, 0.0, 400, 1.0)
    told = {one.candidate: one.narrows for one in proposals(fitted, equivalence(), [mixed, plain])}
    assert told[mixed] > 0.02
    assert told[plain] > 0.02


def test_further_episodes_of_an_arm_narrow_less_than_a_new_training(fitted: Forecast) -> None:
    target = area_between(10, 40, 0.0)
    told = proposals(fitted, target, [Candidate(40, 0.0, 50, 1.0), Candidate(40, 0.0, 50, 1.0, arm=12)])
    assert told[0].candidate.arm is None
    assert told[0].narrows > told[1].narrows >= -0.02


def test_no_proposal_is_made_beyond_the_budget(fitted: Forecast) -> None:
    (told,) = proposals(fitted, demos_for(0.9, 0.0), [Candidate(160, 0, 50, 4.0)])
    assert worthwhile(told, budget=4.0)
    assert not worthwhile(told, budget=3.9)
