"""Differences between shifted and nominal scenes, paired by scene."""

from dataclasses import replace

import pytest

from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.shift_differences import shift_differences
from orchestrator.tracking.mlflow_reader import ScoredArm
from sim_workers.rollout.suite import EpisodeSpec
from synthetic_curves import scored, several

SCENES = range(1_000_000, 1_000_020)


def episode(scene: int, shift: str = "nominal", task: str = "libero_10/two-words") -> str:
    return EpisodeSpec(task, scene, scene, shift).episode_id


def arm(seed: int, lost: int, without: int = 0) -> ScoredArm:
    """Return an arm that wins every nominal scene and loses the first `lost` ones under the shift, of which
    the last `without` have no outcome.
    """
    outcomes = {episode(scene): True for scene in SCENES}
    shifted = {
        episode(scene, "camera"): place >= lost for place, scene in enumerate(SCENES[: len(SCENES) - without])
    }
    one = scored(10, 0.0, len(SCENES), len(SCENES), seed)
    return replace(one, outcomes=outcomes, shifted={"camera": shifted})


def test_shift_difference_pairs_the_same_scenes_of_every_seed() -> None:
    (found,) = shift_differences(Curve("c", (arm(0, 12), arm(1, 8, without=5))))
    assert (found.shift, found.demo_count, found.seeds) == ("camera", 10, 2)
    assert (found.successes, found.nominal_successes, found.result.episodes) == (15, 35, 35)
    assert (found.result.only_first, found.result.only_second) == (0, 20)
    assert found.result.difference == pytest.approx(-20 / 35)
    assert found.interval.low < -20 / 35 < found.interval.high
    assert "camera shifted: 15/35, nominal 35/35 on the same scenes: -0.57" in str(found)


def test_shift_difference_with_one_seed_and_no_change_is_no_evidence() -> None:
    (found,) = shift_differences(Curve("c", (arm(0, 0),)))
    assert (found.result.difference, found.result.p_value, found.verdict) == (
        0,
        1,
        "no evidence that the shift changes the success of these trained policies",
    )


def test_curve_without_shifts_has_no_shift_section_and_one_with_them_has() -> None:
    plain = several(1.0, 0.3)
    assert plain.to_json()["shifts"] == []
    assert "Shifted worlds" not in plain.page([])
    half = {
        own.arm: {
            name.replace("Lift-", "Lift-lighting-"): won and place % 2 == 0
            for place, (name, won) in enumerate(own.outcomes.items())
        }
        for own in plain.arms
    }
    curve = replace(
        plain, arms=tuple(replace(own, shifted={"lighting": half[own.arm]}) for own in plain.arms)
    )
    told = curve.to_json()["shifts"]
    assert len(told) == len(curve.points) == told[0]["text"].count("corrected for") * 8
    assert all(row["difference"] < 0 for row in told)
    assert "worse" in {row["verdict"] for row in told}
    assert "Shifted worlds" in curve.page([])
