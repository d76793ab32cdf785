"""A sweep whose arms only report metrics, so that the contents of MLflow are known to the last one.

    python tests/helpers/reporting_sweep.py sweep.yaml STEPS PAUSE_S

All arms report at once, from threads, through one TrackingPublisher; the last line is a JSON string about
undelivered records, empty if there are none.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.evaluation.scores import Score
from orchestrator.provenance import digest
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import LOSSES, TrackingPublisher
from orchestrator.tracking.mlflow_writer import (
    ARM,
    CHECKPOINT,
    EXPERIMENT,
    SCORE_METRICS,
    SCORED_STEP,
    SWEEP,
    client,
    tagged,
)
from orchestrator.tracking.outbox_relay import DEFAULT_OUTBOX, OutboxSettings
from orchestrator.training.loop import CONSUMED
from sim_workers.rollout.episode import Outcome

EPISODES = 4
SCORED = (*SCORE_METRICS, "success_once_rate", "success_at_end_rate", "decided_early", SCORED_STEP)


def make_sweep(folder: Path, store: str, mlflow: str, name: str = "reports", arms: int = 10) -> SweepConfig:
    """Return a sweep of ten arms, in pairs of replicates, unless another number is given."""
    return SweepConfig.model_validate(
        {
            "name": name,
            "seeds": [0, 1],
            "data": {"episodes": store, "demo_count": list(range(1, arms // 2 + 1))},
            "train": {"steps": 100, "batch_size": 2, "checkpoint_every": 100},
            "suite": {"tasks": ["Lift"], "episodes": EPISODES, "horizon": 50},
            "storage": str(folder),
            "mlflow": mlflow,
        }
    )


def fingerprint(arm_id: str, step: int) -> str:
    return digest([arm_id, step])


def report(views: TrackingPublisher, state: SweepState, steps: int, pause_s: float = 0.0) -> None:
    """Report every arm at once: losses at every step, a checkpoint and its score at every second one."""

    specs = state.sweep.to_suite().episode_list()

    def arm(arm_id: str) -> None:
        for step in range(1, steps + 1):
            views.training(
                arm_id, step, {name: step + index / 10 for index, name in enumerate((*LOSSES, *CONSUMED))}
            )
            if step % 2 == 0:
                views.checkpoint(arm_id, step, fingerprint(arm_id, step))
                played = [
                    Outcome(spec, "success" if i < 2 else "failure", 9, 1, 0.1, 0.1)
                    for i, spec in enumerate(specs)
                ]
                views.score(
                    arm_id, step, fingerprint(arm_id, step), "nominal", Score.of(played, EPISODES), played
                )
            time.sleep(pause_s)

    threads = [threading.Thread(target=arm, args=(arm_id,)) for arm_id in state.arms()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check(uri: str, state: SweepState, steps: int) -> None:
    """Assert every metric at every step exactly once, with the right value; one run per arm, one logged model
    per checkpoint, with its score.
    """
    mlflow = client(uri)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    parents = mlflow.search_runs([experiment], tagged({SWEEP: state.sweep.name, ARM: "-"}))
    assert len(parents) == 1
    runs = mlflow.search_runs([experiment], tagged({"mlflow.parentRunId": parents[0].info.run_id}))
    assert sorted(run.data.tags[ARM] for run in runs) == sorted(state.arms())
    scored = [step for step in range(1, steps + 1) if step % 2 == 0]
    for run in runs:
        wanted: dict[str, list[tuple[int, float]]] = {
            name: [(step, step + index / 10) for step in range(1, steps + 1)]
            for index, name in enumerate((*LOSSES, *CONSUMED))
        }
        wanted |= {
            "success_rate": [(step, 0.5) for step in scored],
            SCORED_STEP: [(step, float(step)) for step in scored],
        }
        for name in {*wanted, *SCORED}:
            told = sorted(
                (metric.step, metric.value) for metric in mlflow.get_metric_history(run.info.run_id, name)
            )
            assert told == wanted.get(name, told), f"{name} of {run.info.run_name}"
            assert [step for step, _ in told] == (scored if name in SCORED else list(range(1, steps + 1))), (
                name
            )
        assert run.data.metrics[SCORED_STEP] == scored[-1]
        assert len(run.inputs.dataset_inputs) == 1
        models = mlflow.search_logged_models(
            [experiment], f"source_run_id = '{run.info.run_id}'", max_results=100
        )
        arm_id = run.data.tags[ARM]
        assert Counter(model.tags[CHECKPOINT] for model in models) == Counter(
            fingerprint(arm_id, step) for step in scored
        )
        for model in models:
            assert str(model.status) == "READY"
            assert Counter((m.key, m.step) for m in model.metrics) == Counter(
                (name, int(model.tags["demoscale.step"])) for name in SCORED
            )
        outcomes = {file.path for file in mlflow.list_artifacts(run.info.run_id, "outcomes")}
        assert outcomes == {f"outcomes/step_{step:06d}.json" for step in scored}


def report_all(
    sweep: SweepConfig,
    steps: int,
    pause_s: float = 0.0,
    say: Any = print,
    settings: OutboxSettings = DEFAULT_OUTBOX,
) -> str:
    """Report everything; return a sentence about undelivered records, or an empty one."""
    state = SweepState.open(sweep, pin=True)
    views = TrackingPublisher(state, say, settings=settings)
    report(views, state, steps, pause_s)
    return views.finish(done=True)


def start_process(
    sweep: SweepConfig, folder: Path, steps: int, pause_s: float = 0.0, **variables: str
) -> subprocess.Popen[str]:
    """Start this module as a program in `folder`; `variables` are added to its environment."""
    file = folder / f"{sweep.name}.yaml"
    file.write_text(sweep.to_yaml())
    command = [sys.executable, str(Path(__file__).resolve()), str(file), str(steps), str(pause_s)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])} | variables
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


if __name__ == "__main__":
    print(json.dumps(report_all(SweepConfig.load(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
