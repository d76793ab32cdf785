"""How much less does it take to find the best arm when late scores stop the others, and what does the engine
cost beside Ray's own work?

    python -m bench.search                 three minutes
    python -m bench.search --quick         a quarter of the arms

Training and episodes only pretend (`orchestrator.testing`): the arms' true success rates are known, the
engine is the real one. The grid plays every checkpoint of every arm; successive halving stops arms that are
behind. The sweep begins with its largest arms, as it always does, which here are the best; `hostile` is the
other way round: every arm is better than those before it, the worst that can happen to successive halving.
For the engine's cost the peer is Ray Tune alone, with the same trials and nobody listening: CPU seconds of
the driver's process, per arm.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from bench import harness
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.testing.episodes import make_episode_store
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import SuccessRate, success_rate
from orchestrator.testing.players import FakeEvalBackend

DEMOS = (2, 4, 8, 16, 32, 64, 96, 128)
RATIOS = (0, 1, 3)
CHECKPOINTS, EPISODES = 9, 50
ARM_S = 6.0  # that an arm pretends to train


def a_sweep(folder: Path, store: str, name: str, search: Any, demos: tuple[int, ...]) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": name,
            "data": {"episodes": store, "demo_count": demos, "action_free_ratio": RATIOS},
            "train": {"steps": CHECKPOINTS, "batch_size": 2, "checkpoint_every": 1},
            "suite": {"tasks": ["Lift"], "episodes": EPISODES, "horizon": 100},
            "search": search,
            "storage": str(folder / name),
        }
    )


def run(sweep: SweepConfig, arm_s: float, model: SuccessRate = success_rate) -> tuple[int, str, float, float]:
    """Episodes played, the best arm by its final score, seconds on the clock and of the driver's processor
    while arms were trained.
    """
    from orchestrator.sweep import run as engine

    spent: list[float] = []

    def trials(*arguments: Any) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        run_trials(*arguments)
        spent.extend((time.perf_counter() - wall, time.process_time() - cpu))

    run_trials, engine.run_trials = engine.run_trials, trials
    try:
        sweep_run = engine.SweepRun(
            sweep, lambda _: None, fit=FakeTrainer(arm_s / CHECKPOINTS), players=FakeEvalBackend(model)
        )
        sweep_run.run()
    finally:
        engine.run_trials = run_trials
    arms = sweep_run.board.arms.values()
    best = max(
        (arm for arm in arms if arm.steps in arm.scores), key=lambda arm: arm.scores[arm.steps].success_rate
    )
    return sweep_run.spending.total().episodes, best.name, spent[0], spent[1]


def tune_alone(arms: int, arm_s: float) -> tuple[float, float]:
    """The same trials without a sweep: seconds on the clock and of the driver's processor."""
    from ray import tune

    def train(config: dict[str, Any]) -> None:
        for step in range(1, CHECKPOINTS + 1):
            time.sleep(arm_s / CHECKPOINTS)
            tune.report({"step": step, "loss": 1 / step})

    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        tune.Tuner(
            tune.with_resources(train, {"node:__internal_head__": 0.001}),
            param_space={"arm": tune.grid_search(list(range(arms)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=scratch, verbose=0),
        ).fit()
    return time.perf_counter() - wall, time.process_time() - cpu


def upside_down(demos: float, ratio: float, step: int, steps: int) -> float:
    """The truth in which fewer demos are better."""
    return success_rate(max(DEMOS) / demos * min(DEMOS), ratio, step, steps)


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
def main(quick: bool) -> None:
    """Print a table and, last, one line of JSON."""
    from orchestrator.cluster.ray_runtime import connect, quiet

    quiet()
    connect()
    demos, arm_s = (DEMOS[2::3], ARM_S / 2) if quick else (DEMOS, ARM_S)
    arms = len(demos) * len(RATIOS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_episode_store(folder / "store", 4 * max(demos), length=3, size=128)
        alone = tune_alone(arms, arm_s)
        grid = run(a_sweep(folder, store, "grid", "grid", demos), arm_s)
        asha = run(a_sweep(folder, store, "asha", "asha", demos), arm_s)
        hostile_grid = run(a_sweep(folder, store, "hostile-grid", "grid", demos), arm_s / 4, upside_down)
        hostile = run(a_sweep(folder, store, "hostile", "asha", demos), arm_s / 4, upside_down)
    print(
        f"{arms} arms of {CHECKPOINTS} checkpoints, {EPISODES} episodes each; two arms at a time, {arm_s:g} s"
        " of training each\n"
    )
    print(f"{'':<32}{'episodes':>10}{'to grid':>9}{'wall s':>8}  best arm")
    for title, found, of in (
        ("grid", grid, grid),
        ("asha", asha, grid),
        ("hostile: grid", hostile_grid, hostile_grid),
        ("hostile: asha", hostile, hostile_grid),
    ):
        print(f"{title:<32}{found[0]:>10,}{found[0] / of[0]:>9.2f}{found[2]:>8.0f}  {found[1]}")
    overhead = (grid[3] - alone[1]) / arms
    outcomes, ours, theirs = CHECKPOINTS * EPISODES, grid[3] / arms, alone[1] / arms
    print(
        f"\nCPU s of the driver per arm of {outcomes} outcomes: Tune alone {theirs:.3f}, the engine's grid"
        f" {ours:.3f}"
    )
    print(f"beyond Tune's: {overhead / 300:.2%} of an arm that trains for five minutes")
    print(f"wall s: Tune alone {alone[0]:.0f}, the engine's grid {grid[2]:.0f}")
    told = {
        "bench": "search",
        "ratio_to_grid_episodes": round(asha[0] / grid[0], 3),
        "same_best_arm": asha[1] == grid[1],
        "ratio_hostile": round(hostile[0] / hostile_grid[0], 3),
        "same_best_arm_hostile": hostile[1] == hostile_grid[1],
        "engine_cpu_s_per_arm": round(overhead, 3),
        "engine_share_of_five_minutes": round(overhead / 300, 5),
        "ratio_wall_to_tune_alone": round(grid[2] / alone[0], 3),
        "arms": arms,
        "quick": quick,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    harness.run(main)
