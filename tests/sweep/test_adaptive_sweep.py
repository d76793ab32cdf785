"""Sequentially decided scores in whole sweeps: real Ray, Tune, scorer, ledger and MLflow, fake trainer and
simulators.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planning.plan import make_plan
from orchestrator.stats.fixed_sample import blaker
from orchestrator.sweep.state import SweepState
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.tracking.mlflow_reader import read_sweep
from orchestrator.tracking.mlflow_writer import client
from sweep_runs import Run, equal_curve, ledger, sweep

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.full
def test_sweep_with_a_threshold_ends_scores_early_and_without_it_plays_the_rest(
    folder: Path, store: str
) -> None:
    """The arms' true rates are 0.02 to 0.11. MLflow keeps the scores of the two rules apart, each with its
    own curve.
    """
    suite = {"tasks": ["Lift"], "episodes": 40, "horizon": 50, "decide": {"threshold": 0.5, "look_every": 5}}
    decided = sweep(folder, store, suite=suite)
    assert "at most 480, at most" in str(make_plan(decided))
    done = Run(decided)()
    first = ledger(folder)
    scores = {
        (arm.name, step): score for arm in done.run.board.arms.values() for step, score in arm.scores.items()
    }
    assert len(scores) == 4 * 3
    assert all(score.decided == f"below 0.5 after {score.episodes} of 40 listed" for score in scores.values())
    assert len(first) == sum(score.episodes for score in scores.values()) < 4 * 3 * 40
    assert not list(folder.glob("outcomes/*/*.parquet")), "no list is whole"
    curve = equal_curve(decided)
    assert done.curve == curve
    assert all(arm.early and arm.episodes < 40 for arm in curve.arms)
    assert curve.looked_at
    # Another process reads the same from the storage, and another run plays nothing.
    assert SweepState.open(decided).board().lines() == done.run.board.lines()
    Run(decided)()
    assert len(ledger(folder)) == len(first)
    mlflow = client(decided.mlflow)
    runs = mlflow.search_runs(
        [mlflow.get_experiment_by_name("demoscale").experiment_id],
        f"tags.`demoscale.sweep` = '{folder.name}'",
    )
    arm = next(run for run in runs if "success_low" in run.data.metrics)
    assert json.loads(arm.data.tags["demoscale.decide"])["threshold"] == 0.5
    assert arm.data.metrics["decided_early"] == 1
    assert (
        arm.data.metrics["success_high"]
        > blaker(int(arm.data.metrics["successes"]), int(arm.data.metrics["episodes"]))[1]
    )
    assert {arm.arm.name: arm.episodes for arm in read_sweep(decided.mlflow, folder.name).arms} == {
        name: score.episodes for (name, step), score in scores.items() if step == 9
    }
    # Without the rule: only what is missing is played, and the whole lists have runs of their own.
    whole = Run(sweep(folder, store))()
    rows = ledger(folder)
    assert len(rows) == len(rows[["checkpoint", "episode"]].drop_duplicates()) == 4 * 3 * 40
    assert whole.said("already trained, not trained again")
    assert {arm.episodes for arm in read_sweep(decided.mlflow, folder.name).arms} == {40}


@pytest.mark.full
def test_sweep_decided_against_an_arm_trains_and_scores_it_first(folder: Path, store: str) -> None:
    """The other arm's trainer waits until the reference is scored, so that the wrong order would never
    end.
    """

    def fit(job: Any, place: str, resources: dict[str, float], desk: Any, attempts: int) -> Any:
        deadline = time.monotonic() + 180
        while job.arm.demo_count == 16 and len(list(folder.glob("outcomes/*/*.parquet"))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return FakeTrainer(0.01)(job, place, resources, desk, attempts)

    suite = {
        "tasks": ["Lift"],
        "episodes": 60,
        "horizon": 50,
        "decide": {"against": "demos-1", "look_every": 5},
    }
    done = Run(sweep(folder, store, data={"demo_count": [1, 16]}, suite=suite), fit)()
    small, large = (
        next(arm for arm in done.run.board.arms.values() if arm.arm.demo_count == demos) for demos in (1, 16)
    )
    assert all(score.episodes == 60 and not score.rule for score in small.scores.values())
    assert all(
        score.decided.startswith("succeeds more often than demos-1_ratio-0_seed-0 after")
        for score in large.scores.values()
    )
    assert (
        len(ledger(folder))
        == sum(score.episodes for arm in (small, large) for score in arm.scores.values())
        < 2 * 3 * 60
    )
