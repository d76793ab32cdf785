"""`suite.select`: searches decide on scenes of their own, and the curve shows others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.config.schema import SuiteConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.planning.plan import make_plan
from orchestrator.report.sample_efficiency_curve import Curve, curve_from_mlflow
from orchestrator.stats.fixed_sample import blaker, paired_comparison
from orchestrator.sweep.arm_search import ArmPruner
from orchestrator.sweep.ledger_curve import curve_from_ledger
from orchestrator.sweep.run import SweepRun
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import ArmLine
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import make_outcome
from orchestrator.testing.players import FakeEvalBackend
from orchestrator.testing.rollout_pool import FakeRolloutPool
from orchestrator.tracking.mlflow_writer import TrackingError, client
from sim_workers.envs.libero import INIT_STATES
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import FIRST_EVALUATION_SEED
from sim_workers.rollout.worker import RolloutJob

REPORTED, SELECTED = 10, 4


def sweep(folder: Path, store: str, **suite: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": folder.name,
            "data": {"episodes": store, "demo_count": [1, 2]},
            "train": {"steps": 6, "batch_size": 2, "checkpoint_every": 3},
            "suite": {"tasks": ["Lift"], "episodes": REPORTED, "horizon": 50, "select": SELECTED, **suite},
            "search": {"asha": {}},
            "storage": str(folder),
            "mlflow": f"sqlite:///{folder / 'mlflow.db'}",
        }
    )


def of_select(job: RolloutJob) -> bool:
    return job.spec.scene_seed >= 2 * FIRST_EVALUATION_SEED


def won_where_selected(job: RolloutJob) -> Outcome:
    """Return a success on the scenes of `select`, for the last checkpoint on all but one of them, and a failure
    elsewhere.
    """
    first = 2 * FIRST_EVALUATION_SEED + INIT_STATES - SELECTED
    lost = job.spec.scene_seed == first and "after 6 steps" in job.checkpoint
    return make_outcome(job.spec, of_select(job) and not lost)


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_searches_see_selecting_scenes_and_the_curve_others(
    folder: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    merits, stops = list[float](), ArmPruner.stops

    def noted(self: ArmPruner, arm_id: str, step: int, merit: float) -> bool:
        merits.append(merit)
        return stops(self, arm_id, step, merit)

    monkeypatch.setattr(ArmPruner, "stops", noted)
    asked, pool = sweep(folder, store), FakeRolloutPool(won_where_selected)
    players = lambda *given: replace(FakeEvalBackend()(*given), pool=pool)  # noqa: E731
    curve = SweepRun(asked, lambda line: None, fit=FakeTrainer(), players=players).run()
    assert isinstance(curve, Curve)
    assert len(merits) == 4
    assert set(merits) == {blaker(won, SELECTED).low for won in (SELECTED, SELECTED - 1)}, "of `select` alone"
    assert sum(map(of_select, pool.played)) == 2 * 2 * SELECTED, "every checkpoint"
    assert len(pool.played) == 2 * 2 * SELECTED + 2 * REPORTED, "and the last ones of two arms"
    assert [(one.successes, one.episodes) for one in curve.arms] == [(0, REPORTED)] * 2
    state = SweepState.open(asked)
    read = curve_from_mlflow(asked.mlflow, asked.name, state.store)
    assert read.tags["demoscale.claim"].startswith("trained policies")
    assert curve_from_ledger(state) == replace(read, arms=curve.arms, tags=curve.tags) == curve
    assert read.protocol == state.comparable
    for arm in state.board().arms.values():
        assert arm.state == "scored"
        assert {step: score.episodes for step, score in arm.scores.items()} == {3: SELECTED, 6: SELECTED}
        line = ArmLine.of(arm)
        assert line.last_score.startswith(f"0/{REPORTED} = ")
        assert ArmLine.from_json(line.to_json()) == line
    mlflow, run_id = client(asked.mlflow), read.arms[0].run_id

    def steps_of(metric: str) -> list[int]:
        return sorted(one.step for one in mlflow.get_metric_history(run_id, metric))

    assert steps_of("success_rate_select") == [3, 6]
    assert steps_of("success_rate") == steps_of("scored_step") == [6]
    pool.played.clear()
    with pytest.raises(TrackingError, match=r"2 of 2 arms .* `--set suite.report=best` plays them"):
        curve_from_mlflow(asked.mlflow, asked.name, state.store, checkpoint="best")
    asked = sweep(folder, store, report="best")
    again = SweepRun(asked, lambda line: None, fit=FakeTrainer(), players=players).run()
    assert isinstance(again, Curve)
    assert [(arm.arm, arm.step, arm.outcomes) for arm in again.arms] == [
        (arm.arm, arm.step, arm.outcomes) for arm in curve.arms
    ]
    assert len(pool.played) == 2 * REPORTED, "nothing but the best checkpoints on the reported scenes"
    assert all("after 3 steps" in job.checkpoint and not of_select(job) for job in pool.played)
    best = curve_from_mlflow(asked.mlflow, asked.name, state.store, checkpoint="best")
    assert [(arm.step, arm.successes, arm.episodes) for arm in best.arms] == [(3, 0, REPORTED)] * 2
    assert [(sum(arm.chosen_on.values()), len(arm.chosen_on)) for arm in best.arms] == [(4, 4)] * 2
    (flattered, *_) = best.answer()
    assert "succeed in 1.00, on the others in 0.00" in flattered
    assert "flatter them by +1.00" in flattered
    assert "the best checkpoint scored" in best.to_json()["caption"]
    last = curve_from_mlflow(asked.mlflow, asked.name, state.store)
    assert [(arm.step, arm.outcomes) for arm in last.arms] == [(arm.step, arm.outcomes) for arm in read.arms]
    assert {arm.state for arm in SweepState.open(asked).board().arms.values()} == {"scored"}


def test_sweep_with_select_keeps_the_keys_of_its_reported_scores(folder: Path, store: str) -> None:
    plain, asked = (SweepState.open(sweep(folder, store, select=number)) for number in (None, SELECTED))
    assert plain.comparable == asked.comparable
    assert plain.protocol_of("nominal") == asked.protocol_of("nominal") != asked.protocol_of("select")
    assert plain.decisions.prefix != asked.decisions.prefix
    decided = SweepState.open(sweep(folder, store, decide={"threshold": 0.5}))
    assert decided.comparable == plain.comparable, (
        "the rule ends the scores that decide, not the reported ones"
    )
    assert make_plan(plain.sweep).rollouts == 4 * REPORTED
    plan = make_plan(asked.sweep)
    assert plan.rollouts == 4 * SELECTED + 2 * REPORTED
    best = SweepState.open(sweep(folder, store, report="best"))
    assert (best.comparable, best.decisions.prefix) == (asked.comparable, asked.decisions.prefix)
    assert make_plan(best.sweep).rollouts == plan.rollouts + 2 * REPORTED, "at most"
    assert plan.control_steps == plan.rollouts * 50


@pytest.mark.parametrize(("episodes", "select"), [(30, 20), (50, 50), (10, 120)])
def test_selecting_scenes_are_others_than_the_reported_ones(episodes: int, select: int) -> None:
    suite = SuiteConfig.model_validate(
        {"tasks": ["Lift"], "episodes": episodes, "horizon": 50, "select": select}
    )
    selecting, reported = (
        {spec.scene_seed for spec in one.episode_list()}
        for one in (suite.to_select_suite(), suite.to_suite(suite.tasks))
    )
    assert (len(selecting), len(reported)) == (select, episodes)
    assert not selecting & reported
    libero = suite.model_copy(update={"tasks": ("libero_10/KITCHEN_SCENE3",)})
    assert libero.tasks
    if episodes + select <= INIT_STATES:
        assert not {seed % INIT_STATES for seed in selecting} & {seed % INIT_STATES for seed in reported}


def test_select_of_more_scenes_than_libero_has_is_refused() -> None:
    from sim_workers.envs.libero import LIBERO

    suite: dict[str, Any] = {"tasks": [next(iter(LIBERO))], "episodes": 40, "horizon": 50}
    assert SuiteConfig.model_validate(suite | {"select": 10}).select_problems() == []
    (why,) = SuiteConfig.model_validate(suite | {"select": 11}).select_problems()
    assert why.endswith("has 50 scenes; 40 episodes and 11 to select would share some; lower one of them")
    with pytest.raises(ValidationError, match="select"):
        SuiteConfig.model_validate({"held_out": 0.2, "select": 4})
    with pytest.raises(ValidationError, match=r"set suite.select, such as 20"):
        SuiteConfig.model_validate(suite | {"report": "best"})


def test_best_of_equal_checkpoints_is_better_only_on_the_scenes_that_chose_it() -> None:
    """Ten checkpoints and a reference with the same success rate; the best of the ten is compared."""
    rng = np.random.default_rng(0)

    def found(report: Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> float:
        better = 0
        for _ in range(400):
            chosen_on, other = rng.random((2, 11, 50)) < 0.5
            best = 1 + int(chosen_on[1:].sum(1).argmax())
            shown = report(chosen_on, other)
            first, second = ({f"{i}": won for i, won in enumerate(shown[row].tolist())} for row in (best, 0))
            result = paired_comparison(first, second)
            better += result.p_value <= 0.05
        return better / 400

    assert found(lambda chosen_on, other: chosen_on) > 0.1
    assert found(lambda chosen_on, other: other) <= 0.05
