"""Films of a curve's arms, for the curve's page, and their reader from MLflow."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

from orchestrator.config.arms import in_demos
from orchestrator.tracking.mlflow_reader import AT_ONCE, ScoredArm
from orchestrator.tracking.mlflow_writer import client
from sim_workers.rollout.suite import EpisodeSpec


class RolloutVideo(TypedDict):
    """One filmed rollout."""

    arm: str
    episode: str
    result: str
    """success | failure"""
    caption: str
    mp4: bytes
    """Side by side: the scene, the cameras' pictures and the imagined ones."""


def films(tracking_uri: str, arms: Sequence[ScoredArm]) -> list[RolloutVideo]:
    """Return the films of every arm's last checkpoint in MLflow, see `films_of_arm`."""
    mlflow = client(tracking_uri)

    def of_arm(scored: ScoredArm) -> list[RolloutVideo]:
        files = mlflow.list_artifacts(scored.run_id, f"rollouts/step_{scored.step:06d}")
        episodes = {Path(file.path).stem: file.path for file in files if file.path.endswith(".mp4")}
        return films_of_arm(scored, episodes, lambda path: _bytes(mlflow, scored.run_id, path))

    with ThreadPoolExecutor(AT_ONCE) as requests:
        return [film for films in requests.map(of_arm, arms) for film in films]


def films_of_arm(
    scored: ScoredArm, episodes: Mapping[str, str], read: Callable[[str], bytes]
) -> list[RolloutVideo]:
    """Return the films of an arm's last checkpoint, successes before failures; films of episodes without an
    outcome are skipped.

    episodes: episode id -> location of its film, from which `read` returns the MP4.
    """
    told = sorted(
        episodes.keys() & scored.outcomes.keys(), key=lambda episode: (not scored.outcomes[episode], episode)
    )
    return [
        RolloutVideo(
            arm=scored.arm.name,
            episode=episode,
            result="success" if scored.outcomes[episode] else "failure",
            caption=(
                f"{EpisodeSpec.task_of(episode)}, {in_demos(scored.arm.demo_count)}, seed {scored.arm.seed},"
                f" step {scored.step:,}"
            ),
            mp4=read(episodes[episode]),
        )
        for episode in told
    ]


def _bytes(mlflow: Any, run_id: str, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return Path(mlflow.download_artifacts(run_id, path, folder)).read_bytes()
