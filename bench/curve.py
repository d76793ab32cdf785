"""How long does a curve take from 100,000 logged episodes, and how much of that is reading them?

    python -m bench.curve                  a minute, most of it to log them
    python -m bench.curve --quick          20 arms and a twentieth of the episodes

Simulated outcomes in a local tracking database: 100 arms (5 ratios, 5 demo counts, 4 seeds), 1,000 episodes
each. The limit is reading the same files only. Both are measured by turns; the ratio is one of CPU times.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from bench import harness
from orchestrator.config.arms import Arm, expand_grid
from orchestrator.stats.fixed_sample import blaker

ARMS = expand_grid((10, 20, 50, 100, 200), (0.0, 0.5, 1.0, 2.0, 3.0), (0, 1, 2, 3))
QUICK_ARMS = expand_grid((10, 20, 50, 100, 200), (0.0, 1.0), (0, 1))

READING = "only reading the files"
ROUNDS, READINGS = 5, 20


def timed(work: Callable[[], object], times: int = 1) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds of one call, the mean of `times` calls."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return (time.perf_counter() - wall) / times, (time.process_time() - cpu) / times


def logged(folder: Path, arms: Sequence[Arm], episodes: int) -> str:
    """Write the arms to a tracking database; return its URI."""
    from orchestrator.tracking.mlflow_writer import (
        SCORE_METRICS,
        SCORED_STEP,
        MlflowWriter,
        outcomes_artifact,
    )

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = MlflowWriter(
        uri, "curve", training="t", protocol="p", steps=100, artifacts=str(folder / "artifacts")
    )
    rng = np.random.default_rng(0)
    hard = rng.standard_normal(episodes)
    for number, arm in enumerate(arms):
        odds = np.log2(arm.demo_count / 50) + arm.action_free_ratio / 3 + 0.2 * rng.standard_normal() - hard
        won = rng.random(episodes) < 1 / (1 + np.exp(-odds))
        outcomes = {f"Task{i % 24}-{10**6 + i}-{10**6 + i}": bool(own) for i, own in enumerate(won)}
        successes = int(won.sum())
        tracker.arm(f"arm-{number}", arm, {})
        tracker.artifact(f"arm-{number}", outcomes_artifact(100), json.dumps(outcomes).encode())
        values = (successes / episodes, successes, episodes, 0, *blaker(successes, episodes))
        tracker.metrics(
            f"arm-{number}",
            100,
            dict(zip(SCORE_METRICS, map(float, values), strict=True)) | {SCORED_STEP: 100.0},
        )
    return uri


@harness.command("curve")
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.report.sample_efficiency_curve import Curve

    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = logged(folder, QUICK_ARMS, 250) if quick else logged(folder, ARMS, 1000)
        curve = Curve.read(uri, "curve")  # modules are loaded, files are in the kernel's cache
        curve.draw("png")

        def reading() -> None:
            for path in (folder / "artifacts").rglob("step_*.json"):
                json.loads(path.read_text())

        def read() -> None:
            nonlocal curve
            curve = Curve.read(uri, "curve")

        parts = {
            READING: lambda: timed(reading, READINGS),
            "read from MLflow": lambda: timed(read),
            "points, intervals, comparisons": lambda: timed(lambda: curve.to_json()),
            "picture": lambda: timed(lambda: curve.draw("png")),
        }
        costs = harness.interleaved(parts, ROUNDS)
    times = {name: median(wall for wall, _ in rounds) for name, rounds in costs.items() if name != READING}
    only_reading = median(wall for wall, _ in costs[READING])
    cpu_of_curve = [sum(costs[name][number][1] for name in times) for number in range(ROUNDS)]
    episodes, seconds = sum(arm.episodes for arm in curve.arms), sum(times.values())
    print(f"{len(curve.arms)} arms, {episodes:,} episodes, {len(curve.comparisons)} comparisons\n")
    for title, value in {**times, "all": seconds, READING: only_reading}.items():
        print(f"{title:<34}{value:>8.2f} s")
    return {
        "seconds": round(seconds, 2),
        "ratio_to_reading": round(harness.median_ratio(cpu_of_curve, [cpu for _, cpu in costs[READING]]), 1),
        "episodes": episodes,
    }


if __name__ == "__main__":
    harness.run(main)
