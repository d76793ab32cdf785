"""The sweep engine with a fake trainer and fake simulators: real Ray, Tune, control actor, scorer, ledger,
MLflow.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import CHECKOUT

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cli.status_commands import Progress
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.cost import CostLedger
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.sweep.live_status import LiveStatus
from orchestrator.sweep.next_search import Choice
from orchestrator.sweep.run import UnfinishedError
from orchestrator.sweep.state import SweepState
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import FakePolicy, success_rate
from orchestrator.tracking.outbox_relay import OutboxSettings
from sweep_runs import Run, equal_curve, ledger, run_statuses, sweep

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TWO_ARMS = {"demo_count": [1, 8]}
"""Grid of the fewest and the most demonstrations. Every training run takes a process of its own."""


def test_grid_sweep_is_scored_whole_and_its_curve_contains_the_true_rates(folder: Path, store: str) -> None:
    from orchestrator.sweep.republish import republish

    asked = sweep(folder, store, data=TWO_ARMS)
    done = Run(asked)()
    assert set(done.states.values()) == {"scored"}
    assert done.curve
    assert done.curve.points == Curve.read(asked.mlflow, folder.name).points
    assert [point.demo_count for point in done.curve.points] == TWO_ARMS["demo_count"]
    for point in done.curve.points:
        truth = success_rate(point.demo_count, 0, 9, 9)
        assert point.interval.low <= truth <= point.interval.high, "the fake arms' rates are known"
    assert set(run_statuses(done.run.state.sweep).values()) == {"FINISHED"}
    rows = ledger(folder)
    assert len(rows) == len(rows[["checkpoint", "episode"]].drop_duplicates()) == 2 * 3 * 40
    sealed = pd.concat([pd.read_parquet(file) for file in folder.glob("outcomes/*/*.parquet")])
    assert len(sealed) == len(rows)
    # MLflow is rebuilt from the ledger.
    elsewhere = sweep(folder, store, data=TWO_ARMS, mlflow=f"sqlite:///{folder / 'anew.db'}")
    assert republish(SweepState.open(elsewhere)) == 2 * 3
    assert Curve.read(elsewhere.mlflow, folder.name).points == done.curve.points
    assert set(run_statuses(elsewhere).values()) == {"FINISHED"}


@pytest.mark.full
def test_sweep_without_mlflow_finishes_with_its_curve_which_mlflow_gets_later(
    folder: Path, store: str
) -> None:
    """The folder of the database is missing."""
    (folder / "away").write_text("a file where a folder should be")
    asked = sweep(folder, store, data=TWO_ARMS, mlflow=f"sqlite:///{folder / 'away' / 'mlflow.db'}")
    first = Run(asked, outbox=OutboxSettings(patience_s=2.0))()
    assert set(first.states.values()) == {"scored"}
    assert first.curve
    (sentence,) = first.said("records are not told yet")
    assert f"demoscale status {folder.name} --storage {folder} --rebuild" in sentence
    (folder / "away").unlink()
    again = Run(asked)()
    assert again.curve
    assert first.curve.points == again.curve.points == Curve.read(asked.mlflow, folder.name).points
    assert not again.said("not told yet")
    assert len(ledger(folder)) == 2 * 3 * 40, "nothing was played twice"


@pytest.mark.full
def test_asha_sweep_stops_training_and_episodes_of_the_worst_arms(folder: Path, store: str) -> None:
    """The worst arms end at the first rung although their training is long: within seconds, for good, and
    without a point on the curve.
    """
    halving = sweep(
        folder, store, search={"asha": {"reduction": 2}}, train={"steps": 400, "checkpoint_every": 10}
    )
    began = time.monotonic()
    done = Run(halving, FakeTrainer(0.02))()
    stopped = [demos for demos, state in done.states.items() if state == "stopped"]
    assert 8 not in stopped
    assert stopped
    assert done.curve
    assert done.curve == equal_curve(halving), "pruned arms are left out of both"
    assert {point.demo_count for point in done.curve.points} == set(done.states) - set(stopped)
    for demos in stopped:
        arm = next(arm for arm in done.run.board.arms.values() if arm.arm.demo_count == demos)
        assert arm.step < 400, "its training was not stopped"
        assert len(arm.scores) < 40
    rows = ledger(folder)
    assert len(rows) < 4 * 40 * 40
    assert run_statuses(halving) == {
        None: "FINISHED",
        **{demos: "KILLED" if demos in stopped else "FINISHED" for demos in done.states},
    }
    assert done.said("stopped demos-", "it is behind at")
    # Decisions stay: another run resumes no stopped arm and plays nothing.
    again = Run(halving, FakeTrainer(0.02))()
    assert again.states == done.states
    assert len(ledger(folder)) == len(rows)
    assert time.monotonic() - began < 300


def failing(broken: int, marks: Path) -> Callable[..., Any]:
    """Return a trainer that fails for one demo count while the file `broken` exists, dies once for another,
    and notes each attempt.
    """

    def fit(job: Any, folder: str, resources: dict[str, float], desk: Any, attempts: int) -> Any:
        with (marks / f"{job.arm.demo_count}.txt").open("a") as file:
            file.write("x")
        if job.arm.demo_count == broken and (marks / "broken").exists():
            raise RuntimeError("the cable is out")
        if job.arm.demo_count == 4 and not (marks / "killed").exists():
            (marks / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return FakeTrainer(0.001)(job, folder, resources, desk, attempts)

    return fit


@pytest.mark.full
def test_sweep_with_a_failed_arm_finishes_the_others_and_retries_on_request(folder: Path, store: str) -> None:
    (folder / "broken").touch()
    asked, fit = sweep(folder, store), failing(2, folder)

    def attempts() -> dict[int, int]:
        return {demos: len((folder / f"{demos}.txt").read_text()) for demos in (1, 2, 4, 8)}

    with pytest.raises(UnfinishedError, match="demos-2_ratio-0_seed-0: RuntimeError: the cable is out"):
        Run(asked, fit)()
    assert SweepState.named(folder.name, str(folder)).board().lines()[2].state == "failed"
    before = attempts()
    assert before[4] == 2, "a killed trial is restarted"
    assert {demos for demos, status in run_statuses(asked).items() if status == "FAILED"} == {None, 2}
    with pytest.raises(UnfinishedError):  # a permanent failure is not retried without the option
        Run(asked, fit)()
    assert attempts() == before
    (folder / "broken").unlink()
    done = Run(asked, fit, retry_failed=True)()
    assert attempts() == before | {2: before[2] + 1}
    assert set(run_statuses(asked).values()) == {"FINISHED"}
    assert set(done.states.values()) == {"scored"}


@pytest.mark.full
def test_arms_that_share_a_video_model_wait_for_one_run_of_it(folder: Path, store: str) -> None:
    shared = sweep(
        folder,
        store,
        data=TWO_ARMS,
        train={"mode": "two_stage", "videos": "sweep", "video_steps": 6},
        seeds=[0, 1],
    )
    done = Run(shared)()
    assert set(done.states.values()) == {"scored"}
    assert (
        len([folder for folder in (folder / "checkpoints").iterdir() if folder.name.startswith("video-")])
        == 2
    ), "one per seed"
    assert len(done.said("trained the video model of demos-8")) == 2
    costs = {arm_id: arm.cost for arm_id, arm in done.run.state.board().arms.items()}
    own = CostLedger.read(done.run.state.storage, folder.name).by_arm()
    videos = [cost for arm_id, cost in own.items() if arm_id.startswith("video-")]
    assert sum(cost.train_cpu_s for cost in costs.values()) == pytest.approx(
        sum(cost.train_cpu_s for cost in own.values())
    )
    assert all(
        costs[arm].train_cpu_s == pytest.approx(own[arm].train_cpu_s + videos[0].train_cpu_s / 2)
        for arm in costs
    )


@pytest.mark.full
def test_sweep_over_budget_ends_cleanly_and_resumes_with_a_higher_one(folder: Path, store: str) -> None:
    asked = sweep(folder, store, train={"steps": 60, "checkpoint_every": 20})
    tight = Run(
        asked.model_copy(update={"budget": asked.budget.model_copy(update={"max_episodes": 100})}),
        FakeTrainer(0.05),
    )()
    assert "budget.max_episodes is 100 episodes" in tight.run.ending
    played = len(ledger(folder))
    assert 100 <= played < 4 * 3 * 40
    assert "scored" not in {line.state for line in tight.run.board.lines()} or tight.curve
    done = Run(asked, FakeTrainer(0.01))()
    assert set(done.states.values()) == {"scored"}
    rows = ledger(folder)
    assert len(rows) == len(rows[["checkpoint", "episode"]].drop_duplicates()) == 4 * 3 * 40, (
        "nothing was played twice"
    )


@pytest.mark.full
def test_sweep_with_more_steps_continues_and_with_fewer_keeps_its_scores(folder: Path, store: str) -> None:
    def asked(steps: int) -> SweepConfig:
        return sweep(
            folder,
            store,
            data={"demo_count": [2]},
            train={"steps": steps, "checkpoint_every": 20, "schedule": "constant"},
        )

    short = Run(asked(40))()
    long = Run(asked(80))()
    assert long.run.board.arms.keys() == short.run.board.arms.keys()
    (arm,) = long.run.board.arms.values()
    assert (arm.state, [*arm.scores]) == ("scored", [20, 40, 60, 80])
    assert len(ledger(folder)) == 4 * 40, "nothing was played twice"
    for steps, fix in (
        (40, "give the sweep another name"),
        (50, r"set train\.steps to 20, 40, 60, 80 or more"),
    ):
        with pytest.raises(
            SweepError, match=rf"train\.steps: demos-2_ratio-0_seed-0 was trained on to step 80; {fix}"
        ):
            Run(asked(steps))
    again = Run(asked(40).model_copy(update={"name": f"{folder.name}-again"}))()
    (arm,) = again.run.board.arms.values()
    assert (arm.state, [*arm.scores]) == ("scored", [20, 40])
    assert not again.said("trained demos")
    assert len(ledger(folder)) == 4 * 40


@pytest.mark.full
def test_interrupted_sweep_saves_its_state_and_resumes(folder: Path, store: str) -> None:
    asked = sweep(folder, store, data=TWO_ARMS, train={"steps": 200, "checkpoint_every": 50})
    first = Run(asked, FakeTrainer(0.05))

    seen: list[Progress] = []

    def interrupt() -> None:
        live = folder / "live" / f"{folder.name}.json"
        while not live.exists() or not any(arm["step"] for arm in json.loads(live.read_text())["arms"]):
            time.sleep(0.1)
        seen.append(Progress.of(first.run.state))
        first.run.interrupted = True

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        first()
    thread.join()
    assert "scored" not in first.states.values()
    live = seen[0].live
    assert live, "status shows it running"
    told = seen[0].summary()
    assert f"process {os.getpid()}" in told
    assert f"{len(live.training)} training runs, {live.workers} simulators, " in told
    last = LiveStatus.read(first.run.state.storage, folder.name)
    assert last
    assert last.over
    assert last.ending == "stopped"
    assert not Progress.of(first.run.state).live
    assert set(run_statuses(asked).values()) == {"KILLED"}
    assert set(Run(asked, FakeTrainer(0.001))().states.values()) == {"scored"}
    assert set(run_statuses(asked).values()) == {"FINISHED"}


@pytest.mark.full
def test_optuna_sweep_keeps_its_proposals_over_runs(folder: Path, store: str) -> None:
    data = {"demo_count": {"low": 1, "high": 8}, "action_free_ratio": {"low": 0, "high": 1}}
    done = Run(sweep(folder, store, data=data, search={"optuna": {"trials": 3}}))()
    arms = done.run.state.decisions.proposed()
    assert len(arms) == 3
    assert set(done.states.values()) == {"scored"}
    assert (folder / f"{folder.name}-optuna.log").exists()
    more = Run(sweep(folder, store, data=data, search={"optuna": {"trials": 3}}))()
    assert more.run.state.decisions.proposed() == arms
    assert len(ledger(folder)) == 3 * 3 * 40


@pytest.mark.full
def test_next_arm_sweep_resumes_with_its_choices_and_says_why_it_ends(folder: Path, store: str) -> None:
    settings: dict[str, Any] = {
        "seeds": [0, 1],
        "data": {"demo_count": [1, 4, 8]},
        "train": {"checkpoint_every": 9},
        "search": {"next": {"target": "area"}},
    }
    paused = Run(sweep(folder, store, budget={"max_episodes": 100}, **settings))()
    first = paused.run.state.decisions.proposed()
    assert first[:3] == [Arm(1, 0.0, 0), Arm(4, 0.0, 0), Arm(8, 0.0, 0)]
    done = Run(sweep(folder, store, **settings))()
    state = done.run.state
    chosen = [Choice.from_json(told).arm for told in state.decisions.choices()]
    assert state.decisions.proposed() == chosen
    assert chosen[: len(first)] == first
    assert len(chosen) == len(set(chosen)) > 3
    assert {arm.state for arm in done.run.board.arms.values()} == {"scored"}
    assert len(ledger(folder)) == len(chosen) * 40, "no episode is played twice"
    assert done.curve
    assert sorted(scored.arm for scored in done.curve.arms) == sorted(chosen)
    (why,) = state.decisions.ends()
    assert done.said(f"search: {why}")


@pytest.mark.full
def test_two_sweeps_share_a_cluster_and_both_finish(folder: Path, store: str) -> None:
    """Each takes its share while the other runs."""
    import ray

    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    processes = []
    for name in ("a", "b"):
        file = folder / f"{name}.yaml"
        file.write_text(
            sweep(folder / name, store, data=TWO_ARMS, train={"steps": 90, "checkpoint_every": 30}).to_yaml()
        )
        command = [sys.executable, "-m", "orchestrator.testing", str(file), "--step-s", "0.1"]
        processes.append(
            subprocess.Popen(
                command, cwd=CHECKOUT, env=os.environ | address, stdout=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for printed in said:
        assert set(json.loads(printed.splitlines()[-1]).values()) == {"scored"}
        assert "shares the cluster with 1 other sweep" in printed


def test_fake_policy_rates_are_those_of_their_arms(folder: Path, store: str) -> None:
    state = SweepState.open(sweep(folder, store))
    arms = tuple(state.arms().items())
    rates = [FakePolicy(CheckpointRef(state.checkpoint_uri(arm_id, 9)), arms, 9).rate() for arm_id, _ in arms]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == success_rate(8, 0, 9, 9)
