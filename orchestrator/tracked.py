"""What MLflow remembers of a sweep: all that a curve is made from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from orchestrator.arms import Arm
from orchestrator.tracking import ARM, EXPERIMENT, PROTOCOL, SCORE_METRICS, STEPS, SWEEP, TRAINING, TrackingError, client, outcomes_artifact, tagged
from policy.config import PolicyKind


@dataclass(frozen=True)
class ScoredArm:
    """An arm as MLflow remembers it: its last checkpoint's complete score."""

    arm: Arm
    protocol: str
    step: int
    successes: int
    episodes: int
    errors: int
    outcomes: dict[str, bool]
    """Episode id -> success."""


def read_arms(uri: str, sweep: str) -> list[ScoredArm]:
    """The scored arms of a sweep as it stands now; TrackingError if the store knows no such sweep."""
    mlflow = client(uri)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    parents = mlflow.search_runs([experiment.experiment_id], tagged({SWEEP: sweep, ARM: "-"})) if experiment else []
    if not parents:
        raise TrackingError(f"{uri}: no sweep named {sweep} is tracked here; name one that ran, or the place with --storage or --mlflow")
    now = parents[0].data.tags
    wanted = tagged({"mlflow.parentRunId": parents[0].info.run_id, TRAINING: now[TRAINING], PROTOCOL: now[PROTOCOL]})
    arms = []
    for run in mlflow.search_runs([experiment.experiment_id], wanted, max_results=10_000):
        step = int(now[STEPS])
        last = {name: {m.step: m.value for m in mlflow.get_metric_history(run.info.run_id, name)} for name in SCORE_METRICS}
        if step not in last["success_rate"]:
            continue
        outcomes = Path(mlflow.download_artifacts(run.info.run_id, outcomes_artifact(step)))
        arms.append(
            ScoredArm(
                arm=_arm(run.data.params),
                protocol=now[PROTOCOL],
                step=step,
                successes=int(last["successes"][step]),
                episodes=int(last["episodes"][step]),
                errors=int(last["errors"][step]),
                outcomes=json.loads(outcomes.read_text()),
            )
        )
    return sorted(arms, key=lambda scored: scored.arm)


def _arm(params: dict[str, str]) -> Arm:
    """Back again. Runs that name no policy are older than the baselines."""
    policy = cast(PolicyKind, params.get("policy", "video_action"))
    return Arm(int(params["demo_count"]), float(params["action_free_ratio"]), int(params["seed"]), policy)
