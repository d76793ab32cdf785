"""A sweep that measures action errors on held-out episodes instead of success: resumed, published, shown."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.config.sweep_config import SweepConfig, SweepError, load_suite
from orchestrator.data.action_error import MEASURE
from orchestrator.evaluation.action_error_ledger import ActionErrorLedger
from orchestrator.evaluation.action_error_score import ActionErrorBenchmark, Measured
from orchestrator.planning.plan import make_plan
from orchestrator.report.held_out_curve import HeldOutCurve, read_curve
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.sweep.eval_scheduler import EvalBackend
from orchestrator.sweep.explain import explain
from orchestrator.sweep.ledger_curve import curve_from_ledger
from orchestrator.sweep.republish import republish
from orchestrator.sweep.run import SweepRun, UnfinishedError
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import ArmLine
from orchestrator.testing.episodes import make_episode_store
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import simulated_action_errors
from orchestrator.testing.players import FakeEvalBackend
from orchestrator.tracking.mlflow_writer import TrackingError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_episode_store(tmp_path_factory.mktemp("store"), 24)


def sweep(folder: Path, store: str, **sections: Any) -> SweepConfig:
    everything = {
        "name": folder.name,
        "data": {"episodes": store, "demo_count": [2, 8]},
        "train": {"steps": 6, "batch_size": 2, "checkpoint_every": 3},
        "suite": {"held_out": 0.25, "video_clips": 0},
        "storage": str(folder),
        "mlflow": f"sqlite:///{Path(store).parent / 'mlflow.db'}",
    }
    return SweepConfig.model_validate(everything | sections)


class Measuring:
    """Simulated action errors, counted; can stop the sweep or fail."""

    def __init__(self, parts: int = 10**6, fails: str = "") -> None:
        self.measured: list[tuple[str, str]] = []
        self.parts, self.fails = parts, fails
        self.run: SweepRun | None = None

    def __call__(self, test: ActionErrorBenchmark, source: Any) -> Iterator[tuple[list[Measured], float]]:
        for part, cpu_s in simulated_action_errors(test, source):
            if self.fails:
                part = [
                    Measured(one.episode, None, "the policy is silent")
                    if one.episode.endswith(self.fails)
                    else one
                    for one in part
                ]
            self.measured += [(source.checkpoint.uri, one.episode) for one in part if one.error]
            yield part, cpu_s
            self.parts -= 1
            if self.parts == 0 and self.run:
                self.run.end("stopped")

    def backend(self, *given: Any) -> EvalBackend:
        return replace(FakeEvalBackend()(*given), pool=None, action_errors=self)


def run(asked: SweepConfig, measuring: Measuring | None = None) -> tuple[Any, list[str]]:
    measuring, lines = measuring or Measuring(), list[str]()
    made = SweepRun(asked, lines.append, fit=FakeTrainer(0.001), players=measuring.backend)
    measuring.run = made
    return made.run(), lines


def test_held_out_suite_is_part_of_the_keys_and_of_nothing_else(folder: Path, store: str) -> None:
    state = SweepState.open(sweep(folder, store))
    assert len(state.held_out) == 6
    assert all(not set(state.held_out) & set(state.subset(arm).episodes) for arm in state.arms().values())
    other = SweepState.open(sweep(folder, store, suite={"held_out": 7, "video_clips": 0}))
    played = SweepState.open(
        sweep(folder, store, suite={"tasks": ["Lift"], "episodes": 5, "horizon": 9, "video_clips": 0})
    )
    assert len({one.training for one in (state, other, played)}) == 3
    assert len({one.protocol for one in (state, other, played)}) == 3
    assert state.protocol_key("nominal").kind == "action error"
    assert "held out" not in played.training_key.parts
    assert not {"mujoco", "robosuite"} & state.protocol_key("nominal").parts["packages"].keys()


def test_mistakes_are_refused_in_a_sentence(folder: Path, store: str) -> None:
    with pytest.raises(ValidationError) as refused:
        sweep(
            folder,
            store,
            suite={"held_out": 0.2, "tasks": ["Lift"], "horizon": 5, "shifts": ["lighting"], "gl": "osmesa"},
        )
    assert [error["loc"][-1] for error in refused.value.errors()] == ["tasks", "horizon", "shifts", "gl"]
    assert all(
        "held-out episodes are recordings, of which no simulator plays any; leave out" in error["msg"]
        for error in refused.value.errors()
    )
    with pytest.raises(
        SweepError, match=r"data: the largest arm does not fit. Lift: 20 demos .* 6 more are held"
    ):
        make_plan(sweep(folder, store, data={"episodes": store, "demo_count": [20]}))
    with pytest.raises(SweepError, match=r"suite.held_out asks for 24 episodes, and the store has 24"):
        make_plan(sweep(folder, store, suite={"held_out": 24}))
    file = folder / "sweep.yaml"
    file.write_text("suite: {held_out: 0.2}")
    with pytest.raises(
        SweepError, match="measures the action error on recordings and has no episodes to play"
    ):
        load_suite(file)


def test_plan_counts_held_out_episodes_and_no_rollout(folder: Path, store: str) -> None:
    plan = make_plan(sweep(folder, store))
    assert (plan.rollouts, plan.held_out, plan.held_out_steps) == (0, 6, 72)
    assert "held out       6 episodes of 72 control steps, on which no arm trains" in str(plan)


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_sweep_ends_in_a_curve_of_action_errors(folder: Path, store: str) -> None:
    asked = sweep(folder, store, seeds=[0, 1, 2])
    curve, lines = run(asked)
    assert isinstance(curve, HeldOutCurve)
    state = SweepState.open(asked)
    assert json.loads((folder / f"sweeps/{asked.name}.json").read_text())["held_out"] == list(state.held_out)
    assert sum("action error" in line for line in lines) == 2 * 2 * 3

    made, read = curve_from_ledger(state), read_curve(asked.mlflow, asked.name, state.store)
    assert isinstance(made, HeldOutCurve)
    assert isinstance(read, HeldOutCurve)
    assert made.arms == tuple(replace(arm, run_id="") for arm in read.arms)
    assert made.dimensions == read.dimensions == state.manifest.contract.action
    with pytest.raises(TrackingError, match=f"measures the {MEASURE} and no success"):
        Curve.read(asked.mlflow, asked.name, state.store)

    told = read.to_json()
    assert told["measure"] == MEASURE
    assert told["lower_is_better"]
    assert "success" not in json.dumps({**told, "answer": [], "caption": ""})
    assert [point["demo_count"] for point in told["points"]] == [2, 8]
    assert all(point["low"] < point["action_error"] < point["high"] for point in told["points"])
    assert all(point["band_low"] <= point["low"] for point in told["points"])
    assert told["points"][0]["action_error"] > told["points"][1]["action_error"]
    assert told["comparisons"][0]["verdict"] == "better", "more demos have the lower error on every episode"
    assert told["comparisons"][0]["lower"] == told["comparisons"][0]["episodes"] == 6
    page = read.page()
    assert "action error on held-out episodes" in page
    assert "success rate" not in page.replace("no success rate was measured", "")
    assert read.draw("png").startswith(b"\x89PNG")
    assert b"held-out" in read.draw("svg")

    lines_of_status = [ArmLine.from_json(line.to_json()) for line in state.board().lines()]
    assert all(
        score.to_json()["measure"] == MEASURE for line in lines_of_status for score in line.scores.values()
    )
    assert all("on 6 held-out episodes" in line.last_score for line in lines_of_status)
    assert explain(state, lines_of_status[0].arm).consequence == "nothing: the arm is trained and scored"
    assert republish(state) == 12

    from mlflow import MlflowClient

    client = MlflowClient(asked.mlflow)
    logged = client.get_run(read.arms[0].run_id).data.metrics
    assert {"action_error", "action_error_low", "action_error_high", "action_error_episodes"} <= logged.keys()
    assert not [name for name in logged if "success" in name]


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_stopped_sweep_measures_no_episode_again(folder: Path, store: str) -> None:
    asked, first, second = sweep(folder, store), Measuring(parts=3), Measuring()
    with pytest.raises(KeyboardInterrupt):
        run(asked, first)
    curve, _ = run(asked, second)
    assert first.measured
    assert second.measured
    both = first.measured + second.measured
    assert len(both) == len(set(both)) == 2 * 2 * 6
    whole, _ = run(sweep(folder / "whole", store, name=f"{folder.name}-whole"))
    errors = [[error.error for error in arm.errors] for arm in curve.arms]
    assert errors == [[error.error for error in arm.errors] for arm in whole.arms]


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_episode_that_cannot_be_measured_leaves_no_place_on_the_curve(folder: Path, store: str) -> None:
    asked = sweep(folder, store)
    held_out = SweepState.open(asked).held_out
    with pytest.raises(
        UnfinishedError, match=r"1 held-out episodes could not be measured \(the policy is silent\)"
    ):
        run(asked, Measuring(fails=held_out[0]))
    state = SweepState.open(asked)
    (one, *_) = state.arms()
    checkpoint = state.checkpoints(one)[6].fingerprint
    assert len(ActionErrorLedger(state.storage, checkpoint, state.protocol).read()) == 5
    again = Measuring()
    curve, _ = run(asked, again)
    assert {episode for _, episode in again.measured} == {held_out[0]}
    assert len(curve.arms) == 2
