"""How many episodes does it take to find the best arm if late scores stop the others, and what does the
sweep's driver cost beside Ray Tune's own work?

    python -m experiments.search                 three minutes
    python -m experiments.search --quick         a quarter of the arms

Training and episodes are fake (`orchestrator.testing`): the arms' true success rates are known. The driver is
the real one. The grid plays every checkpoint of every arm; successive halving stops arms that are behind. A
sweep starts with its largest arms, which here are the best. `hostile` is the opposite, the worst case of
successive halving: every arm is better than those before it. The driver's cost is compared with Ray Tune
alone and the same trials: CPU seconds of the driver's process, per arm.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Found:
    """Result and cost of a sweep."""

    episodes: int
    best: str
    """Arm with the best final score."""
    wall_s: float
    """Wall-clock seconds while arms were trained."""
    cpu_s: float
    """CPU seconds of the driver in that time."""


def measure(sweep: SweepConfig, arm_s: float, model: SuccessRate = success_rate) -> Found:
    """Run a sweep whose arms take `arm_s` seconds to train; model: their true success rates."""
    from orchestrator.sweep import run

    engine: Any = run  # its function is replaced by one that measures
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
    return Found(sweep_run.spending.total().episodes, best.name, *spent)


def tune_alone(arms: int, arm_s: float) -> tuple[float, float]:
    """Run the same trials without a sweep; return wall-clock seconds and CPU seconds of the driver."""
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
    """Return the success rate in a world in which fewer demos are better."""
    return success_rate(max(DEMOS) / demos * min(DEMOS), ratio, step, steps)


@harness.command("search", digits=5)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    from orchestrator.cluster.ray_runtime import connect, quiet

    quiet()
    connect()
    demos, arm_s = (DEMOS[1:4:2], ARM_S / 2) if quick else (DEMOS, ARM_S)
    arms = len(demos) * len(RATIOS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_episode_store(folder / "store", 4 * max(demos), length=3, size=128)
        alone = tune_alone(arms, arm_s)
        grid = measure(a_sweep(folder, store, "grid", "grid", demos), arm_s)
        asha = measure(a_sweep(folder, store, "asha", "asha", demos), arm_s)
        hostile_grid = measure(a_sweep(folder, store, "hostile-grid", "grid", demos), arm_s / 4, upside_down)
        hostile = measure(a_sweep(folder, store, "hostile", "asha", demos), arm_s / 4, upside_down)
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
        share = found.episodes / of.episodes
        print(f"{title:<32}{found.episodes:>10,}{share:>9.2f}{found.wall_s:>8.0f}  {found.best}")
    overhead = (grid.cpu_s - alone[1]) / arms
    outcomes, ours, theirs = CHECKPOINTS * EPISODES, grid.cpu_s / arms, alone[1] / arms
    print(
        f"\nCPU s of the driver per arm of {outcomes} outcomes: Tune alone {theirs:.3f}, the engine's grid"
        f" {ours:.3f}"
    )
    print(f"beyond Tune's: {overhead / 300:.2%} of an arm that trains for five minutes")
    print(f"wall s: Tune alone {alone[0]:.0f}, the engine's grid {grid.wall_s:.0f}")
    return {
        "ratio_to_grid_episodes": round(asha.episodes / grid.episodes, 3),
        "same_best_arm": asha.best == grid.best,
        "ratio_hostile": round(hostile.episodes / hostile_grid.episodes, 3),
        "same_best_arm_hostile": hostile.best == hostile_grid.best,
        "engine_cpu_s_per_arm": round(overhead, 3),
        "engine_share_of_five_minutes": round(overhead / 300, 5),
        "ratio_wall_to_tune_alone": round(grid.wall_s / alone[0], 3),
        "arms": arms,
    }


if __name__ == "__main__":
    harness.run(main)
