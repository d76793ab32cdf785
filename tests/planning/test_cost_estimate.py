"""A plan's cost estimate: a range derived from a calibration, with its uncertainty."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import run

from imported_packages import HEAVY, imported_packages
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.cost import Cost
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.planning.calibration import (
    Calibration,
    Machine,
    Quantiles,
    Timing,
    calibration_key,
    load_calibration,
    save_calibration,
    this_machine,
)
from orchestrator.planning.cost_estimate import estimate, work_of
from orchestrator.planning.microbenchmark import measure
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode

LENGTH = 16


def spread(median: float) -> Quantiles:
    return Quantiles(median / 2, median, 2 * median)


def timed(wall: float, cpu: float) -> Timing:
    return Timing(spread(wall), spread(cpu))


CORES = Machine("a processor", 4, "", 0)
MADE_UP = Calibration(
    machine=CORES,
    measured_at="2026-01-02 03:04",
    process_s=0.0,
    start=timed(0.0, 0.0),
    steps={
        "joint": timed(1.0, 2.0),
        "video": timed(10.0, 20.0),
        "action": timed(4.0, 8.0),
        "action, kept": timed(0.4, 0.8),
    },
    kept_clips=1000,
    answers={"video_action 1": timed(1.0, 1.0), "video_action 2": timed(1.2, 1.6)},
    build=spread(0.0),
    reset=spread(0.0),
    step=spread(0.1),
    look=spread(0.3),
)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Return a store with eight equally long episodes of Lift."""
    storage = open_storage(str(tmp_path / "store"))
    commit(
        storage,
        CONTRACT,
        [put_episode(storage, make_episode(seed, length=LENGTH), 20.0) for seed in range(8)],
    )
    return storage.uri


def sweep(store: str, **sections: object) -> SweepConfig:
    """Return a sweep of two arms of 100 steps with two checkpoints each."""
    whole = {
        "name": "good",
        "data": {"episodes": store, "demo_count": [2, 4]},
        "train": {"steps": 100, "checkpoint_every": 50, "batch_size": 4},
        "suite": {"tasks": ["Lift"], "episodes": 10, "horizon": 40, "settle": 4},
        "storage": f"{store}-runs",
    }
    return SweepConfig.model_validate(whole | sections)


def test_estimate_of_training_is_steps_times_measured_step_time(store: str) -> None:
    told = estimate(sweep(store), MADE_UP)
    assert (told.low.train_cpu_s, told.high.train_cpu_s) == (2 * 100 * 1.0, 2 * 100 * 4.0)
    assert told.high.train_gpu_s == 0
    on_gpu = estimate(sweep(store), replace(MADE_UP, machine=replace(CORES, gpu="a GPU", gpus=1)))
    assert (on_gpu.low.train_gpu_s, on_gpu.high.train_gpu_s) == (2 * 100 * 0.5, 2 * 100 * 2.0)


def test_estimate_of_training_by_time_is_its_budget(store: str) -> None:
    train = {"match": "gpu_seconds", "seconds": 600, "checkpoint_every": 200, "batch_size": 4}
    on_gpu = replace(MADE_UP, machine=replace(CORES, gpu="a GPU", gpus=1))
    told = estimate(sweep(store, train=train), on_gpu)
    assert (told.low.train_gpu_s, told.high.train_gpu_s) == (2 * 600, 2 * 600)
    assert told.low.train_cpu_s == 2 * 600 * 2, "two CPU seconds per second of a step"
    assert told.low.episodes == 2 * 3 * 10


def test_estimate_of_rollouts_lies_between_shortest_demos_and_horizon(store: str) -> None:
    told, execute, rollouts = estimate(sweep(store), MADE_UP), 4, 2 * 2 * 10
    short = LENGTH + 4
    assert (told.low.episodes, told.high.episodes) == (rollouts, rollouts)
    assert (told.low.control_steps, told.high.control_steps) == (rollouts * short, rollouts * 40)
    cameras = len(CONTRACT.cameras)
    assert (told.low.frames, told.high.frames) == (
        rollouts * short // execute * cameras,
        rollouts * 40 // execute * cameras,
    )
    assert told.low.sim_cpu_s == pytest.approx(rollouts * (short * 0.05 + short / execute * 0.15))
    crowd = (2 + 2 + 1) / 4  # arms, simulators and a policy server, on four cores
    assert told.high.sim_cpu_s == pytest.approx(crowd * rollouts * (40 * 0.2 + 40 / execute * 0.6))
    # Two at once take 0.8 CPU seconds each, one alone takes 1.
    assert told.low.infer_cpu_s == pytest.approx(rollouts * short / execute * 0.5 * 0.8)
    assert told.high.infer_cpu_s == pytest.approx(crowd * rollouts * 40 / execute * 2 * 1.0)


