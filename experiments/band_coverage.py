"""How often does the band of three seeds hold the success rate of its recipe, measured on real trainings?

    python -m experiments.band_coverage             10 seeds of one arm on Lift, about 20 minutes of one core
    python -m experiments.band_coverage --seeds 20  more seeds; those that are finished are kept
    python -m experiments.band_coverage --quick     four seeds that learn nothing, as a test
    python -m experiments.band_coverage --folder PLACE   keep the demonstrations and outcomes elsewhere

The arm trains an action head on the shipped video model from 20 demonstrations of Lift, which each seed draws
from 40. The policy of every seed plays the same 50 scenes. Outcomes are kept at once, so that a stopped run
goes on with the next seed.

Of these outcomes three seeds and 25 scenes are drawn, again and again, and their point on a curve is compared
with the mean of all other seeds on all other scenes. That mean is not the recipe's rate: its own error counts
against the intervals, so the coverage found is a lower bound.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from bench import harness
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.stats.fixed_sample import Interval, blaker
from orchestrator.tracking.mlflow_reader import ScoredArm
from sim_workers.rollout.suite import EpisodeRules, Suite

if TYPE_CHECKING:
    from sim_workers.envs.robosuite import SimEnv

SHOWN_SEEDS, SHOWN_SCENES, DRAWS = 3, 25, 400


@dataclass(frozen=True)
class Size:
    """Size of the experiment."""

    demos: int
    recorded: int
    steps: int
    scenes: int
    horizon: int
    seeds: int


WHOLE = Size(demos=20, recorded=40, steps=400, scenes=50, horizon=100, seeds=10)
QUICK = Size(demos=1, recorded=2, steps=2, scenes=4, horizon=10, seeds=4)


def outcomes_of(seed: int, size: Size, folder: Path) -> dict[str, bool]:
    """Return the outcomes of a seed's policy by episode id; train and play it if they are not kept yet."""
    kept = folder / f"seed-{seed}.json"
    if not kept.exists():
        found = played(trained(seed, size, folder), size)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False) as part:
            json.dump(found, part)
        Path(part.name).replace(kept)
    told: dict[str, bool] = json.loads(kept.read_text())
    return told


def trained(seed: int, size: Size, folder: Path) -> Path:
    """Train the action head in this process, with one thread; return the folder of the checkpoint."""
    import torch

    from orchestrator.data.episode_store import load_manifest
    from orchestrator.data.subset import select_episodes
    from orchestrator.storage.base import open_storage
    from orchestrator.training.loop import TrainJob, train
    from orchestrator.training.train_events import Reported
    from policy.presets import PRESETS

    torch.set_num_threads(1)
    store = recorded(size, folder)
    manifest = load_manifest(open_storage(store))
    arm = Arm(size.demos, 0.0, seed)
    settings = Train(mode="action_only", steps=size.steps, batch_size=16, checkpoint_every=size.steps)
    job = TrainJob(
        arm=arm,
        arm_id=arm.name,
        episodes=store,
        version=1,
        subset=select_episodes(manifest, arm),
        config=PRESETS["tiny"],
        train=settings,
        objective=settings.objective,
        weights="",
    )
    kept = folder / f"checkpoint-{seed}"

    def keep(event: Reported, checkpoint: Path | None) -> None:
        if checkpoint:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(checkpoint, kept)

    train(job, 0, 1, None, keep)
    return kept


def recorded(size: Size, folder: Path) -> str:
    """Return the store of demonstrations of Lift; record it if there is none."""
    from orchestrator.data.collect_demos import missing, record
    from orchestrator.data.episode_store import commit
    from orchestrator.storage.base import open_storage
    from sim_workers.demos.recorder import Demonstration

    storage = open_storage(str(folder / "lift"))
    wanted = [Demonstration("Lift", seed, disturbance=0.3) for seed in range(size.recorded)]
    if lacking := missing(storage, wanted):
        env = _simulator()
        commit(storage, env.contract, [record(env, storage, one) for one in lacking])
        env.close()
    return str(folder / "lift")


def played(checkpoint: Path, size: Size) -> dict[str, bool]:
    """Play all scenes with a checkpoint's policy."""
    from policy.inference import TrainedPolicy
    from sim_workers.rollout.episode import run_episode
    from sim_workers.rollout.policy_clients import UnbatchedClient

    suite, policy, env = _suite(size), UnbatchedClient(TrainedPolicy(checkpoint)), _simulator()
    outcomes = [run_episode(env, spec, suite.rules, policy.act) for spec in sorted(suite.episode_list())]
    env.close()
    return {outcome.spec.episode_id: outcome.result == "success" for outcome in outcomes}


