"""Item response over scenes: plain cases, and the share of classes that are right in simulated sweeps."""

import numpy as np
import pytest
from scipy.special import expit

from orchestrator.stats.scene_difficulty import scene_difficulties

COUNTS = np.repeat([10.0, 20, 40, 80, 160], 4)
ONE_LINE = np.zeros(len(COUNTS), np.int64)


def simulated(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return outcomes (A, 40) and the true classes."""
    rng = np.random.default_rng(seed)
    difficulties = 1.8 * rng.normal(size=40)
    ability = 0.9 * (np.log(COUNTS) - np.log(COUNTS).mean())
    odds = (ability + 0.3 * rng.normal(size=len(COUNTS)))[:, None] - difficulties
    truth = np.where(
        ability.min() > difficulties, "easy", np.where(ability.max() > difficulties, "more demos", "hard")
    )
    return (rng.random(odds.shape) < expit(odds)).astype(float), truth


def test_plain_scenes_get_their_class_and_unplayed_ones_none() -> None:
    outcomes = np.column_stack(
        [
            np.zeros(20),
            np.ones(20),
            *[(COUNTS > 30).astype(float)] * 3,
            np.full(20, np.nan),
        ]
    )
    told = scene_difficulties([*"abcdef"], ONE_LINE, COUNTS, outcomes)
    kinds = {one.scene: one.kind for one in told}
    assert kinds == {"a": "hard", "b": "easy", "c": "more demos", "d": "more demos", "e": "more demos"}
    assert [told[0].scene, told[-1].scene] == ["a", "b"]
    assert (told[0].solved, told[0].arms) == (0, 20)
    assert told[0].most < 0.3


def test_two_arms_decide_no_scene_that_they_end_differently() -> None:
    outcomes = np.array([[0.0, 1, 0, 1], [1, 0, 0, 1]])
    told = scene_difficulties([*"abcd"], np.zeros(2, np.int64), np.array([10.0, 20]), outcomes)
    assert {one.kind for one in told if one.scene in "ab"} == {"undecided"}


def test_nine_of_ten_classes_are_right() -> None:
    right = certain = total = 0
    for seed in range(6):
        outcomes, truth = simulated(seed)
        told = scene_difficulties([*map(str, range(40))], ONE_LINE, COUNTS, outcomes)
        total += len(told)
        certain += sum(one.kind != "undecided" for one in told)
        right += sum(one.kind == truth[int(one.scene)] for one in told)
    assert certain > 0.4 * total
    assert right >= 0.9 * certain


def test_lines_that_differ_on_a_scene_set_it_apart() -> None:
    """Of two lines one solves all scenes but the first, the other none."""
    lines = np.repeat([0, 1], 20)
    outcomes = np.vstack([np.tile([0.0, *[1.0] * 9], (20, 1)), np.zeros((20, 10))])
    told = scene_difficulties([*"abcdefghij"], lines, np.tile(COUNTS, 2), outcomes)
    kinds = {one.scene: one.kind for one in told}
    assert kinds["a"] in ("hard", "undecided")
    assert kinds["j"] == "depends on the policy"


@pytest.mark.parametrize("arms", [1, 2])
def test_outcomes_that_are_all_equal_give_finite_rates(arms: int) -> None:
    told = scene_difficulties(["a"], np.zeros(arms, np.int64), np.full(arms, 10.0), np.ones((arms, 1)))
    assert 0.5 < told[0].most < 1
