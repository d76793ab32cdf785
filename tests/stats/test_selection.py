"""Choosing the best checkpoint: its bias, and the verdicts on the scenes that chose it and on others."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.stats.claims import Claim
from orchestrator.stats.fixed_sample import (
    best_of_bias,
    hierarchical_draws,
    interval_of,
    paired_comparison,
)
from orchestrator.stats.selection import selection_bias

Won = NDArray[np.bool_]


def blocks(rng: np.random.Generator, checkpoints: int, scenes: int, rate: float) -> tuple[Won, Won]:
    """Return outcomes of equally good checkpoints on selecting and on reported scenes, each (K, E)."""
    return rng.random((checkpoints, scenes)) < rate, rng.random((checkpoints, scenes)) < rate


def outcomes(won: Won) -> dict[str, bool]:
    return {f"Lift-{scene}-0": bool(one) for scene, one in enumerate(won)}


def test_selection_bias_of_equal_checkpoints_is_the_winners_curse_and_covered() -> None:
    rng, arms, checkpoints, scenes, rate = np.random.default_rng(0), 6, 10, 50, 0.6
    expected, told, covered = best_of_bias(checkpoints, scenes, rate), [], 0
    for _ in range(200):
        drawn = [blocks(rng, checkpoints, scenes, rate) for _ in range(arms)]
        best = [int(select.sum(1).argmax()) for select, _ in drawn]
        bias = selection_bias(
            [outcomes(select[row]) for row, (select, _) in zip(best, drawn, strict=True)],
            [outcomes(report[row]) for row, (_, report) in zip(best, drawn, strict=True)],
        )
        told.append(bias.difference)
        covered += bias.interval.low <= expected <= bias.interval.high
    assert np.mean(told) == pytest.approx(expected, abs=0.01)
    assert covered >= 0.93 * 200


def test_selection_bias_weighs_arms_alike_and_one_scene_says_nothing() -> None:
    chosen = [{"Lift-0-0": True, "Lift-1-0": True}, {"Lift-0-0": True}]  # scoring of the second ended early
    shown = [{"Lift-9-0": True, "Lift-8-0": False}, {"Lift-9-0": False, "Lift-8-0": False}]
    bias = selection_bias(chosen, shown)
    assert (bias.chosen_on, bias.reported, bias.difference) == (1.0, 0.25, 0.75)
    assert -1 <= bias.interval.low < 0.75 < bias.interval.high <= 1
    assert tuple(selection_bias([{"a": True}], [{"b": False}]).interval) == (-1, 1)


def differs(best: Won, other: Won) -> bool:
    """Return whether the curve finds a difference of two recipes. best, other: outcomes by seed, (R, E)."""
    first, second = (
        {f"{place}": bool(one) for place, one in enumerate(won.ravel())} for won in (best, other)
    )
    result = paired_comparison(first, second)
    if result.p_value >= 0.05:
        return False
    draws = hierarchical_draws(np.stack([best, other]).astype(float), np.zeros(best.shape[1], int))
    interval = interval_of(draws[:, 0] - draws[:, 1])
    return Claim(len(best)).verdict(result.difference, result.p_value, interval).endswith(("better", "worse"))


@pytest.mark.parametrize(("apart", "low", "high"), [(True, 0.0, 0.05), (False, 0.1, 1.0)])
def test_type_1_error_of_three_seeds_is_kept_by_reporting_other_scenes(
    apart: bool, low: float, high: float
) -> None:
    """The best of ten equally good checkpoints of each of three trainings, against the last ones of three
    trainings of the same recipe.
    """
    rng, runs = np.random.default_rng(1), 150
    found = 0
    for _ in range(runs):
        rows: list[Any] = []
        for _ in range(3):
            select, report = blocks(rng, 10, 50, 0.5)
            rows.append((report if apart else select)[int(select.sum(1).argmax())])
        found += differs(np.array(rows), rng.random((3, 50)) < 0.5)
    assert low <= found / runs <= high