def _suite(size: Size) -> Suite:
    return Suite(("Lift",), size.scenes, EpisodeRules(size.horizon))


def _simulator() -> "SimEnv":
    from sim_workers.envs.robosuite import SimEnv, contract

    return SimEnv("Lift", contract(("robot0_eye_in_hand",), (64, 64), "fast"))


@dataclass(frozen=True)
class Coverage:
    """Share of the draws whose interval holds the mean of the others, and its mean width."""

    bands: float
    pooled: float
    """Of the exact interval of the pooled episodes, which holds no spread between trainings."""
    width_of_bands: float
    width_of_pooled: float


def coverage(outcomes: Mapping[int, Mapping[str, bool]], shown_scenes: int) -> Coverage:
    """Return the coverage of the intervals of SHOWN_SEEDS seeds on `shown_scenes` scenes. outcomes: by seed
    and episode id.
    """
    rng, scenes, seeds = np.random.default_rng(0), sorted(next(iter(outcomes.values()))), sorted(outcomes)
    won = np.array([[outcomes[seed][scene] for scene in scenes] for seed in seeds])
    held, widths = [], []
    for _ in range(DRAWS):
        of_seeds, of_scenes = rng.permutation(len(seeds)), rng.permutation(len(scenes))
        mine, shown = of_seeds[:SHOWN_SEEDS], of_scenes[:shown_scenes]
        truth = won[np.ix_(of_seeds[SHOWN_SEEDS:], of_scenes[shown_scenes:])].mean()
        arms = [_scored(number, won[seed][shown]) for number, seed in enumerate(mine)]
        (point,) = Curve("coverage", tuple(arms)).points
        assert point.band
        both = point.band, blaker(point.successes, point.episodes)
        held.append([_holds(interval, float(truth)) for interval in both])
        widths.append([interval.width for interval in both])
    (bands, pooled), (wide, narrow) = np.mean(held, axis=0), np.mean(widths, axis=0)
    return Coverage(float(bands), float(pooled), float(wide), float(narrow))


def _scored(seed: int, won: NDArray[np.bool_]) -> ScoredArm:
    results = {f"Lift-{scene}-0": bool(one) for scene, one in enumerate(won)}
    return ScoredArm(Arm(1, 0.0, seed), "coverage", 1, int(won.sum()), len(won), 0, results)


def _holds(interval: Interval, rate: float) -> bool:
    return interval.low <= rate <= interval.high


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
@click.option("--seeds", type=click.IntRange(5), help="Number of trainings; 10 by default.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("data/band_coverage"),
    show_default=True,
    help="Where demonstrations, checkpoints and outcomes are kept.",
)
def main(quick: bool, seeds: int | None, folder: Path) -> None:
    """Print every seed's rate, the coverage and, last, one line of JSON."""
    if quick:
        with tempfile.TemporaryDirectory() as name:
            return measure(QUICK, Path(name), quick)
    return measure(replace(WHOLE, seeds=seeds or WHOLE.seeds), folder, quick)


def measure(size: Size, folder: Path, quick: bool) -> None:
    """Train and play what is not kept yet, and print what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = dict[int, dict[str, bool]]()
    print(f"{size.demos} demonstrations of Lift, {size.steps} steps, {size.scenes} scenes\n")
    for seed in range(size.seeds):
        outcomes[seed] = outcomes_of(seed, size, folder)
        print(f"seed {seed:<4}{sum(outcomes[seed].values()):>4}/{size.scenes}", flush=True)
    rates = np.array([np.mean([*won.values()]) for won in outcomes.values()])
    counted = float(np.sqrt(np.mean(rates * (1 - rates)) / size.scenes))
    found = coverage(outcomes, min(SHOWN_SCENES, size.scenes // 2))
    print(f"\nmean {rates.mean():.2f}, standard deviation between seeds {rates.std(ddof=1):.3f}")
    print(f"of which counting {size.scenes} episodes makes at most {counted:.3f}\n")
    print(f"{'interval of three seeds':<40}{'coverage':>9}{'width':>8}")
    print(f"{'band, with the spread between seeds':<40}{found.bands:>9.3f}{found.width_of_bands:>8.2f}")
    print(f"{'exact, of the pooled episodes':<40}{found.pooled:>9.3f}{found.width_of_pooled:>8.2f}")
    answer = {
        "seeds": size.seeds,
        "coverage_of_bands": found.bands,
        "coverage_of_pooled": found.pooled,
        "width_of_bands": found.width_of_bands,
        "width_of_pooled": found.width_of_pooled,
        "mean": float(rates.mean()),
        "sd_between_seeds": float(rates.std(ddof=1)),
    }
    harness.print_answer("band_coverage", answer, quick)


if __name__ == "__main__":
    harness.run(main)
