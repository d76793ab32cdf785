"""Reader of the films of a curve's arms in MLflow, for the curve's page."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

from orchestrator.tracking.mlflow_reader import AT_ONCE, ScoredArm
from orchestrator.tracking.mlflow_writer import client
from sim_workers.rollout.suite import EpisodeSpec


class RolloutVideo(TypedDict):
    """One filmed rollout from MLflow."""

    arm: str
    episode: str
    result: str
    """success | failure"""
    caption: str
    mp4: bytes
    """Side by side: the scene, the cameras' pictures and the imagined ones."""


def films(tracking_uri: str, arms: Sequence[ScoredArm]) -> list[RolloutVideo]:
    """Return the films of every arm's last checkpoint, successes before failures; films of episodes without
    an outcome are skipped.
    """
    mlflow = client(tracking_uri)
    with ThreadPoolExecutor(AT_ONCE) as requests:
        return [
            film for of_arm in requests.map(lambda scored: _of_arm(mlflow, scored), arms) for film in of_arm
        ]


def _of_arm(mlflow: Any, scored: ScoredArm) -> list[RolloutVideo]:
    files = mlflow.list_artifacts(scored.run_id, f"rollouts/step_{scored.step:06d}")
    episodes = {Path(file.path).stem: file.path for file in files if file.path.endswith(".mp4")}
    told = sorted(
        episodes.keys() & scored.outcomes.keys(), key=lambda episode: (not scored.outcomes[episode], episode)
    )
    return [
        RolloutVideo(
            arm=scored.arm.name,
            episode=episode,
            result="success" if scored.outcomes[episode] else "failure",
            caption=(
                f"{EpisodeSpec.task_of(episode)}, {scored.arm.demo_count} demos, seed {scored.arm.seed}, step"
                f" {scored.step:,}"
            ),
            mp4=_bytes(mlflow, scored.run_id, episodes[episode]),
        )
        for episode in told
    ]


def _bytes(mlflow: Any, run_id: str, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return Path(mlflow.download_artifacts(run_id, path, folder)).read_bytes()
