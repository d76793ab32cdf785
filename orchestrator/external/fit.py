"""Training of an external policy on Ray, as `orchestrator.training.ray_train.fit` trains ours."""

from typing import Any

from orchestrator.external.job import ExternalJob
from orchestrator.training.train_events import Reported


def fit_external(
    job: ExternalJob, folder: str, resources: dict[str, float], channel: Any, attempts: int = 1
) -> list[Reported]:
    """Train the arm with the policy's own command in `folder`/<arm id>, where an interrupted run resumes;
    reports and retries go to the control channel.

    Return the reports of all its checkpoints in the order of steps, also of earlier runs. A failed attempt
    resumes from the last checkpoint, up to `attempts` attempts; then its error is raised, or at once if a
    retry cannot help.
    """
    raise NotImplementedError
