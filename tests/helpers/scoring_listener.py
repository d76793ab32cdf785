"""A listener of the scorer that records every call."""

from collections.abc import Sequence
from typing import Any

from orchestrator.evaluation.scores import EvalJob, Score
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo


class RecordingListener:
    """Records what the scorer reports, and holds the pool that a test sets."""

    def __init__(self) -> None:
        self.scores: list[Score] = []
        self.outcomes: list[Outcome] = []
        self.lines: list[str] = []
        self.films: dict[str, RecordedVideo] = {}
        self.retries: list[tuple[str, str, str]] = []
        self.pool: Any = None

    def on_outcomes(self, job: EvalJob, outcomes: Sequence[Outcome], done: int) -> None:
        self.outcomes += outcomes

    def on_score(self, job: EvalJob, score: Score, outcomes: Sequence[Outcome]) -> None:
        self.scores.append(score)

    def on_film(self, job: EvalJob, episode: str, film: RecordedVideo) -> None:
        self.films[episode] = film

    def say(self, line: str) -> None:
        self.lines.append(line)
