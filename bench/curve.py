"""How long does a curve take from 100,000 logged episodes, and how much of that is reading them?

    python -m bench.curve                  a minute, most of it to log them
    python -m bench.curve --quick          a tenth of the episodes

Made-up outcomes in a local tracking database: 100 arms (5 ratios, 5 demo counts, 4 seeds) of 1,000 episodes. The limit is to read the same
files and do nothing with them.
"""

import json
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from bench import harness
from orchestrator.arms import expand
from orchestrator.stats import wilson

DEMOS, RATIOS, SEEDS = (10, 20, 50, 100, 200), (0.0, 0.5, 1.0, 2.0, 3.0), (0, 1, 2, 3)


def logged(folder: Path, episodes: int) -> str:
    """The tracking store with all of it."""
    from orchestrator.tracking import SCORE_METRICS, SCORED_STEP, Tracker, outcomes_artifact

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = Tracker(uri, "curve", training="t", protocol="p", steps=100, artifacts=str(folder / "artifacts"))
    rng = np.random.default_rng(0)
    hard = rng.standard_normal(episodes)
    for number, arm in enumerate(expand(DEMOS, RATIOS, SEEDS)):
        odds = np.log2(arm.demo_count / 50) + arm.action_free_ratio / 3 + 0.2 * rng.standard_normal() - hard
        won = rng.random(episodes) < 1 / (1 + np.exp(-odds))
        outcomes = {f"Task{i % 24}-{10**6 + i}-{10**6 + i}": bool(own) for i, own in enumerate(won)}
        successes = int(won.sum())
        tracker.arm(f"arm-{number}", arm, {})
        tracker.artifact(f"arm-{number}", outcomes_artifact(100), json.dumps(outcomes).encode())
        values = (successes / episodes, successes, episodes, 0, *wilson(successes, episodes))
        tracker.metrics(f"arm-{number}", 100, dict(zip(SCORE_METRICS, map(float, values), strict=True)) | {SCORED_STEP: 100.0})
    return uri


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
def main(quick: bool) -> None:
    """Print a table and, last, one line of JSON."""
    from orchestrator.cluster import quiet
    from orchestrator.curve import Curve

    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = logged(folder, 100 if quick else 1000)
        began = time.perf_counter()
        for path in (folder / "artifacts").rglob("step_*.json"):
            json.loads(path.read_text())
        only_reading = time.perf_counter() - began
        times = {}
        began = time.perf_counter()
        curve = Curve.read(uri, "curve")
        times["read from MLflow"] = time.perf_counter() - began
        for title, work in {"points, intervals, comparisons": curve.to_json, "picture": lambda: curve.draw("png")}.items():
            began = time.perf_counter()
            work()
            times[title] = time.perf_counter() - began
    episodes, seconds = sum(arm.episodes for arm in curve.arms), sum(times.values())
    print(f"{len(curve.arms)} arms, {episodes:,} episodes, {len(curve.comparisons)} comparisons\n")
    for title, value in {**times, "all": seconds, "only reading the files": only_reading}.items():
        print(f"{title:<34}{value:>8.2f} s")
    told = {
        "bench": "curve",
        "seconds": round(seconds, 2),
        "ratio_to_reading": round(seconds / only_reading, 1),
        "episodes": episodes,
        "quick": quick,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    harness.run(main)
