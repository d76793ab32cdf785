"""Events of scoring, from the scorer and from the scoring of generated video to their owner."""

from dataclasses import dataclass

from orchestrator.cost import Cost
from orchestrator.data.action_error import ActionError
from orchestrator.evaluation.action_error_score import ActionErrorScore
from orchestrator.evaluation.scores import EvalJob, HeldOutJob, Score
from orchestrator.evaluation.video_score import VideoScore
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo


@dataclass(frozen=True)
class OutcomesRecorded:
    """Outcomes are in the ledger: newly played ones, or none when a job is begun."""

    job: EvalJob
    outcomes: tuple[Outcome, ...]
    """The new outcomes, errors included."""
    done: int
    """Number of the job's listed episodes with an outcome, those of earlier runs included."""


@dataclass(frozen=True)
class ScoreConcluded:
    """A job has its score: every listed episode has an outcome, or the job's rule is decided."""

    job: EvalJob
    score: Score
    """Incomplete if an episode ended in an error."""
    outcomes: tuple[Outcome, ...]
    """The outcomes that the score counts."""


@dataclass(frozen=True)
class RolloutVideoStored:
    """The video of an episode is in the storage."""

    job: EvalJob
    episode: str
    video: RecordedVideo


@dataclass(frozen=True)
class GeneratedVideoScored:
    """The generated video of a checkpoint has a score, which is in the storage."""

    job: EvalJob | HeldOutJob
    score: VideoScore
    cost: Cost
    """Cost of the measurement; zero for a score of an earlier run."""


@dataclass(frozen=True)
class ActionErrorsRecorded:
    """Action errors of held-out episodes are in the ledger: newly measured ones, or none when a job is
    begun.
    """

    job: HeldOutJob
    errors: tuple[ActionError, ...]
    done: int
    """Number of held-out episodes that are measured, those of earlier runs included."""
    listed: int
    """Number of held-out episodes."""
    cpu_s: float
    """CPU seconds of reading and comparing, without the policy's."""


@dataclass(frozen=True)
class ActionErrorScored:
    """A job has its score: every held-out episode is measured, or could not be."""

    job: HeldOutJob
    score: ActionErrorScore


ScorerEvent = OutcomesRecorded | ScoreConcluded | RolloutVideoStored
"""Event of a scorer, sent in its thread."""
HeldOutEvent = ActionErrorsRecorded | ActionErrorScored
"""Event of a held-out scorer, sent in its thread."""
ScoreEvent = ScorerEvent | HeldOutEvent | GeneratedVideoScored