def test_estimate_computes_features_once_while_they_fit_the_cache(store: str) -> None:
    two_stage = sweep(
        store,
        data={"episodes": store, "demo_count": [4]},
        train={"steps": 100, "video_steps": 10, "checkpoint_every": 50, "batch_size": 4, "mode": "two_stage"},
    )
    first_epoch = 4 * LENGTH / 4
    stage_one = 10 * 10.0
    assert estimate(two_stage, MADE_UP).low.train_cpu_s == pytest.approx(
        stage_one + first_epoch * 4 + (100 - first_epoch) * 0.4
    )
    half = replace(MADE_UP, kept_clips=4 * LENGTH // 2)
    known = (100 - first_epoch) / 2
    assert estimate(two_stage, half).low.train_cpu_s == pytest.approx(
        stage_one + (100 - known) * 4 + known * 0.4
    )


def test_estimate_reads_each_episode_once_while_they_fit_the_cache(store: str) -> None:
    sizes = {entry.episode_id: entry.nbytes for entry in load_manifest(open_storage(store)).entries}
    told = estimate(sweep(store, data={"episodes": store, "demo_count": [8]}), MADE_UP)
    assert told.high.bytes_read == sum(sizes.values())
    assert told.low.bytes_read == pytest.approx(sum(sizes.values()), rel=0.01)
    brief = estimate(
        sweep(
            store,
            data={"episodes": store, "demo_count": [8]},
            train={"steps": 1, "checkpoint_every": 1, "batch_size": 4},
        ),
        MADE_UP,
    )
    assert 0 < brief.low.bytes_read < brief.high.bytes_read <= sum(sizes.values())


def test_estimate_of_wall_time_counts_concurrent_arms_and_scoring(store: str) -> None:
    told = estimate(sweep(store), MADE_UP)
    assert told.where == "2 arms at once"
    assert told.wall_s
    low, high = told.wall_s
    alone = estimate(sweep(store), replace(MADE_UP, machine=replace(CORES, cores=1)))
    assert alone.where == "1 arm at once"
    assert alone.wall_s
    assert low >= 100 * 0.5, "no sooner than its longest arm"
    assert low >= told.low.cpu_s / 4, "no sooner than all cores can"
    assert alone.wall_s[0] >= told.low.cpu_s
    playing = 40 * (40 * 0.2 + 10 * 0.6 + 10 * 2 * 1.0)
    assert alone.wall_s[1] == pytest.approx(2 * 100 * 2.0 + playing)
    slow_to_start = estimate(sweep(store), replace(MADE_UP, machine=replace(CORES, cores=1), process_s=7.0))
    assert slow_to_start.wall_s
    assert slow_to_start.wall_s[1] == pytest.approx(alone.wall_s[1] + 2 * 7.0)
    assert low < high


def test_estimate_of_a_sweep_too_large_for_the_machine_still_has_a_cost(store: str) -> None:
    large = sweep(store, train={"steps": 100, "checkpoint_every": 50, "batch_size": 8, "workers": 8})
    told = estimate(large, MADE_UP)
    assert told.wall_s is None
    assert "not on this machine: one arm needs 8 workers at once, the cluster has 4 CPUs" in str(told)
    assert told.low.train_cpu_s == 8 * 2 * 100 * 1.0


def test_estimate_with_asha_has_a_lower_low_and_the_same_high(store: str) -> None:
    grid, asha = estimate(sweep(store), MADE_UP), estimate(sweep(store, search="asha"), MADE_UP)
    assert asha.high == grid.high
    assert asha.low.train_cpu_s == (50 + 100) * 1.0, "one arm is trained to its end"
    assert asha.low.episodes == (1 + 2) * 10
    assert "arms stopped as early as the search can, or none" in str(asha)
    assert "stopped" not in str(grid)


def test_estimate_uses_the_step_time_of_each_baseline(store: str) -> None:
    with_baselines = sweep(store, policy={"baselines": ["diffusion_policy"]})
    told = estimate(
        with_baselines, replace(MADE_UP, steps=MADE_UP.steps | {"diffusion_policy": timed(0.1, 0.1)})
    )
    assert told.low.train_cpu_s == pytest.approx(2 * 100 * 1.0 + 2 * 100 * 0.05)


def test_estimate_plays_shifts_with_the_last_checkpoint_only(store: str) -> None:
    shifted = sweep(
        store, suite={"tasks": ["Lift"], "episodes": 10, "horizon": 40, "shifts": ["lighting", "camera"]}
    )
    assert work_of(shifted, load_manifest(open_storage(store))).rollouts == {
        "low": 2 * (2 + 2) * 10,
        "high": 2 * (2 + 2) * 10,
    }
    assert make_plan(shifted).rollouts == 2 * (2 + 2) * 10


def test_estimate_text_has_ranges_money_limits_and_uncertainty(store: str) -> None:
    priced = sweep(
        store, prices={"cpu_hour": 3.6}, budget={"max_episodes": 30, "max_wall": 0.1, "max_gpu_hours": 1}
    )
    told = estimate(priced, MADE_UP)
    lines = dict(re.findall(r"^(\w[\w ]{0,12}?)  +(.*)$", str(told), re.MULTILINE))
    assert lines["to train"] == "0.056 to 0.222 CPU-h"
    assert lines["to simulate"].endswith("; 800 to 1,600 control steps")
    assert (
        lines["money"] == f"{told.low.cpu_s / 1000:.2f} to {told.high.cpu_s / 1000:.2f} at the sweep's prices"
    )
    first, second = told.over_budget()
    assert first == "max_episodes is 30 episodes, the estimate 40: the sweep will stop before its end"
    assert second.startswith("max_wall is 0.1 hours of wall clock, the estimate 0.0")
    assert second.endswith("the sweep may stop before its end")
    assert "measured on 2026-01-02 03:04 UTC on a processor, 4 cores, no GPU" in lines["how sure"]
    assert "between 20 control steps" in lines["how sure"]
    assert "other machines differ" in lines["how sure"]
    assert "money" not in str(estimate(sweep(store), MADE_UP))
    assert not estimate(sweep(store), MADE_UP).over_budget()


def test_calibration_is_reused_exactly_for_sweeps_of_the_same_speed(store: str) -> None:
    here = replace(MADE_UP, machine=this_machine())
    assert load_calibration(sweep(store)) is None
    save_calibration(sweep(store), here)
    assert load_calibration(sweep(store)) == here
    longer = sweep(
        store,
        train={"steps": 900, "checkpoint_every": 90, "batch_size": 4, "learning_rate": 1e-4},
        seeds=[1, 2],
    )
    assert load_calibration(longer) == here
    for changed in (
        {"train": {"steps": 100, "checkpoint_every": 50, "batch_size": 8}},
        {"train": {"steps": 100, "checkpoint_every": 50, "batch_size": 4, "mode": "joint_detached"}},
        {"suite": {"tasks": ["Lift"], "episodes": 10, "horizon": 40, "rung": "faithful"}},
        {"policy": {"preset": "svd-256"}},
        {"rollout_actors": 3},
    ):
        assert load_calibration(sweep(store, **changed)) is None
    assert calibration_key(sweep(store), replace(this_machine(), cpu="another")) != calibration_key(
        sweep(store), this_machine()
    )


def test_plan_command_without_a_calibration_says_how_to_make_one(store: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(sweep(store).to_yaml())
    done = run("-m", "orchestrator", "plan", str(tmp_path / "sweep.yaml"))
    assert done.returncode == 0, done.stderr
    assert f"demoscale plan {tmp_path / 'sweep.yaml'} --calibrate measures it (about a minute)" in done.stdout


@pytest.mark.full
@pytest.mark.sim
def test_measured_calibration_is_used_by_the_next_plan(lift_store: Path, tmp_path: Path) -> None:
    """Measure every part with the sweep's own policy, clips and simulator; the plan command then imports no
    heavy package.
    """
    two_stage = {"steps": 100, "checkpoint_every": 50, "batch_size": 4, "mode": "two_stage"}
    small = sweep(
        str(lift_store),
        train=two_stage,
        data={"episodes": str(lift_store), "demo_count": [2, 4]},
        storage=str(tmp_path / "runs"),
    )
    said: list[str] = []
    measured = measure(small, said.append, part_s=1.0)
    assert said == [
        *(f"training steps: {name}" for name in ("video", "action", "action, kept")),
        *(f"answers: video_action, {rows} at once" for rows in (1, 2)),
        "simulation: Lift",
    ]
    assert set(measured.steps) == {"video", "action", "action, kept"}
    spreads = [
        spread
        for each in (*measured.steps.values(), *measured.answers.values())
        for spread in (each.wall, each.cpu)
    ]
    for each in (*spreads, measured.build, measured.reset, measured.step, measured.look):
        assert 0 < each.low <= each.median <= each.high < 60
    assert measured.steps["action, kept"].cpu.median < measured.steps["action"].cpu.median
    assert measured.kept_clips > 100
    assert Calibration.from_json(json.loads(json.dumps(measured.to_json()))) == measured
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(small.model_dump(mode="json")))
    done = run("-X", "importtime", "-m", "orchestrator", "plan", str(tmp_path / "sweep.yaml"))
    assert done.returncode == 0, done.stderr
    assert str(estimate(small, measured)) in done.stdout
    assert not imported_packages(done) & HEAVY
    assert estimate(small, measured).low != Cost()
