"""Stages and starting places of a checkpoint's episodes as a file of its arm's run in MLflow.

stages/step_<step>.json     {episode id: [stage, x, y]}; x and y in metres, null if not known
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.staged_outcome import StagedOutcome

FOLDER = "stages"


@dataclass(frozen=True)
class EpisodeStage:
    """How far an episode came, and where its object lay at the beginning."""

    stage: str
    """Furthest stage (`sim_workers.envs.stage_names`)."""
    x: float | None
    """In metres in the world's frame; None with several objects."""
    y: float | None
    """As `x`."""


def stages_of(outcomes: Iterable[Outcome]) -> dict[str, EpisodeStage]:
    """Return the stages of the outcomes that have them, by episode id."""
    return {
        one.spec.episode_id: EpisodeStage(one.stage, one.start_x, one.start_y)
        for one in outcomes
        if isinstance(one, StagedOutcome) and one.stage is not None
    }


def stages_artifact(step: int) -> str:
    """Return the name of the file with every episode's stage at a training step."""
    return f"{FOLDER}/step_{step:06d}.json"


def encode(stages: Mapping[str, EpisodeStage]) -> bytes:
    """Return the content of the file."""
    rows = {episode: [one.stage, one.x, one.y] for episode, one in stages.items()}
    return json.dumps(rows, sort_keys=True).encode()


def decode(text: str) -> dict[str, EpisodeStage]:
    """Invert `encode`."""
    return {episode: EpisodeStage(*row) for episode, row in json.loads(text).items()}
