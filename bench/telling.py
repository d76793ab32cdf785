"""What does publishing to MLflow cost, compared with the training that is published?

    python -m bench.telling                two minutes
    python -m bench.telling --quick

Reports, checkpoints and scores of arms as a sweep makes them, into the database beside the results: the wait
of the thread that reports, and CPU seconds of the thread that publishes. The peer is the optimiser step of
the quickstart's policy.
"""

import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench import harness
from orchestrator.testing.episodes import make_episode_store

ARMS, QUICKSTART_STEPS, QUICKSTART_CHECKPOINTS = 10, 1000, 2


def step_s(store: str, steps: int) -> float:
    """Return the CPU seconds of an optimiser step at the quickstart's size, on one thread, without the first
    quarter of the steps, which loads the model.
    """
    import torch

    from orchestrator.config.arms import Arm
    from orchestrator.config.schema import Train
    from orchestrator.data.episode_store import load_manifest
    from orchestrator.data.subset import select_episodes
    from orchestrator.storage.base import open_storage
    from orchestrator.training.loop import TrainJob, train
    from orchestrator.training.train_events import Reported
    from policy.presets import PRESETS

    torch.set_num_threads(1)
    settings = Train(steps=steps, batch_size=16, checkpoint_every=steps)
    arm = Arm(4, 1.0, 0)
    subset = select_episodes(load_manifest(open_storage(store)), arm)
    job = TrainJob(arm, "bench-telling", store, 1, subset, PRESETS["tiny"], settings, "joint", "none")
    seen: list[tuple[int, float]] = []

    def report(event: Reported, checkpoint: Path | None) -> None:
        seen.append((event.step, time.thread_time()))

    train(job, 0, 1, None, report)
    (first, began), (last, ended) = seen[len(seen) // 4], seen[-2]  # the last one saves
    return (ended - began) / (last - first)


def told(folder: Path, store: str, reports: int) -> tuple[list[float], float, float]:
    """Return the wait of each report in seconds, and the CPU seconds of the publishing thread per report and
    per arm for everything else.
    """
    from orchestrator.config.sweep_config import SweepConfig
    from orchestrator.evaluation.scores import Score
    from orchestrator.provenance import digest
    from orchestrator.sweep.state import SweepState
    from orchestrator.sweep.tracking_publisher import LOSSES, TrackingPublisher
    from orchestrator.tracking import outbox_relay as teller
    from orchestrator.training.loop import CONSUMED
    from sim_workers.rollout.episode import Outcome

    asked = {
        "name": "telling",
        "data": {"episodes": store, "demo_count": list(range(1, ARMS + 1))},
        "train": {
            "steps": QUICKSTART_STEPS,
            "batch_size": 16,
            "checkpoint_every": QUICKSTART_STEPS // QUICKSTART_CHECKPOINTS,
        },
        "suite": {"tasks": ["Lift"], "episodes": 25, "horizon": 100},
        "storage": str(folder),
    }
    spent = {"metrics": 0.0, "else": 0.0}
    tell = teller.OutboxRelay._tell

    def measured(self: Any, reading: Any, note: dict[str, Any], end: int) -> None:
        began = time.thread_time()
        tell(self, reading, note, end)
        spent["metrics" if note["do"] == "metrics" and "checkpoint" not in note else "else"] += (
            time.thread_time() - began
        )

    state = SweepState.open(SweepConfig.model_validate(asked), pin=True)
    views = TrackingPublisher(state)
    assert views.flush(), "MLflow's tables are made and its modules loaded"
    teller.OutboxRelay._tell = measured  # type: ignore[method-assign]
    waits: list[float] = []
    specs = state.sweep.to_suite().episode_list()
    losses = {name: 0.5 for name in (*LOSSES, *CONSUMED)}

    def arm(arm_id: str) -> None:
        for report in range(1, reports + 1):
            began = time.perf_counter()
            views.training(arm_id, report, losses)
            waits.append(time.perf_counter() - began)
            time.sleep(0.05)

    try:
        threads = [threading.Thread(target=arm, args=(arm_id,)) for arm_id in state.arms()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for arm_id in state.arms():
            for step in state.sweep.checkpoint_steps():
                outcomes = [Outcome(spec, "success", 40, 5, 0.4, 0.1, 30, True) for spec in specs]
                views.checkpoint(arm_id, step, digest([arm_id, step]))
                views.score(
                    arm_id,
                    step,
                    digest([arm_id, step]),
                    "nominal",
                    Score.of(outcomes, len(outcomes)),
                    outcomes,
                )
        assert not views.finish(done=True)
    finally:
        teller.OutboxRelay._tell = tell  # type: ignore[method-assign]
    return waits, spent["metrics"] / (reports * ARMS), spent["else"] / ARMS


@harness.command("telling", digits=5)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.training.loop import PROGRESS_REPORTS

    quiet()
    with tempfile.TemporaryDirectory() as name:
        store = make_episode_store(Path(name) / "store", 16, length=3, size=128)
        steps = 8 if quick else 120
        before = step_s(store, steps)
        waits, report, rest = told(Path(name) / "runs", store, PROGRESS_REPORTS)
        step = (before + step_s(store, steps)) / 2  # around what is compared: the machine's speed drifts
    arm = QUICKSTART_STEPS * step
    telling = report * (PROGRESS_REPORTS + QUICKSTART_CHECKPOINTS) + rest
    slow = sorted(waits)[int(0.99 * len(waits))]
    print(f"{'an optimiser step':<44}{1000 * step:>9.1f} ms of CPU")
    print(
        f"{'a report: wait of the caller, median':<44}{1000 * median(waits):>9.3f} ms, 99 % within"
        f" {1000 * slow:.3f}"
    )
    print(f"{'a report: the thread that tells':<44}{1000 * report:>9.1f} ms of CPU")
    print(
        f"{f'{QUICKSTART_CHECKPOINTS} checkpoints and scores: the same thread':<44}{1000 * rest:>9.1f} ms"
        " of CPU"
    )
    print(
        f"\n{ARMS} arms at once; an arm of {QUICKSTART_STEPS} steps trains {arm:.0f} s and is published in"
        f" {telling:.2f} s: {telling / arm:.2%}"
    )
    return {
        "ratio_to_training": telling / arm,
        "report_waits_ms": round(1000 * median(waits), 3),
        "report_cpu_ms": round(1000 * report, 2),
        "step_cpu_ms": round(1000 * step, 1),
        "arms": ARMS,
    }


if __name__ == "__main__":
    harness.run(main)
