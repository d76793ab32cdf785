"""A receiver of the scorer's events that records all of them."""

from typing import Any

from orchestrator.evaluation.score_events import (
    OutcomesRecorded,
    RolloutVideoStored,
    ScoreConcluded,
    ScorerEvent,
)
from orchestrator.evaluation.scores import Score
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo
from sim_workers.rollout.worker import RolloutJob


class RecordingListener:
    """Records what the scorer reports, and holds the pool that a test sets."""

    def __init__(self) -> None:
        self.scores: list[Score] = []
        self.outcomes: list[Outcome] = []
        self.films: dict[str, RecordedVideo] = {}
        self.retries: list[tuple[str, str, str]] = []
        self.pool: Any = None

    def on_event(self, event: ScorerEvent) -> None:
        match event:
            case OutcomesRecorded():
                self.outcomes += event.outcomes
            case ScoreConcluded():
                self.scores.append(event.score)
            case RolloutVideoStored():
                self.films[event.episode] = event.video

    def on_retry(self, kind: str, job: RolloutJob, why: str) -> None:
        self.retries.append((kind, str(job), why))
